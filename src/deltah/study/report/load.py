"""Report data from disk: run directories (see `deltah.traces.rundir`) and plain trace files.

Evaluations of a run whose name starts with `start-` (`eval/start-sampled.jsonl.zst`) are those of the policy before
training; any other name belongs to the trained arm.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import msgspec

from deltah.core.metrics import SECONDS
from deltah.core.signals import SignalConfig
from deltah.errors import DataError
from deltah.study.report.data import START, ArmData, Evaluations, ReportData
from deltah.study.report.evaluation import Costs, Evaluation
from deltah.study.summary import score_measured
from deltah.traces import read_traces
from deltah.traces.rundir import RunDirectory

START_PREFIX: Final = "start-"
LOGS: Final = "logs"
"""Evaluation name of a plain trace file."""
MAX_PROBLEMS_SHOWN: Final = 20
STUDY_FILE: Final = "study.json"
"""What a study wrote beside the traces, or into the run directory."""
_SUFFIX: Final = re.compile(r"\.jsonl(\.gz|\.zst)?$")
_SECONDS_KEYS: Final = (SECONDS, "train_runtime")
"""Ours counts all sittings of a run, the trainer's only the last one."""


@dataclass(frozen=True, slots=True)
class _File:
    evaluation: Evaluation
    problems: tuple[str, ...]
    n_problems: int


def load_run(path: str | Path, *, name: str | None = None, seed: int = 0, costs: Costs | None = None) -> ArmData:
    """Read one run directory.

    Args:
        path: The directory.
        name: Of the arm; the reward of its configuration, else the directory's name, when not given.
        seed: Of the draw of trajectories to view.
        costs: For savings in money and seconds.

    Raises:
        DataError: if it is not a run directory.
    """
    run = RunDirectory(Path(path))
    config = run.config
    signal = run_signal(config)
    files = {_stem(file): _read(file, seed, costs, signal) for file in sorted((run.path / "eval").glob("*.jsonl*"))}
    metrics = tuple(run.read_metrics())
    return ArmData(
        name=name or _arm_name(config) or run.path.name,
        evaluations={key: file.evaluation for key, file in files.items()},
        metrics=metrics,
        config=config,
        seconds=_seconds(metrics),
        problems=tuple(p for file in files.values() for p in file.problems)[:MAX_PROBLEMS_SHOWN],
        n_problems=sum(file.n_problems for file in files.values()),
        study=_study(run.path),
    )


def load_traces(path: str | Path, *, name: str | None = None, seed: int = 0, costs: Costs | None = None) -> ArmData:
    """Read one trace file in any format `read_traces` knows, once; there are no learning curves then.

    Raises:
        DataError: if the file cannot be read, or holds no trajectory.
    """
    file = _read(Path(path), seed, costs)
    if not len(file.evaluation):
        first = f"; the first problem: {file.problems[0]}" if file.problems else ""
        raise DataError(f"{path} holds no trajectory that can be read{first}")
    return ArmData(
        name=name or _stem(Path(path)),
        evaluations={LOGS: file.evaluation},
        problems=file.problems,
        n_problems=file.n_problems,
        study=_study(Path(path).parent),
    )


def load_report(
    paths: Iterable[str | Path],
    *,
    title: str | None = None,
    facts: Mapping[str, str] | None = None,
    seed: int = 0,
    costs: Costs | None = None,
) -> ReportData:
    """Read run directories and trace files into one report, side by side.

    A folder that is no run stands for the runs and trace files in it; an evaluation in it named `start` is shown as the
    policy before training.

    Raises:
        DataError: if a path is neither, or nothing was given.
    """
    given = [Path(path) for path in paths]
    listed = [found for path in given for found in _expand(path)]
    if not listed:
        raise DataError("nothing to report on; give run directories or trace files")
    arms = [(load_run if path.is_dir() else load_traces)(path, seed=seed, costs=costs) for path in listed]
    start: Evaluations = next((found for arm in arms if (found := _start_of(arm))), {})
    if len(arms) > 1 and not start and listed[0].name == START and listed[0].is_dir():
        start, arms, listed = arms[0].evaluations, arms[1:], listed[1:]
    found_facts = _facts([path for path in listed if path.is_dir()])
    names = ", ".join(arm.name for arm in arms)
    return ReportData(
        title=title or (given[0].resolve().name if len(given) == 1 else f"Comparison of {names}"),
        arms=tuple(_renamed(arms, listed)),
        start=start,
        facts={**found_facts, **(facts or {})},
        seed=seed,
    )


