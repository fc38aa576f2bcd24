"""What is known beside a log: outcomes and who gave them, questions, and the run directory that it lies in.

An outcome is a number in [0, 1]: that of the log, of a second file, or a grade by the trajectory's own gold answers. A
row of the file names a trajectory by id or question and has a grade or gold answers, as a task file has.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final, TypeAlias

from deltah.core.signals import SignalConfig
from deltah.core.types import Trajectory
from deltah.errors import DataError, DeltahError
from deltah.runs import MANIFEST, RunDirectory, run_signal
from deltah.tasks import GRADERS, OUTCOME_GRADER, Task, grade, task_from_row, task_rows
from deltah.traces.importing import GRADES

_ID_FIELDS = ("id", "trajectory", "custom_id", "task_id", "session_id")
_ANSWER_FIELDS = ("golden_answers", "answer", "reward_model")
_BRANCH = re.compile(r"/branch-\d+\Z")
"""A path of a conversation that was not continued, as `deltah.traces.joining` names it."""
_SAMPLE_NUMBER = re.compile(r"[/#][^/#]*\Z")

OUTCOME: Final = "outcome"
"""Title of a mean outcome of several graders, or of none of ours."""
OWN_OUTCOME: Final = "own_outcome"
OWN_GRADER: Final = "own_grader"
"""Metadata keys: the grade that deltah gives by the gold answers where the log states another, and its grader."""
STATED: Final = "stated"
"""Instead of a grader: the log or the answers' file states the outcome."""
MAX_KEY_CHARS: Final = 200
ClusterKey: TypeAlias = tuple[str, str]
"""What names the question ("task_id", "question" or "id"), and its name."""


class Answers:
    """Grades and gold answers of a second file, by id and by question."""

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        """Read the file; without one, gold answers of trajectories alone grade them."""
        self.n_rows = 0
        self._by_id: dict[str, float | Task] = {}
        self._by_question: dict[str, float | Task] = {}
        if path is None:
            return
        for self.n_rows, (number, row) in enumerate(task_rows(os.fspath(path)), start=1):
            self._add(row, f"{os.fspath(path)}:{number}")
        if not self.n_rows:
            raise DataError(f"{path}: the file holds no row; expected one per trajectory, with an id and a score")

    def apply(self, trajectory: Trajectory) -> tuple[Trajectory, bool]:
        """The trajectory with its outcome, if the file or its own gold answers give one; whether the file has a row."""
        found = self._find(trajectory)
        # A grade of a conversation is not one of its retries that were not continued.
        is_retry = _BRANCH.search(trajectory.id) is not None and trajectory.id not in self._by_id
        if found is None or (isinstance(found, float) and is_retry):
            return graded(trajectory), False
        if isinstance(found, float):
            # A grade that is stated takes the place of one that deltah gave.
            metadata = {key: value for key, value in trajectory.metadata.items() if key != OUTCOME_GRADER}
            return replace(trajectory, outcome=found, metadata=metadata), True
        return _graded_by(trajectory, found), True

    def _add(self, row: Mapping[str, Any], where: str) -> None:
        key = next((str(row[name]) for name in _ID_FIELDS if row.get(name) is not None), None)
        question = row.get("question")
        if key is None and not isinstance(question, str):
            raise DataError(f"{where}: no field 'id' or 'question'; one of them names the trajectory")
        value = _value(row, where, key or "question")
        if key is not None:
            if key in self._by_id:
                raise DataError(f"{where}: id {key!r} stands in an earlier row already; expected one row per id")
            self._by_id[key] = value
        if isinstance(question, str):
            self._by_question.setdefault(question.strip(), value)

    def _find(self, trajectory: Trajectory) -> float | Task | None:
        """Row of its id, of its id without the number of a sample (`q7/0`), of its group, its task, or its question."""
        own, task_id = trajectory.id, trajectory.metadata.get("task_id")
        names = [str(n) for n in (own, _SAMPLE_NUMBER.sub("", own), trajectory.group_id, task_id) if n is not None]
        by_question = None if trajectory.question is None else self._by_question.get(trajectory.question.strip())
        return next((self._by_id[name] for name in names if name in self._by_id), by_question)


