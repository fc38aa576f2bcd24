"""Fixtures of the engines' tests."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with its tokenizer in `model/`, `tasks.jsonl` and `corpus.jsonl`; not to be changed."""
    from engines.training_fixtures import write_files

    return write_files(tmp_path_factory.mktemp("files"))
