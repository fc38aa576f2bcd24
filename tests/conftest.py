"""Environment and fixtures of all tests."""

from __future__ import annotations

import os

import pytest
from builders import make_trajectory

from deltah import Trajectory

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture
def trajectory() -> Trajectory:
    """H(r) = 2, 1, 1.5, 0.5: ΔH = -1, +0.5, -1."""
    return make_trajectory([[2.0, 2.0], [1.0], [1.0, 2.0], [0.5]])


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Name bytes by their length: a gzip stream holds a clock, and workers must collect the same names."""
    return f"{argname}-{len(val)}-bytes" if isinstance(val, bytes) else None
