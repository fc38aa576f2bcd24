"""Errors a user can cause; each class also inherits the standard-library error a caller would expect to catch.

Every message says what was got, where, what was expected and what to do next. The command line prints the message
alone and exits with code 2; anything else is a bug and keeps its traceback.
"""

from __future__ import annotations


class DeltahError(Exception):
    """Base of every error that a user can cause and repair."""


class InvalidValueError(DeltahError, ValueError):
    """An argument, option or array that breaks a stated rule."""


class ConfigError(DeltahError, ValueError):
    """A configuration that cannot work, or differs from the one a run was started with."""


class DataError(DeltahError, ValueError):
    """A file whose content breaks its format; the message names file, line and field."""


class DataWarning(UserWarning):
    """Records of a file that could not be read, while others could."""


class VocabularySizeError(InvalidValueError, DataError):
    """A vocabulary size that is too small for the tokens or probabilities beside it; takes a reason and the size."""

    def __str__(self) -> str:
        reason, vocab_size = self.args
        return (
            f"a vocabulary of {vocab_size:,} tokens is too small: {reason}; state the model's own size with "
            "--vocab-size (vocab_size in its config.json)"
        )


class MissingDependencyError(DeltahError, ImportError):
    """An optional package is not installed; the message names the extra that brings it."""


class ModelError(DeltahError, RuntimeError):
    """A model, tokenizer or chat template that cannot do what a command needs."""


class ServerError(DeltahError, RuntimeError):
    """A model server that refuses access, does not answer, or does not report what a command needs."""


class ProcessError(DeltahError, RuntimeError):
    """A worker process that was killed."""


class UnsupportedVersionError(DeltahError, RuntimeError):
    """An engine's version whose contract differs from the one deltah was built against."""


class TrainingError(DeltahError, RuntimeError):
    """A training run that cannot go on (a loss that is not a number, a full disk)."""


def missing_dependency(package: str, *, extra: str, purpose: str) -> MissingDependencyError:
    """The error for an absent optional package, which an extra of deltah installs; `purpose` begins the sentence."""
    return MissingDependencyError(
        f"{purpose} needs the package {package!r}; install it with: pip install 'deltah[{extra}]'"
    )
