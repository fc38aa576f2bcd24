"""Checkpoints and the final model of a run: written under a temporary name, and used only when whole and finite.

A checkpoint directory is renamed into place after its last file, `files.json`, which lists every other with its size;
one whose files differ from that list (a killed writer, a damaged disk) is never resumed from.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import isfinite
from torch.nn import Module
from transformers import TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints

from deltah.engines.trl.trainer import DeltaHTrainer
from deltah.engines.trl.trl_compat import unsupported
from deltah.errors import DeltahError, TrainingError

logger = logging.getLogger(__name__)

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_WRITERS = re.compile(
    rf"os error ({'|'.join(map(str, _NO_SPACE))})\b"  # safetensors, from Rust
    r"|PytorchStreamWriter|inline_container\.cc.*unexpected pos"  # torch.save, which drops the number
)
INVENTORY, PARTIAL, ADAPTER = "files.json", ".partial", "adapter"


class RunTrainer(DeltaHTrainer):
    """`DeltaHTrainer` that writes whole checkpoints or none."""

    _staged = False

    def _get_output_dir(self, trial: Any) -> str:
        folder: str = super()._get_output_dir(trial)
        return os.path.join(folder, PARTIAL) if self._staged else folder

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder, name = Path(self._get_output_dir(trial)), f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        check_finite(self.model, self.state.global_step, folder)
        if self.args.should_save:
            shutil.rmtree(folder / PARTIAL, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self._staged = True
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._staged = False
        self.accelerator.wait_for_everyone()  # each process writes the state of its random numbers
        if self.args.should_save:
            _publish(folder / PARTIAL / name, folder / name)
            rotate_checkpoints(str(folder), self.args.save_total_limit, use_mtime=True)

    def restore(self, checkpoint: Path) -> None:
        """Take weights and step count of a checkpoint, to go on without training."""
        self._load_from_checkpoint(str(checkpoint))
        self.state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))

    def save_final(self, path: Path) -> None:
        """Write model and tokenizer; a LoRA adapter is merged into the model, and kept beside it in `adapter/`."""
        check_finite(self.model, self.state.global_step, Path(self.args.output_dir))
        staging = path.with_name(f".{path.name}{PARTIAL}")
        if self.args.should_save:
            shutil.rmtree(staging, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        if not hasattr(self.model, "merge_and_unload"):
            self.save_model(str(staging))
        elif self.args.should_save:
            self.model.save_pretrained(staging / ADAPTER)
            self.model.merge_and_unload().save_pretrained(staging)
        if self.args.should_save:
            self.processing_class.save_pretrained(str(staging))
            _replace(staging, path)
        self.accelerator.wait_for_everyone()


def _publish(staged: Path, target: Path) -> None:
    """List the files of a finished checkpoint and move it into place."""
    if not staged.is_dir():
        raise unsupported("checkpoints are no longer written where Trainer._get_output_dir says")
    sizes = {str(file.relative_to(staged)): file.stat().st_size for file in staged.rglob("*") if file.is_file()}
    (staged / INVENTORY).write_text(json.dumps(sizes), encoding="utf-8")
    _replace(staged, target)
    shutil.rmtree(staged.parent, ignore_errors=True)


def _replace(staged: Path, target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    staged.replace(target)


def step_of(checkpoint: Path | None) -> int:
    """Optimiser steps behind a checkpoint; 0 for None."""
    return 0 if checkpoint is None else int(checkpoint.name.rsplit("-", 1)[1])


def is_complete(checkpoint: Path) -> bool:
    """Whether every file of the inventory has its full length."""
    try:
        sizes = json.loads((checkpoint / INVENTORY).read_text(encoding="utf-8"))
        return all((checkpoint / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, AttributeError):
        return False


def last_complete(folder: Path) -> Path | None:
    """The latest whole checkpoint, or None."""
    return next((checkpoint for checkpoint in _newest_first(folder) if is_complete(checkpoint)), None)


def drop_partial(folder: Path) -> None:
    """Remove what a killed writer left: half-written checkpoints, and any that is newer than the last whole one."""
    kept = step_of(last_complete(folder))
    for checkpoint in _newest_first(folder):
        if step_of(checkpoint) > kept:
            logger.warning("%s is not whole and is removed; the run continues from step %d", checkpoint, kept)
            shutil.rmtree(checkpoint, ignore_errors=True)
    shutil.rmtree(folder / PARTIAL, ignore_errors=True)


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"{PREFIX_CHECKPOINT_DIR}-[0-9]*"), key=step_of, reverse=True)


@contextmanager
def disk_faults(path: Path) -> Iterator[None]:
    """Turn any library's error on a full disk into one sentence."""
    try:
        yield
    except DeltahError:
        raise
    except Exception as error:
        cause = _disk_fault(error)
        if cause is None:
            raise
        raise TrainingError(
            f"no space left to write in {path} ({cause}); free some, or lift the quota or the limit on file sizes, and "
            "run the same command again: it continues from the last checkpoint"
        ) from error


def _disk_fault(error: BaseException | None) -> str | None:
    """First line of an error (or of its cause) that means a full disk; None for other errors."""
    if error is None:
        return None
    text = str(error).splitlines()[0] if str(error) else ""
    if isinstance(error, OSError) and error.errno in _NO_SPACE:
        return error.strerror or text
    return text if _WRITERS.search(text) else _disk_fault(error.__cause__ or error.__context__)


def check_finite(model: Module, step: int, checkpoints: Path) -> None:
    """Refuse weights that are not finite, so that they replace no good checkpoint."""
    if not all(bool(isfinite(weight).all()) for weight in model.parameters() if weight.requires_grad):
        raise broken_numbers("a weight", step, checkpoints)


def broken_numbers(what: str, step: int, checkpoints: Path) -> TrainingError:
    """The error for a number that is not finite."""
    return TrainingError(
        f"{what} is not a finite number at step {step}; start a new run with another --out and a lower learning_rate "
        "or trainer.max_grad_norm (this directory keeps its settings; the last good checkpoint, if any, is in "
        f"{checkpoints})"
    )
