"""What a report is made of, and how it is read from disk: run directories, traces and logs.

Trajectories are read once: kept are their table of calls and what the viewer may show (`deltah.report.viewer`).
Evaluations of a run whose name starts with `start-` (`eval/start-sampled.jsonl.zst`) are those of the policy before
training.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any, Final, TypeAlias

from deltah.calls.notes import notes_on
from deltah.calls.savings import Costs
from deltah.calls.table import CallTable, LogOptions, Scored, ScoredLog
from deltah.calls.tool_kinds import ToolKinds
from deltah.calls.waste import facts_of_calls
from deltah.core.metrics import SECONDS
from deltah.errors import DataError, InvalidValueError
from deltah.report.viewer import Candidate, Collector, Pick, Reason, unused
from deltah.runs import RunDirectory
from deltah.stats.study import StudyResult
from deltah.text_format import count, share
from deltah.traces.files import STDIN

START: Final = "start"
"""Name under which the policy before training is shown."""
START_PREFIX: Final = "start-"
TRAINING: Final = "training"
"""Evaluation name of the trajectories that a run trained on, shown where it was not evaluated."""
LOGS: Final = "logs"
"""Evaluation name of a plain trace file."""
MAX_PROBLEMS_SHOWN: Final = 20
STUDY_FILE: Final = "study.json"
"""What a study wrote beside the traces, or into the run directory."""
_NEEDS_TOOLS: Final = "try_cast(metadata->>'needs_tools' AS BOOLEAN)"
SUBSETS: Final = {"all": "true", "tools needed": _NEEDS_TOOLS, "no tool needed": f"NOT {_NEEDS_TOOLS}"}
"""Label of a set of trajectories to its condition on the table `trajectories`, in SQL."""
MAX_VIEWED: Final = 200
NOTABLE_SHARE: Final = 0.25
"""Of the viewer, for wasteful trajectories and failure cases."""
_SHARES: Final = ((Reason.WASTEFUL, 0.5), (Reason.CERTAIN_AND_WRONG, 0.25), (Reason.RISE_AND_RIGHT, 0.25))
_SUFFIX: Final = re.compile(r"(\.[a-z]{2,8})?(\.gz|\.zst)?$")
_SECONDS_KEYS: Final = (SECONDS, "train_runtime")
"""Ours counts all sittings of a run, the trainer's only the last one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Trajectories of one arm, decoded in one way: their table of calls, and those that the viewer may show."""

    table: CallTable
    candidates: Mapping[Reason, tuple[Candidate, ...]]
    """Best first within each reason."""
    costs: Costs = field(default_factory=Costs)
    """For savings in money and seconds."""

    def __len__(self) -> int:
        """Number of trajectories."""
        return self.table.n_trajectories

    @classmethod
    def of(
        cls,
        scored: Iterable[Scored] | ScoredLog,
        *,
        seed: int = 0,
        costs: Costs | None = None,
        tools: ToolKinds | None = None,
    ) -> Evaluation:
        """Read trajectories with their signals once, holding one at a time; `seed` draws those to view.

        What is known of `tools` is that of a `ScoredLog`, where it is one.
        """
        tools = scored.tools if isinstance(scored, ScoredLog) else tools or ToolKinds()
        table, collector = CallTable(tools=tools), Collector(seed)
        read = scored if isinstance(scored, ScoredLog) else ((*pair, False) for pair in scored)
        for trajectory, signal, matched in read:
            facts = facts_of_calls(trajectory, tools.limits_s)
            table.add(trajectory, signal, facts, matched=matched)
            collector.offer(trajectory, signal, facts)
        costs = (costs or Costs()).with_fees(tools.fees)
        return cls(table=table, candidates=collector.candidates(table), costs=costs)

    def rows(self, query: str) -> list[Any]:
        """Rows of an SQL query on `calls` and `trajectories`."""
        return self.table.sql(query).fetchall()

    def met(self, *columns: str) -> list[Any]:
        """Distinct values, in order, of a column of the trajectories that have it; tuples for several columns."""
        listed, measured = ", ".join(columns), " AND ".join(f"{column} IS NOT NULL" for column in columns)
        rows = self.rows(f"SELECT DISTINCT {listed} FROM trajectories WHERE {measured} ORDER BY ALL")
        return [row[0] for row in rows] if len(columns) == 1 else rows