def _expand(path: Path) -> list[Path]:
    """The path itself, or the runs and trace files of a folder that is no run; an evaluation `start` comes first."""
    if not path.is_dir() or (path / "run.json").exists():
        return [path]
    runs = [child for child in sorted(path.iterdir()) if (child / "run.json").exists()]
    files = [child for child in sorted(path.iterdir()) if child.is_file() and _SUFFIX.search(child.name)]
    if not runs and not files:
        raise DataError(f"{path} is neither a run directory nor holds one, and has no .jsonl traces (.gz, .zst) in it")
    return sorted(runs, key=lambda run: run.name != START) + files


def run_signal(config: Mapping[str, Any]) -> SignalConfig:
    """How a run scored its calls; the method's defaults where its configuration does not say.

    Raises:
        DataError: if the configuration names a signal or an option that does not exist.
    """
    try:
        return msgspec.convert(config.get("signal") or {}, SignalConfig)
    except msgspec.ValidationError as error:
        raise DataError(f"the run's signal configuration cannot be read: {error}") from error


def _read(path: Path, seed: int, costs: Costs | None, signal: SignalConfig | None = None) -> _File:
    """Stream a file through once."""
    reader = read_traces(path)
    scored = ((trajectory, score_measured(trajectory, signal)) for trajectory in reader)
    evaluation = Evaluation.of(scored, seed=seed, costs=costs)
    return _File(evaluation, tuple(str(p) for p in reader.problems[:MAX_PROBLEMS_SHOWN]), reader.n_problems)


def _study(folder: Path) -> Mapping[str, Any] | None:
    """Content of `study.json`, where a study was run.

    Raises:
        DataError: if the file is there but holds no JSON object.
    """
    path = folder / STUDY_FILE
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as JSON ({error}); run the study again, or remove the file") from error
    if not isinstance(found, dict):
        raise DataError(f"{path} holds a {type(found).__name__}; expected the JSON object that a study writes")
    return found


def _stem(path: Path) -> str:
    return _SUFFIX.sub("", path.name)


def _arm_name(config: Mapping[str, Any]) -> str | None:
    """The reward a run was trained with, written as a name or as a table with one."""
    for key in ("arm", "name", "reward"):
        value = config.get(key)
        found = value.get("name") if isinstance(value, Mapping) else value
        if isinstance(found, str) and found:
            return found
    return None


def _seconds(metrics: Iterable[Mapping[str, Any]]) -> float | None:
    """Wall time of the training: the last row that states it."""
    rows = list(metrics)
    for key in _SECONDS_KEYS:
        found = [float(row[key]) for row in rows if isinstance(row.get(key), int | float)]
        if found and math.isfinite(found[-1]):
            return found[-1]
    return None


def _start_of(arm: ArmData) -> Evaluations:
    return {
        name.removeprefix(START_PREFIX): evaluation
        for name, evaluation in arm.evaluations.items()
        if name.startswith(START_PREFIX)
    }


def _renamed(arms: list[ArmData], paths: list[Path]) -> Iterable[ArmData]:
    """Arms without the start's evaluations; a repeated name gets the path's, then a number."""
    taken: set[str] = set()
    for arm, path in zip(arms, paths, strict=True):
        name = arm.name
        if name in taken:
            name = f"{arm.name} ({_stem(path)})"
        base, count = name, 1
        while name in taken:
            count += 1
            name = f"{base} {count}"
        taken.add(name)
        own = {key: value for key, value in arm.evaluations.items() if not key.startswith(START_PREFIX)}
        yield replace(arm, name=name, evaluations=own)


def _facts(runs: Iterable[Path]) -> dict[str, str]:
    """Footer facts of the runs' manifests; where runs differ, each value once."""
    found: dict[str, list[str]] = {}
    for manifest in (RunDirectory(path).manifest for path in runs):
        versions, machine = manifest.get("versions"), manifest.get("machine")
        if isinstance(versions, Mapping):
            found.setdefault("versions", []).append(", ".join(f"{key} {value}" for key, value in versions.items()))
        if isinstance(machine, Mapping):
            stated = [f"{key} {machine[key]}" for key in ("platform", "cpus") if machine.get(key)]
            found.setdefault("machine", []).append(", ".join(stated))
        if (seed := manifest["config"].get("seed")) is not None:
            found.setdefault("training seed", []).append(str(seed))
    return {key: "; ".join(dict.fromkeys(values)) for key, values in found.items()}
