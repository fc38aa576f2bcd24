"""Names of models -> files on disk, without loading them: a directory, a hub id, or a model deltah ships.

`lab` and `smollm2` resolve to ordinary Hugging Face directories, so that nothing further down knows which is which.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import resources
from importlib.util import find_spec
from pathlib import Path

from deltah.errors import ModelError, missing_dependency

LAB, SMOLLM2 = "lab", "smollm2"


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """Where `from_pretrained` finds a model."""

    name: str
    """As the user gave it."""
    path: str
    """A directory, or a hub id."""
    base: str | None = None
    """Where `path` holds a LoRA adapter: the model it was trained on."""

    @property
    def tokenizer(self) -> str:
        """Where the tokenizer is: beside the weights, or with the base model of an adapter that has none."""
        alone = self.base is not None and not (Path(self.path) / "tokenizer_config.json").exists()
        return str(self.base) if alone else self.path


def resolve_model(name: str) -> ModelFiles:
    """Find a model's files; builds the shipped SmolLM2 on first use.

    Raises:
        ModelError: if a local path holds no model, or the shipped checkpoint is missing.
        MissingDependencyError: if `smollm2` is asked for without its extra, or an adapter without PEFT.
    """
    if name == LAB:
        path = Path(str(resources.files("deltah.lab") / "checkpoint"))
        if not (path / "config.json").exists():
            raise ModelError("the embedded agent is missing from this installation; install deltah again")
        return ModelFiles(name, str(path))
    if name == SMOLLM2:
        from deltah.engines.smollm2.build import load_smollm2

        return ModelFiles(name, str(load_smollm2()))
    local = Path(name)
    if (local / "adapter_config.json").exists() and not (local / "config.json").exists():
        return _adapter_files(name, local)
    if local.exists() and not (local / "config.json").exists():
        raise ModelError(f"{name} holds no model: expected a directory with config.json, as save_pretrained writes it")
    if not local.exists() and (name.startswith((".", "/", "~")) or name.count("/") != 1):
        raise ModelError(f"no model at {name!r}; give a local directory, a hub id 'owner/name', 'lab' or 'smollm2'")
    return ModelFiles(name, name)


def _adapter_files(name: str, folder: Path) -> ModelFiles:
    """A directory with a LoRA adapter alone, such as a checkpoint of a run with `lora_rank`."""
    if find_spec("peft") is None:
        raise missing_dependency("peft", extra="train", purpose=f"{name} holds a LoRA adapter, which")
    try:
        base = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{name}/adapter_config.json does not name the model it was trained on ({error})") from error
    if not base:
        raise ModelError(f"{name}/adapter_config.json names no base_model_name_or_path; write the model's path there")
    return ModelFiles(name, name, base=resolve_model(str(base)).path)


def unloadable(what: str, files: ModelFiles, error: Exception) -> ModelError:
    """The error for files that a host could not read: its first line, and what to do."""
    lines = str(error).strip().splitlines()
    reason = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    where = "its files; download or save it again" if Path(files.path).is_dir() else "the name and the connection"
    return ModelError(
        f"the {what} of {files.name!r} does not load ({reason}); it must be a causal language model as save_pretrained "
        f"writes it: check {where}"
    )