Evaluations: TypeAlias = Mapping[str, Evaluation]
"""Evaluation name ("sampled", "greedy", "logs") to what is kept of its trajectories."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmData:
    """One training run, or one set of logs."""

    name: str
    evaluations: Evaluations = field(default_factory=dict)
    metrics: Sequence[Mapping[str, Any]] = ()
    """Rows of metrics.jsonl; empty where nothing was trained."""
    config: Mapping[str, Any] = field(default_factory=dict)
    seconds: float | None = None
    """Wall time of the training."""
    problems: Sequence[str] = ()
    """The first records that could not be read, each with file, line and reason."""
    n_problems: int = 0
    """Number of all of them."""
    notes: Sequence[str] = ()
    """What a reader must know of these numbers, one sentence each."""
    study: StudyResult | None = None
    """What a study of these trajectories found."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportData:
    """Everything a page shows: one arm or more, each with a name of its own."""

    title: str
    arms: tuple[ArmData, ...]
    start: Evaluations = field(default_factory=dict)
    """Evaluations of the policy all arms started from."""
    notes: Sequence[str] = ()
    """What a reader must know of the whole page."""
    facts: Mapping[str, str] = field(default_factory=dict)
    """Of the footer: machine, versions, date. The report adds no clock of its own."""
    seed: int = 0
    """Of the bootstrap and of the choice of trajectories to view."""

    def __post_init__(self) -> None:
        if not self.arms:
            raise InvalidValueError("a report needs at least one arm or trace file; got none")
        name, n = Counter(arm.name for arm in self.columns).most_common(1)[0]
        if n > 1:
            raise InvalidValueError(f"two arms are named {name!r}; give each its own name")

    @property
    def columns(self) -> tuple[ArmData, ...]:
        """The arms, with the start before them when it was evaluated."""
        return (ArmData(name=START, evaluations=self.start), *self.arms) if self.start else self.arms

    @property
    def every_evaluation(self) -> list[Evaluation]:
        """Evaluations of every column."""
        return [evaluation for arm in self.columns for evaluation in arm.evaluations.values()]

    @property
    def trained(self) -> bool:
        """Whether the arms are those of an experiment: training runs, or beside their start."""
        return bool(self.start) or any(arm.metrics for arm in self.arms)

    @property
    def noun(self) -> str:
        """Word for one of the columns: an arm of an experiment, a log, or a run."""
        if self.trained:
            return "arm"
        return "log" if len(self.arms) == 1 and not self.arms[0].config else "run"

    @property
    def graders(self) -> frozenset[str]:
        """Who gave the outcomes; empty where there is none."""
        return frozenset(grader for evaluation in self.every_evaluation for grader in evaluation.met("grader"))

    @property
    def evaluation_names(self) -> tuple[str, ...]:
        """Names of all evaluations in order of first appearance, "sampled" first."""
        names = list(dict.fromkeys(name for arm in self.columns for name in arm.evaluations))
        return tuple(sorted(names, key=lambda name: name != "sampled"))


def load_arm(
    path: str | Path,
    *,
    name: str | None = None,
    options: LogOptions | None = None,
    seed: int = 0,
    costs: Costs | None = None,
) -> ArmData:
    """Read a run directory, or traces or logs of any format; a log without a trajectory is a DataError.

    The name is by default that of the run's reward, else that of the file or folder.
    """
    path = Path(path)
    run = RunDirectory(path) if is_run(path) else None
    logs = {key: ScoredLog(files, options) for key, files in _files(path, run).items()}
    evaluations = {key: Evaluation.of(log, seed=seed, costs=costs) for key, log in logs.items()}
    problems = [str(problem) for log in logs.values() for problem in log.reader.problems][:MAX_PROBLEMS_SHOWN]
    if run is None and not len(evaluations[LOGS]):
        first = f"; the first problem: {problems[0]}" if problems else ""
        raise DataError(f"{path} holds no trajectory that can be read{first}")
    config, metrics = (run.config, tuple(run.read_metrics())) if run else ({}, ())
    return ArmData(
        name=name or _arm_name(config) or ("stdin" if str(path) == STDIN else _stem(path.resolve().name)),
        evaluations=evaluations,
        metrics=metrics,
        config=config,
        seconds=_seconds(metrics),
        problems=problems,
        n_problems=sum(log.reader.n_problems for log in logs.values()),
        notes=() if run else notes_on(evaluations[LOGS].table, logs[LOGS]),
        study=_study(path if path.is_dir() else path.parent),
    )


