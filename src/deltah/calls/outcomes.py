"""Who gave the outcomes of trajectories, and so what their mean may be called.

An outcome is a number in [0, 1]. It has the title of a grader only where that grader gave every one of them; what a log
or a file of grades states may be any score.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from deltah.core.types import Trajectory
from deltah.tasks import GRADERS, OUTCOME_GRADER

OUTCOME: Final = "outcome"
"""Title of a mean outcome of several graders, or of none of ours."""
STATED: Final = "stated"
"""In the place of a grader's name: the log or the answers' file states the outcome."""
_STATED_MEANING: Final = "the score, in [0,\N{NO-BREAK SPACE}1], that the log or the answers' file states"


def grader_of(trajectory: Trajectory) -> str | None:
    """Name of the grader of a trajectory, or `STATED`; None for one without an outcome."""
    return None if trajectory.outcome is None else str(trajectory.metadata.get(OUTCOME_GRADER) or STATED)


def outcome_title(graders: Iterable[str]) -> str:
    """What tables call the mean outcome: the title of the one grader that gave them all, such as F1 of `qa`."""
    met = set(graders)
    return GRADERS[met.pop()].title if len(met) == 1 and met <= set(GRADERS) else OUTCOME


def outcome_meaning(graders: Iterable[str]) -> str:
    """What the outcomes are, in one sentence."""
    met = frozenset(graders)
    if not met:
        return "No trajectory has an outcome."
    # Names come from files: what is not registered is named, never imported.
    known = [GRADERS[name].meaning for name in GRADERS if name in met]
    own = [f"the score, in [0,\N{NO-BREAK SPACE}1], of the grader {name}" for name in sorted(met - {*GRADERS, STATED})]
    meanings = [*known, *own, *([_STATED_MEANING] if STATED in met else [])]
    title = outcome_title(met)
    return f"{'The outcome' if title == OUTCOME else title} is {', of other trajectories '.join(meanings)}."
