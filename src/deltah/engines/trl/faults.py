"""What breaks a run that started well: a full disk, and numbers that are no longer finite."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import isfinite
from torch.nn import Module

from deltah.errors import DeltahError, TrainingError

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_WRITERS = re.compile(
    rf"os error ({'|'.join(map(str, _NO_SPACE))})\b"  # safetensors, from Rust
    r"|PytorchStreamWriter|inline_container\.cc.*unexpected pos"  # torch.save, which drops the number
)


@contextmanager
def disk_faults(path: Path) -> Iterator[None]:
    """Turn a full disk into one sentence, whichever library met it.

    Raises:
        TrainingError: in place of the library's own error.
    """
    try:
        yield
    except DeltahError:
        raise
    except Exception as error:
        cause = next((text for link in _chain(error) if (text := _disk_fault(link))), None)
        if cause is None:
            raise
        raise TrainingError(
            f"no space left to write in {path} ({cause}); free some, or lift the quota or the limit on file sizes, and "
            "run the same command again: it continues from the last checkpoint"
        ) from error


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those behind it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _disk_fault(error: BaseException) -> str | None:
    """What a disk that takes no more says, as one line; None for another error."""
    text = str(error).splitlines()[0] if str(error) else ""
    if isinstance(error, OSError) and error.errno in _NO_SPACE:
        return error.strerror or text
    return text if _WRITERS.search(text) else None


def check_finite(model: Module, step: int, checkpoints: Path) -> None:
    """Refuse weights that are not finite, so that no checkpoint of them replaces a good one.

    Raises:
        TrainingError: saying how to start again.
    """
    if not all(bool(isfinite(weight).all()) for weight in model.parameters() if weight.requires_grad):
        raise broken_numbers("a weight", step, checkpoints)


def broken_numbers(what: str, step: int, checkpoints: Path) -> TrainingError:
    """The error for a number that is not finite. A run directory keeps its settings, so a changed one needs another."""
    return TrainingError(
        f"{what} is not a finite number at step {step}; start a new run with another --out and a lower learning_rate "
        "or trainer.max_grad_norm (this directory keeps its settings; the last good checkpoint, if any, is in "
        f"{checkpoints})"
    )
