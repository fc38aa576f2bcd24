"""Report data from disk: run directories (see `deltah.runs.directory`) and plain trace files.

Evaluations of a run whose name starts with `start-` (`eval/start-sampled.jsonl.zst`) are those of the policy before
training; any other name belongs to the trained arm.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from deltah.calls.logs import LogOptions, ScoredLog
from deltah.calls.notes import notes_on
from deltah.calls.savings import Costs
from deltah.core.metrics import SECONDS
from deltah.errors import DataError
from deltah.report.data import START, ArmData, Evaluation, Evaluations, ReportData
from deltah.runs.directory import RunDirectory
from deltah.stats.study import StudyResult
from deltah.traces.files import STDIN

START_PREFIX: Final = "start-"
TRAINING: Final = "training"
"""Evaluation name of the trajectories that a run trained on, shown where it was not evaluated."""
LOGS: Final = "logs"
"""Evaluation name of a plain trace file."""
MAX_PROBLEMS_SHOWN: Final = 20
STUDY_FILE: Final = "study.json"
"""What a study wrote beside the traces, or into the run directory."""
_SUFFIX: Final = re.compile(r"(\.[a-z]{2,8})?(\.gz|\.zst)?$")
_SECONDS_KEYS: Final = (SECONDS, "train_runtime")
"""Ours counts all sittings of a run, the trainer's only the last one."""


def load_arm(
    path: str | Path,
    *,
    name: str | None = None,
    options: LogOptions | None = None,
    seed: int = 0,
    costs: Costs | None = None,
) -> ArmData:
    """Read a run directory, or traces or logs in any format that `read_traces` knows.

    Args:
        path: The run's directory; or a file, a folder of files, a glob pattern, or "-".
        name: Name of the arm (default: the reward of the run's configuration, else the name of the file or folder).
        options: How logs are read; where they state no signal, a run's own is used.
        seed: Seed of the draw of trajectories to view.
        costs: For savings in money and seconds.

    Raises:
        DataError: if nothing can be read, or there is no trajectory in a log.
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
    facts: Mapping[str, str] | None = None,
    seed: int = 0,
    costs: Costs | None = None,
) -> ReportData:
    """Read run directories, traces and logs into one report, side by side.

    A folder that holds runs stands for them, and an evaluation in it named `start` is shown as the policy before
    training; any other folder is one set of logs.

    Args:
        paths: One column of the report each.
        options: How traces and logs are read.
        title: Of the page.
        facts: Of the footer, beside those that the runs state.
        seed: Of the bootstrap and of the draw of trajectories to view.
        costs: For savings in money and seconds.

    Raises:
        DataError: if a path cannot be read, holds no trajectory, or nothing was given.
    """
    given = [Path(path) for path in paths]
    listed = [found for path in given for found in _expand(path)]
    if not listed:
        raise DataError("nothing to report on; give run directories or trace files")
    arms = [load_arm(path, options=options, seed=seed, costs=costs) for path in listed]
    start: Evaluations = next((found for arm in arms if (found := _start_of(arm))), {})
    if len(arms) > 1 and not start and listed[0].name == START and is_run(listed[0]):
        start, arms, listed = arms[0].evaluations, arms[1:], listed[1:]
    found_facts = _facts([path for path in listed if is_run(path)])
    named = tuple(_renamed(arms, listed))
    names = (" and " if len(named) == 2 else ", ").join(arm.name for arm in named)
    return ReportData(
        title=title or (given[0].resolve().name if len(given) == 1 else f"Comparison of {names}"),
        arms=named,
        start=start,
        facts={**found_facts, **(facts or {})},
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
    """Files of each evaluation: those of a run, else its training; all of a log."""
    if run is None:
        return {LOGS: [str(path)]}
    found = {_stem(file.name): [str(file)] for file in sorted((path / "eval").glob("*.jsonl*"))}
    training = sorted(map(str, (path / "traces").glob("*.jsonl*")))
    return found or ({TRAINING: training} if training else {})


def _study(folder: Path) -> StudyResult | None:
    """The study in a folder's `study.json`, where one was run.

    Raises:
        DataError: if the file is there but is not a study.
    """
    path = folder / STUDY_FILE
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError(f"it holds a {type(found).__name__}, expected an object")
        return StudyResult.from_dict(found)
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
    """Wall time of the training: the last row that states it."""
    for key in _SECONDS_KEYS:
        found = [float(row[key]) for row in metrics if isinstance(row.get(key), int | float)]
        if found and math.isfinite(found[-1]):
            return found[-1]
    return None


def _start_of(arm: ArmData) -> Evaluations:
    found = {key: value for key, value in arm.evaluations.items() if key.startswith(START_PREFIX)}
    return {key.removeprefix(START_PREFIX): value for key, value in found.items()}


def _renamed(arms: list[ArmData], paths: list[Path]) -> Iterable[ArmData]:
    """Arms without the start's evaluations; a repeated name gets the path's or its folder's, then a number."""
    taken: set[str] = set()
    for arm, path in zip(arms, paths, strict=True):
        name = arm.name
        if name in taken:
            own_name = _stem(path.name)
            name = f"{arm.name} ({path.resolve().parent.name if own_name == arm.name else own_name})"
        base, count = name, 1
        while name in taken:
            count += 1
            name = f"{base} {count}"
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
