"""The processes of one run, as `torchrun` starts them: which one this is, and work that only the first does."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager

_LAUNCHER_KEYS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


def rank() -> int:
    """Number of this process among those of the run; the first is 0 and owns the run directory."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Number of processes of the run."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def alone() -> Iterator[None]:
    """Leave the group of processes: trainers made inside act in this process only and wait for no other.

    Every process of the run must come here after its last common work, one that has nothing left to do as well: a
    process that ends as a member of a gloo group may abort at exit, because the group's threads drop Python objects
    while the interpreter is taken down (pytorch/pytorch#179291). Training cannot go on afterwards.
    """
    import torch
    from accelerate.state import AcceleratorState

    gc.collect()  # the trainer before and its optimiser
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
        AcceleratorState._reset_state(reset_partial_state=True)
    launched = {key: os.environ.pop(key) for key in _LAUNCHER_KEYS if key in os.environ}
    try:
        yield
    finally:
        os.environ.update(launched)