def load_report(
    paths: Iterable[str | Path],
    *,
    options: LogOptions | None = None,
    title: str | None = None,
    seed: int = 0,
    costs: Costs | None = None,
) -> ReportData:
    """Read run directories, traces and logs into one report, side by side.

    A folder that holds runs stands for them, and a run in it named `start` is shown as the policy before training; any
    other folder is one set of logs.
    """
    given = [Path(path) for path in paths]
    listed = [each for path in given for each in _expand(path)]
    if not listed:
        raise DataError("nothing to report on; give run directories or trace files")
    arms = [load_arm(path, options=options, seed=seed, costs=costs) for path in listed]
    starts = ({key: e for key, e in arm.evaluations.items() if key.startswith(START_PREFIX)} for arm in arms)
    found = next(filter(None, starts), {})
    start: Evaluations = {key.removeprefix(START_PREFIX): evaluation for key, evaluation in found.items()}
    if len(arms) > 1 and not start and listed[0].name == START and is_run(listed[0]):
        start, arms, listed = arms[0].evaluations, arms[1:], listed[1:]
    named = tuple(_renamed(arms, listed))
    names = (" and " if len(named) == 2 else ", ").join(arm.name for arm in named)
    return ReportData(
        title=title or (given[0].resolve().name if len(given) == 1 else f"Comparison of {names}"),
        arms=named,
        start=start,
        facts=_facts(filter(is_run, listed)),
        seed=seed,
    )


def is_run(path: Path) -> bool:
    """Whether a folder is one run; a demo's folder holds several."""
    return (path / "run.json").exists() and RunDirectory(path).manifest.get("command") != "demo"


def _expand(path: Path) -> list[Path]:
    """The path itself, or the runs in a folder that holds some; a run named `start` comes first."""
    runs = [child for child in sorted(path.iterdir()) if is_run(child)] if path.is_dir() and not is_run(path) else []
    return sorted(runs, key=lambda run: run.name != START) or [path]


def _files(path: Path, run: RunDirectory | None) -> dict[str, list[str]]:
    """Files of each evaluation of a run, else of its training; all of a log."""
    if run is None:
        return {LOGS: [str(path)]}
    found = {_stem(file.name): [str(file)] for file in sorted((path / "eval").glob("*.jsonl*"))}
    training = sorted(map(str, (path / "traces").glob("*.jsonl*")))
    return found or ({TRAINING: training} if training else {})


def _study(folder: Path) -> StudyResult | None:
    """The study in a folder's `study.json`, where one was run; a DataError if the file is no study."""
    path = folder / STUDY_FILE
    if not path.exists():
        return None
    try:
        return StudyResult.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as a study ({error}); run it again, or remove the file") from error


def _stem(name: str) -> str:
    return _SUFFIX.sub("", name) or name


def _arm_name(config: Mapping[str, Any]) -> str | None:
    """The reward a run was trained with, written as a name or as a table with one."""
    reward = config.get("reward")
    found = reward.get("name") if isinstance(reward, Mapping) else reward
    return found if isinstance(found, str) and found else None


def _seconds(metrics: Sequence[Mapping[str, Any]]) -> float | None:
    """Wall time of the training, from the last row that states it."""
    for key in _SECONDS_KEYS:
        found = [float(row[key]) for row in metrics if isinstance(row.get(key), int | float)]
        if found and math.isfinite(found[-1]):
            return found[-1]
    return None


def _renamed(arms: list[ArmData], paths: list[Path]) -> Iterable[ArmData]:
    """Arms without the start's evaluations; a repeated name gets the path's or its folder's, then a number."""
    taken: set[str] = set()
    for arm, path in zip(arms, paths, strict=True):
        name = arm.name
        if name in taken:
            own_name = _stem(path.name)
            name = f"{arm.name} ({path.resolve().parent.name if own_name == arm.name else own_name})"
        name = unused(name, taken, " {}")
        taken.add(name)
        own = {key: value for key, value in arm.evaluations.items() if not key.startswith(START_PREFIX)}
        yield replace(arm, name=name, evaluations=own)


