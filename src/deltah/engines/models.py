"""Names of models -> files on disk, without loading them: a directory, a hub id, or a model deltah ships.

`lab` and `smollm2` resolve to ordinary Hugging Face directories, so that nothing further down knows which is which.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from deltah.errors import ModelError

LAB, SMOLLM2 = "lab", "smollm2"


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """Where `from_pretrained` finds a model."""

    name: str
    """As the user gave it."""
    path: str
    """A directory, or a hub id."""


def resolve_model(name: str) -> ModelFiles:
    """Find a model's files; builds the shipped SmolLM2 on first use.

    Raises:
        ModelError: if a local path holds no model, or the shipped checkpoint is missing.
        MissingDependencyError: if `smollm2` is asked for without its extra.
    """
    if name == LAB:
        path = Path(str(resources.files("deltah.lab") / "checkpoint"))
        if not (path / "config.json").exists():
            raise ModelError("the embedded agent is not in this installation; make it with: deltah lab coldstart")
        return ModelFiles(name, str(path))
    if name == SMOLLM2:
        from deltah.engines.smollm2 import load_smollm2

        return ModelFiles(name, str(load_smollm2()))
    local = Path(name)
    if local.exists() and not (local / "config.json").exists():
        raise ModelError(f"{name} holds no model: expected a directory with config.json, as save_pretrained writes it")
    if not local.exists() and (name.startswith((".", "/", "~")) or name.count("/") != 1):
        raise ModelError(f"no model at {name!r}; give a local directory, a hub id 'owner/name', 'lab' or 'smollm2'")
    return ModelFiles(name, name)
