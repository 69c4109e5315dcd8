"""Waiting for what another process does."""

import time


def wait_for(condition, seconds):
    """What `condition` returns, once that is true; fails after some seconds."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.02)
    return found
