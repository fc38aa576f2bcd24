"""The placebo: a real result of another question's call of the same tool, of like length, without the gold answer.

It answers what "no result" cannot: a context also changes by being longer, by holding a result at all, and by the turn
that follows it. The donor of a call depends on the seed, on the call and on the set of trajectories alone, not on which
calls are probed or in what order.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from deltah.core.types import CallStatus, Trajectory
from deltah.probe.types import question_key
from deltah.tasks.graders import normalize_answer

MAX_RATIO: Final = 2.0
"""Donor and real result differ in length by this factor at most."""
NEAREST: Final = 16
"""The donor is drawn from so many results of nearest length."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Donor:
    """A call whose result can stand in for another's."""

    trajectory: Trajectory
    call: int
    """Index into its calls."""
    question: str
    """Key of the question it belongs to."""

    @property
    def result(self) -> str:
        """The text it gives."""
        return self.trajectory.calls[self.call].result or ""


class DonorPool:
    """Every successful, non-empty result of a set of trajectories, by tool."""

    def __init__(self, trajectories: Iterable[Trajectory]) -> None:
        """Collect the results."""
        pool: dict[str, list[Donor]] = defaultdict(list)
        for trajectory in trajectories:
            key = question_key(trajectory)
            for i, call in enumerate(trajectory.calls):
                if call.status is CallStatus.OK and (call.result or "").strip():
                    pool[call.name].append(Donor(trajectory=trajectory, call=i, question=key))
        self._by_tool = {
            tool: sorted(donors, key=lambda d: (len(d.result), d.question, d.trajectory.id, d.call))
            for tool, donors in pool.items()
        }
        self._lengths = {tool: np.array([len(d.result) for d in found]) for tool, found in self._by_tool.items()}

    def choose(
        self, trajectory: Trajectory, call: int, seed: int, *, usable: Callable[[Donor], bool] = lambda donor: True
    ) -> Donor | None:
        """Draw the placebo of one answered call; None if no result will do.

        Args:
            trajectory: Holds the call.
            call: Its index.
            seed: Together with the names of trajectory and call it fixes the draw.
            usable: A further condition on donors.
        """
        target = trajectory.calls[call]
        result, key, asked = target.result or "", question_key(trajectory), _asked(trajectory)
        forbidden = [_words(answer) for answer in trajectory.golden_answers if answer.strip()]
        found: list[Donor] = []
        seen = {_words(result)}
        for donor in self._by_length(target.name, len(result)):
            words = _words(donor.result)
            if donor.question == key or words in seen or any(gold in words for gold in forbidden):
                continue
            if asked is not None and _asked(donor.trajectory) == asked:  # the same question under another id
                continue
            if usable(donor):
                seen.add(words)
                found.append(donor)
            if len(found) == NEAREST:
                break
        if not found:
            return None
        return found[int(_generator(seed, trajectory.id, target.id).integers(len(found)))]

    def _by_length(self, tool: str, length: int) -> Sequence[Donor]:
        """Donors of like length, nearest first; ties in a fixed order."""
        if tool not in self._by_tool:
            return ()
        lengths = self._lengths[tool]
        start, stop = (
            np.searchsorted(lengths, length / MAX_RATIO),
            np.searchsorted(lengths, length * MAX_RATIO, "right"),
        )
        order = np.argsort(np.abs(np.log(lengths[start:stop] / max(length, 1))), kind="stable")
        return [self._by_tool[tool][int(start) + int(i)] for i in order]


def _asked(trajectory: Trajectory) -> str | None:
    return None if trajectory.question is None else " ".join(trajectory.question.casefold().split())


def _words(text: str) -> str:
    """Normalised words between single spaces, one at either end, so that containment is of whole words."""
    return f" {normalize_answer(text) or ' '.join(text.lower().split())} "


def _generator(seed: int, *names: str) -> np.random.Generator:
    digest = hashlib.sha256("\0".join(names).encode("utf-8", "replace")).digest()
    return np.random.default_rng([seed, int.from_bytes(digest[:8], "big")])
