"""A process that runs tasks on request and answers with their times: JSON lines in on stdin, JSON lines out on stdout.

The task file is loaded once; a task is a function that prepares and returns what to time. It may stand in any
environment, so this file needs the standard library only.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import gc
import importlib.metadata
import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def measured(run: Callable[[], Any], memory: bool, tasks: Any = None) -> tuple[Any, dict[str, Any]]:
    """Result of one call, its wall and CPU seconds, and with `memory` the peak of resident bytes above the start.

    What is resident is made small first, so that a call with `memory` also pays for new pages; Linux only. Where the
    tasks run on a card, the bytes are its own, and what counts as CPU seconds are wall seconds.
    """
    gc.collect()
    on_card = tasks.card_peak(reset=True) if hasattr(tasks, "card_peak") else None
    before = _reset_peak() if memory else None
    wall, cpu = time.perf_counter(), time.process_time()
    result = run()
    if on_card is not None:
        tasks.finish()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    if on_card is not None:
        return result, {"seconds": wall, "cpu_seconds": wall, "peak_bytes": tasks.card_peak() - on_card}
    peak = None if before is None else _status("VmHWM") - before
    return result, {"seconds": wall, "cpu_seconds": cpu, "peak_bytes": peak}


def _reset_peak() -> int | None:
    """Give free memory back, make the peak equal to what is resident, and return that."""
    try:
        ctypes.CDLL(ctypes.util.find_library("c")).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    except (OSError, AttributeError):
        return None
    return _status("VmRSS")


def _status(key: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{key}:"))
    return int(line.split()[1]) * 1024


def _save(value: Any, path: str) -> None:
    import numpy as np  # every environment of a peer has it

    np.save(path, np.asarray(value.cpu() if hasattr(value, "cpu") else value))


def main() -> None:
    """Serve the tasks of the file named on the command line."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print does not disturb the answers
    specification = importlib.util.spec_from_file_location("tasks", sys.argv[1])
    assert specification is not None
    assert specification.loader is not None
    tasks = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(tasks)
    prepared: dict[str, Any] = {}
    for line in sys.stdin:
        request = json.loads(line)
        answer: dict[str, Any] = {}
        if "prepare" in request:
            run = prepared[request["key"]] = getattr(tasks, request["prepare"])(**request["arguments"])
            result, answer = measured(run, True, tasks)  # warms up
            _save(result, request["path"])
            del result
            answer["versions"] = {name: importlib.metadata.version(name) for name in tasks.VERSIONS}
        elif "forget" in request:
            prepared.clear()
        else:
            _, answer = measured(prepared[request["key"]], request["memory"], tasks)
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