def _facts(runs: Iterable[Path]) -> dict[str, str]:
    """Footer facts of the runs' manifests; where runs differ, each value once."""
    found: dict[str, dict[str, None]] = {"versions": {}, "machine": {}, "training seed": {}}
    for manifest in (RunDirectory(path).manifest for path in runs):
        versions, machine = manifest.get("versions") or {}, manifest.get("machine") or {}
        found["versions"][", ".join(f"{name} {version}" for name, version in versions.items())] = None
        found["machine"][", ".join(f"{key} {machine[key]}" for key in ("platform", "cpus") if machine.get(key))] = None
        found["training seed"][str(manifest["config"].get("seed", ""))] = None
    return {key: text for key, texts in found.items() if (text := "; ".join(filter(None, texts)))}


_Source = Mapping[Reason, Sequence[Pick]]
"""Trajectories of one evaluation of one arm, best first."""


def choose(data: ReportData, limit: int = MAX_VIEWED) -> tuple[list[Pick], str]:
    """Trajectories to show, those to drop last first, and one sentence saying how they were chosen.

    Three quarters are drawn by chance, and with several arms first those questions that all arms answered, so that one
    question can be read in each; the rest are the most wasteful trajectories and the method's failure cases.
    """
    total = sum(map(len, data.every_evaluation))
    sources: list[_Source] = [
        {reason: [Pick(i, name, c, reason) for c in found] for reason, found in evaluation.candidates.items()}
        for i, arm in enumerate(data.columns)
        for name, evaluation in arm.evaluations.items()
    ]
    if total <= limit:
        note = "The only trajectory." if total == 1 else f"All {count(total, 'trajectory')}."
        return [pick for source in sources for pick in source[Reason.DRAWN]], note
    room = int(limit * NOTABLE_SHARE)
    each = ((source[reason], int(room * part / len(sources))) for source in sources for reason, part in _SHARES)
    notable = _distinct((pick for picks, n in each for pick in picks[:n]), room)
    paired = _paired(data, sources, limit - len(notable))
    turns = zip_longest(*(source[Reason.DRAWN] for source in sources))
    rest = (pick for turn in turns for pick in turn if pick is not None)
    chosen = _distinct([*notable, *paired, *rest], limit)
    return chosen, _note(chosen, len({p.candidate.cluster for p in paired}), total, data)


def _paired(data: ReportData, sources: Sequence[_Source], room: int) -> list[Pick]:
    """First trajectories of drawn questions that every arm and evaluation has; empty when the arms share none."""
    if len(data.columns) < 2 or not all(arm.evaluations for arm in data.columns):
        return []
    first = [{p.candidate.cluster: p for p in s[Reason.DRAWN] if p.candidate.repeat == 0} for s in sources]
    shared = [key for key in first[0] if all(key in found for found in first)]
    return [found[key] for key in shared[: room // len(sources)] for found in first]


def _distinct(picks: Iterable[Pick], limit: int) -> list[Pick]:
    """Each trajectory once, under the first reason it came with."""
    found: dict[tuple[int, str, int], Pick] = {}
    for pick in picks:
        found.setdefault((pick.arm, pick.evaluation, pick.candidate.order), pick)
    return list(found.values())[:limit]


def _note(picks: Sequence[Pick], shared: int, total: int, data: ReportData) -> str:
    """One sentence on how the trajectories were chosen."""
    counts = Counter(pick.reason for pick in picks)
    failures = counts[Reason.CERTAIN_AND_WRONG] + counts[Reason.RISE_AND_RIGHT]
    parts = [f"{counts[Reason.DRAWN]} drawn with seed {data.seed}"]
    if shared:
        parts[0] += f", among them {count(shared, 'question')} that every {data.noun} answered"
    if wasteful := counts[Reason.WASTEFUL]:
        parts.append("the most wasteful one" if wasteful == 1 else f"the {wasteful:,} most wasteful")
    if failures:
        parts.append(f"{count(failures, 'failure case')} (more certain and wrong, less certain and right)")
    return f"{share(len(picks), total, 'trajectory')}: {'; '.join(parts)}. Statistics cover all {total:,}."
