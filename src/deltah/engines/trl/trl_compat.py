"""What deltah relies on in TRL's private interface, checked when a trainer is built and on its first batch.

TRL promises nothing about these methods. A changed one must stop a run at its start with a sentence that names the
versions known to work, not corrupt its numbers. The processes that `torchrun` starts are handled here too.
"""

from __future__ import annotations

import gc
import inspect
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from typing import Any

from deltah.errors import UnsupportedVersionError

_ARGUMENTS = {
    "_generate": "prompts",
    "_calculate_rewards": "inputs prompts completions completion_ids_list",
    "_generate_and_score_completions": "inputs",
    "_get_per_token_logps_and_entropies": "model input_ids attention_mask logits_to_keep batch_size compute_entropy",
    "_save_checkpoint": "model trial",
    "_get_output_dir": "trial",
    "_load_from_checkpoint": "resume_from_checkpoint",
}


def check_trainer_class(trainer_class: type) -> None:
    """Check the installed TRL's version and the signatures deltah overrides or calls."""
    version = metadata.version("trl")
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if not (1, 16) <= numbers < (2, 0):
        raise unsupported(f"version {version} is outside the supported range >=1.16,<2")
    for name, expected in _ARGUMENTS.items():
        method: Callable[..., Any] | None = getattr(trainer_class, name, None)
        if method is None:
            raise unsupported(f"GRPOTrainer.{name} no longer exists")
        missing = [argument for argument in expected.split() if argument not in inspect.signature(method).parameters]
        if missing:
            raise unsupported(f"GRPOTrainer.{name} no longer takes {', '.join(missing)}")


def check_rollout(output: tuple[Any, ...], n_prompts: int) -> None:
    """Check that `_generate` returned prompt ids, completion ids and tool mask first, one row per prompt."""
    rows = [len(item) for item in output[:2]] if len(output) >= 3 else []
    if rows != [n_prompts, n_prompts] or (output[2] is not None and len(output[2]) != n_prompts):
        raise unsupported("GRPOTrainer._generate returns another tuple")


def check_scored_batch(output: Mapping[str, Any]) -> None:
    """Check the keys of a scored batch."""
    missing = {"prompt_ids", "completion_ids", "completion_mask", "advantages"} - output.keys()
    if missing:
        raise unsupported(f"the scored batch no longer has {', '.join(sorted(missing))}")


def unsupported(what: str) -> UnsupportedVersionError:
    """The error for an interface that the installed TRL does not have."""
    return UnsupportedVersionError(
        f"this release of TRL does not fit deltah: {what} (tested with TRL 1.16); "
        "install one with: pip install 'trl==1.16.*'"
    )


def rank() -> int:
    """Number of this process in the run, from 0; process 0 owns the run directory."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Number of processes of the run."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def alone() -> Iterator[None]:
    """Leave the group of processes for good: trainers made inside run in this process only.

    Every process must call this after its last common work: one that ends as a member of a gloo group may abort at
    exit (pytorch/pytorch#179291).
    """
    import torch
    from accelerate.state import AcceleratorState

    gc.collect()  # the trainer before and its optimiser
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
        AcceleratorState._reset_state(reset_partial_state=True)
    keys = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    launched = {key: os.environ.pop(key) for key in keys if key in os.environ}
    try:
        yield
    finally:
        os.environ.update(launched)
