"""What a report is made of: arms with their training metrics and evaluations, and the facts of the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from deltah.calls.outcomes import Grader
from deltah.errors import InvalidValueError
from deltah.report.evaluation import Evaluation
from deltah.stats.study import StudyResult

Evaluations: TypeAlias = Mapping[str, Evaluation]
"""Evaluation name ("sampled", "greedy", "logs") to what is kept of its trajectories."""
START = "start"
"""Name under which the policy before training is shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmData:
    """One training run, or one set of logs."""

    name: str
    evaluations: Evaluations = field(default_factory=dict)
    metrics: Sequence[Mapping[str, Any]] = ()
    """Rows of metrics.jsonl; empty where nothing was trained."""
    config: Mapping[str, Any] = field(default_factory=dict)
    seconds: float | None = None
    """Wall time of the training; None when not measured."""
    problems: Sequence[str] = ()
    """Lines that could not be read, each with file, line and reason."""
    n_problems: int = 0
    """All of them, also those beyond the ones kept."""
    notes: Sequence[str] = ()
    """What a reader must know of these numbers, one sentence each."""
    study: StudyResult | None = None
    """What a study of these trajectories found (`study.json` beside them), shown as a section of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportData:
    """Everything a page shows.

    Raises:
        InvalidValueError: if there is no arm, or two arms share a name.
    """

    title: str
    arms: tuple[ArmData, ...]
    start: Evaluations = field(default_factory=dict)
    """Evaluations of the policy all arms started from."""
    notes: Sequence[str] = ()
    """What a reader must know of the whole page; each arm has its own beside these."""
    facts: Mapping[str, str] = field(default_factory=dict)
    """Footer: machine, versions, seed, date; whatever the caller knows. The report adds no clock of its own."""
    seed: int = 0
    """Of the bootstrap and of the choice of trajectories to view."""

    def __post_init__(self) -> None:
        names = [arm.name for arm in self.columns]
        if not self.arms:
            raise InvalidValueError("a report needs at least one arm or trace file; got none")
        if len(set(names)) != len(names):
            repeated = next(name for name in names if names.count(name) > 1)
            raise InvalidValueError(f"two arms are named {repeated!r}; give each its own name")

    @property
    def columns(self) -> tuple[ArmData, ...]:
        """The arms, with the start before them when it was evaluated."""
        return (ArmData(name=START, evaluations=self.start), *self.arms) if self.start else self.arms

    @property
    def trained(self) -> bool:
        """Whether the arms are those of an experiment: training runs, or what stands beside their start."""
        return bool(self.start) or any(arm.metrics for arm in self.arms)

    @property
    def noun(self) -> str:
        """What a reader calls one of the columns: an arm of an experiment, a log, or one of several runs."""
        if self.trained:
            return "arm"
        return "log" if len(self.arms) == 1 and not self.arms[0].config else "run"

    @property
    def tools(self) -> frozenset[str]:
        """Names of all tools that were called."""
        return frozenset(row.tool for arm in self.columns for e in arm.evaluations.values() for row in e.rows)

    @property
    def graders(self) -> frozenset[Grader]:
        """Who gave the outcomes of all evaluations."""
        return frozenset[Grader]().union(*(e.graders for arm in self.columns for e in arm.evaluations.values()))

    @property
    def evaluation_names(self) -> tuple[str, ...]:
        """Names of all evaluations in order of first appearance, "sampled" before all others."""
        names = list(dict.fromkeys(name for arm in self.columns for name in arm.evaluations))
        return tuple(sorted(names, key=lambda name: name != "sampled"))
