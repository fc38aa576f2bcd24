"""Environment and fixtures of all tests."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from builders import make_trajectory

import deltah
from deltah import Trajectory

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(autouse=True)
def registries_as_they_were() -> Iterator[None]:
    """What a test registers is gone after it: the study, for one, takes every signal that there is."""
    registries = [
        getattr(deltah, name) for name in deltah.__all__ if isinstance(getattr(deltah, name), deltah.Registry)
    ]
    kept = [dict(registry) for registry in registries]
    yield
    for registry, entries in zip(registries, kept, strict=True):
        registry._entries = entries


@pytest.fixture
def trajectory() -> Trajectory:
    """H(r) = 2, 1, 1.5, 0.5: ΔH = -1, +0.5, -1."""
    return make_trajectory([[2.0, 2.0], [1.0], [1.0, 2.0], [0.5]])


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Name bytes by their length: a gzip stream holds a clock, and workers must collect the same names."""
    return f"{argname}-{len(val)}-bytes" if isinstance(val, bytes) else None
