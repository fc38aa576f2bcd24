"""Entropies that the trainer of prime-rl writes beside its stream of episodes, found by trace and path.

They are kept on disk, because they may be greater than the memory, and the last word on a path counts.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from deltah.core.types import FloatArray
from deltah.errors import DataError
from deltah.traces.files import opened, text_records
from deltah.traces.importing import decode_line


class BranchUpdate(msgspec.Struct):
    """What the trainer computed on one path of a trace."""

    index: int
    entropies: list[float | None] | None = None


class Update(msgspec.Struct):
    """A line of the trainer's annotations."""

    trace_id: str
    branches: list[BranchUpdate] = []


_UPDATE: Final = msgspec.json.Decoder(Update)


class Annotations:
    """Entropies of one run."""

    def __init__(self, files: Sequence[Path]) -> None:
        """Read them all; a line that cannot be read is counted, but for a last one that is still being written."""
        self.n_unread = 0
        self._spool = tempfile.TemporaryFile()  # noqa: SIM115  # open as long as this is
        self._places: dict[tuple[str, int], tuple[int, int]] = {}
        for file in files:
            with opened(str(file)) as raw:
                for line in text_records(raw):
                    try:
                        update = decode_line(line.data, _UPDATE)
                    except DataError:
                        self.n_unread += line.complete
                        continue
                    for branch in update.branches:
                        self._add(update.trace_id, branch)

    def get(self, trace_id: str, branch: int) -> FloatArray | None:
        """(T,) nats of a path's tokens, NaN where unknown."""
        if (place := self._places.get((trace_id, branch))) is None:
            return None
        self._spool.seek(place[0])
        return np.frombuffer(self._spool.read(place[1]), dtype=np.float64)

    def _add(self, trace_id: str, branch: BranchUpdate) -> None:
        """Keep the last word on a path."""
        if branch.entropies is not None:
            data = np.array(branch.entropies, dtype=np.float64).tobytes()
            self._places[trace_id, branch.index] = self._spool.seek(0, 2), len(data)
            self._spool.write(data)


def annotations_of(log: str) -> Annotations | None:
    """The trainer's annotations that belong to a file of episodes; None where there are none."""
    folder = Path(log).parent
    base = (folder.parent if folder.name == "stream" else folder) / "annotations"
    files = sorted((base / "trainer").glob("*.jsonl*")) or sorted(base.glob("trainer.jsonl*"))
    return _annotations(tuple((file, file.stat().st_size) for file in files)) if files else None


@lru_cache(maxsize=2)
def _annotations(files: tuple[tuple[Path, int], ...]) -> Annotations:
    return Annotations([file for file, _ in files])
