"""Who gave the outcomes of trajectories, and so what their mean may be called.

An outcome is a number in [0, 1]. It is an F1 only where deltah graded a final answer against gold answers by token F1;
what a log or a file of grades states may be any score.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import Final

from deltah.core.types import Trajectory
from deltah.tasks import OUTCOME_GRADER, TaskKind

F1: Final = "F1"
OUTCOME: Final = "outcome"
"""Title of a mean outcome that is no F1."""


class Grader(StrEnum):
    """Where an outcome comes from."""

    TOKEN_F1 = "token_f1"
    EQUALITY = "equality"
    STATED = "stated"


_OF_KIND: Final = {TaskKind.QA.value: Grader.TOKEN_F1, TaskKind.MATH.value: Grader.EQUALITY}
_MEANING: Final = {
    Grader.TOKEN_F1: "the token F1 of the final answer against the gold answers",
    Grader.EQUALITY: "1 where the final answer equals a gold answer as mathematics, else 0",
    Grader.STATED: "the score, in [0,\N{NO-BREAK SPACE}1], that the log or the answers' file states",
}


def grader_of(trajectory: Trajectory) -> Grader | None:
    """Who graded a trajectory; None for one without an outcome."""
    if trajectory.outcome is None:
        return None
    return _OF_KIND.get(str(trajectory.metadata.get(OUTCOME_GRADER)), Grader.STATED)


def outcome_title(graders: Iterable[Grader]) -> str:
    """What tables call the mean outcome: F1 only if every outcome is one."""
    return F1 if set(graders) == {Grader.TOKEN_F1} else OUTCOME


def outcome_meaning(graders: Iterable[Grader]) -> str:
    """What the outcomes are, in one sentence."""
    met = frozenset(graders)
    if not met:
        return "No trajectory has an outcome."
    title = F1 if outcome_title(met) == F1 else "The outcome"
    return f"{title} is {', of other trajectories '.join(_MEANING[grader] for grader in Grader if grader in met)}."
