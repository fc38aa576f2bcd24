"""What deltah relies on in TRL's private interface, checked when a trainer is built and on its first batch.

TRL moves fast and promises nothing about these methods. A changed contract must stop a run at its start with a sentence
that names the versions known to work, not corrupt its numbers.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from importlib import metadata
from typing import Any

from deltah.errors import UnsupportedVersionError

TESTED_VERSIONS = "1.16"
_LOWEST, _BELOW = (1, 16), (2, 0)
_ARGUMENTS = {
    "_generate": ("prompts",),
    "_calculate_rewards": ("inputs", "prompts", "completions", "completion_ids_list"),
    "_generate_and_score_completions": ("inputs",),
    "_get_per_token_logps_and_entropies": (
        "model",
        "input_ids",
        "attention_mask",
        "logits_to_keep",
        "batch_size",
        "compute_entropy",
    ),
    "_save_checkpoint": ("model", "trial"),
    "_get_output_dir": ("trial",),
    "_load_from_checkpoint": ("resume_from_checkpoint",),
}
_OUTPUT_KEYS = ("prompt_ids", "completion_ids", "completion_mask", "advantages")


def check_trainer_class(trainer_class: type) -> None:
    """Check the installed TRL's version and the signatures deltah overrides or calls.

    Raises:
        UnsupportedVersionError: naming what differs and the tested versions.
    """
    version = metadata.version("trl")
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if not _LOWEST <= numbers < _BELOW:
        raise unsupported(f"version {version} is outside the supported range >=1.16,<2")
    for name, expected in _ARGUMENTS.items():
        method: Callable[..., Any] | None = getattr(trainer_class, name, None)
        if method is None:
            raise unsupported(f"GRPOTrainer.{name} no longer exists")
        missing = [argument for argument in expected if argument not in inspect.signature(method).parameters]
        if missing:
            raise unsupported(f"GRPOTrainer.{name} no longer takes {', '.join(missing)}")


def check_rollout(output: tuple[Any, ...], n_prompts: int) -> None:
    """Check that `_generate` returned prompt ids, completion ids and tool mask as its first three items, a row each.

    Raises:
        UnsupportedVersionError: if it did not.
    """
    rows = [len(item) for item in output[:2]] if len(output) >= 3 else []
    if rows != [n_prompts, n_prompts] or (output[2] is not None and len(output[2]) != n_prompts):
        raise unsupported("GRPOTrainer._generate returns another tuple")


def check_scored_batch(output: Mapping[str, Any]) -> None:
    """Check the keys of a scored batch.

    Raises:
        UnsupportedVersionError: if one is missing.
    """
    missing = [key for key in _OUTPUT_KEYS if key not in output]
    if missing:
        raise unsupported(f"the scored batch no longer has {', '.join(missing)}")


def unsupported(what: str) -> UnsupportedVersionError:
    """The error for a contract that the installed TRL does not keep."""
    return UnsupportedVersionError(
        f"this release of TRL does not fit deltah: {what} (tested with TRL {TESTED_VERSIONS}); "
        "install one with: pip install 'trl==1.16.*'"
    )