def graded(trajectory: Trajectory) -> Trajectory:
    """Grade a trajectory by its own gold answers, where it has some; an outcome that the log states stands."""
    if not trajectory.golden_answers or OUTCOME_GRADER in trajectory.metadata or OWN_OUTCOME in trajectory.metadata:
        return trajectory
    kind = str(trajectory.metadata.get("kind"))
    task = Task(
        id=trajectory.id,
        question=trajectory.question or trajectory.id,
        golden_answers=trajectory.golden_answers,
        kind=kind if kind in GRADERS else "qa",
    )
    if trajectory.outcome is None:
        return _graded_by(trajectory, task)
    try:
        own = grade(task, trajectory.prediction or "").score
    except DeltahError:  # such as a grader whose package is not installed: nobody asked for it
        return trajectory
    return replace(trajectory, metadata={**trajectory.metadata, OWN_OUTCOME: own, OWN_GRADER: task.kind})


def _graded_by(trajectory: Trajectory, task: Task) -> Trajectory:
    """A trajectory with outcome and gold answers of a task; without a final answer it has missed it."""
    outcome = grade(task, trajectory.prediction or "").score
    metadata = {**task.metadata, **trajectory.metadata, OUTCOME_GRADER: task.kind}
    return replace(trajectory, outcome=outcome, golden_answers=task.golden_answers, metadata=metadata)


def _value(row: Mapping[str, Any], where: str, name: str) -> float | Task:
    for field in GRADES:
        given = row.get(field)
        if given is None:
            continue
        if not isinstance(given, bool | int | float) or not 0 <= given <= 1:
            raise DataError(f"{where}: field {field!r} is {given!r:.60}; expected a number in [0, 1], true or false")
        return float(given)
    if not any(row.get(field) is not None for field in _ANSWER_FIELDS):
        raise DataError(
            f"{where}: neither a grade ({', '.join(GRADES)}) nor answers ({', '.join(_ANSWER_FIELDS)}); "
            f"got the fields {sorted(row)}"
        )
    asked = row.get("question") or row.get("problem") or row.get("prompt") or name
    return task_from_row({**row, "question": asked} if isinstance(asked, str) else row, where, name)


def is_correct(trajectory: Trajectory) -> bool | None:
    """Whether the outcome is full; None when not graded."""
    return None if trajectory.outcome is None else trajectory.outcome >= 1.0


def cluster_key(trajectory: Trajectory, cluster: str = "task_id") -> ClusterKey:
    """What question a trajectory answers: its task id, else the question's text, else its own id; a digest if long."""
    named = {cluster: trajectory.metadata.get(cluster), "question": trajectory.question, "id": trajectory.id}
    kind, text = next((kind, str(name)) for kind, name in named.items() if name is not None)
    if len(text) > MAX_KEY_CHARS:
        digest = blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
        text = f"{text[:MAX_KEY_CHARS]}… {digest}"
    return kind, text


def grader_of(trajectory: Trajectory) -> str | None:
    """Name of the grader of a trajectory, or `STATED`; None for one without an outcome."""
    return None if trajectory.outcome is None else str(trajectory.metadata.get(OUTCOME_GRADER) or STATED)


def outcome_title(graders: Iterable[str]) -> str:
    """Title of the mean outcome in tables: that of the one grader that gave them all, such as F1 of `qa`."""
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
    stated = ["the score, in [0,\N{NO-BREAK SPACE}1], that the log or the answers' file states"]
    meanings = [*known, *own, *(stated if STATED in met else ())]
    title = outcome_title(met)
    return f"{'The outcome' if title == OUTCOME else title} is {', of other trajectories '.join(meanings)}."


def signal_of(path: str | os.PathLike[str]) -> SignalConfig:
    """Signal configuration of the nearest run directory around a file or folder; the method's defaults outside one.

    `deltah.score(trajectory, deltah.signal_of(path))` gives what the run logged.

    Raises:
        DataError: if that run's configuration cannot be read.
    """
    run = _run_around(path)
    return SignalConfig() if run is None else run_signal(run.config)


def tools_of(path: str | os.PathLike[str]) -> frozenset[str]:
    """Names of the tools of the nearest run directory around a file or folder; none outside one."""
    run = _run_around(path)
    rollout = None if run is None else run.config.get("rollout")
    named = rollout.get("tools") if isinstance(rollout, Mapping) else None
    return frozenset(map(str, named)) if isinstance(named, list | tuple) else frozenset()


def _run_around(path: str | os.PathLike[str]) -> RunDirectory | None:
    around = (Path(path), *Path(path).resolve().parents)
    return next((RunDirectory(folder) for folder in around if (folder / MANIFEST).exists()), None)
