"""What the whole suite shares: one hypothesis profile, and the project's root directory."""

from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("lorantk", derandomize=True, deadline=None, max_examples=25)
settings.load_profile("lorantk")


@pytest.fixture(scope="session")
def root() -> Path:
    return Path(__file__).resolve().parent.parent
