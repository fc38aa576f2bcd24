"""Logs as the commands of the diagnosis see them: trajectories graded and scored one by one, in constant memory.

One home for what `score`, `study` and `report` have in common: which files, which format, which vocabulary, whose
grades, which signal.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from deltah.core.scored import Signal
from deltah.core.signals import SignalConfig
from deltah.core.types import Trajectory
from deltah.errors import ConfigError, DataError
from deltah.study.grading import Answers, graded
from deltah.study.summary import score_measured
from deltah.traces import TraceReader, read_traces
from deltah.traces.reader import Paths
from deltah.traces.rundir import RunDirectory


@dataclass(frozen=True, slots=True, kw_only=True)
class LogOptions:
    """How logs are read and scored."""

    format: str | None = None
    """Name of a trace format; None: told from the content of each record."""
    vocab_size: int | None = None
    """V of logs that do not state it."""
    join: bool = True
    """Whether API calls of one conversation become one trajectory."""
    strict: bool = False
    """Stop at the first record that cannot be read."""
    answers: str | None = None
    """Second file, with grades or gold answers."""
    signal: SignalConfig | None = None
    """None: the configuration of the run that the traces lie in, else the method's defaults."""


class ScoredLog(Iterable[tuple[Trajectory, Signal | None]]):
    """Trajectories of logs with their signals, None for one without entropies; iterable again unless from stdin."""

    def __init__(self, paths: Paths, options: LogOptions | None = None) -> None:
        """Open the files.

        Raises:
            DataError: if a file does not exist, may not be read, or the answers' file is wrong.
            ConfigError: if no signal is stated and the traces lie in runs that scored their calls differently.
            InvalidValueError: if the format is unknown or the vocabulary size not positive.
        """
        options = options or LogOptions()
        listed = [os.fspath(path) for path in ([paths] if isinstance(paths, str | os.PathLike) else paths)]
        self.signal = options.signal or signal_of_runs(listed)
        self.answers = None if options.answers is None else Answers(options.answers)
        self.reader: TraceReader = read_traces(
            listed,
            format=options.format,
            strict=options.strict,
            vocab_size=options.vocab_size,
            join=options.join,
        )

    def __iter__(self) -> Iterator[tuple[Trajectory, Signal | None]]:
        """Grade and score the trajectories that can be read, as they are asked for."""
        for read in self.reader:
            trajectory = graded(read) if self.answers is None else self.answers.apply(read)
            yield trajectory, score_measured(trajectory, self.signal)


def signal_of_runs(paths: Iterable[str]) -> SignalConfig:
    """Configuration under which the runs that the traces lie in scored their calls; the defaults outside of a run.

    Raises:
        ConfigError: if they differ.
    """
    found = {_signal_of_run(path) for path in paths}
    if len(found) > 1:
        raise ConfigError(
            "these traces come from runs with different signals; say which to use with --signal or --margin"
        )
    return found.pop() if found else SignalConfig()


def run_signal(config: Mapping[str, Any]) -> SignalConfig:
    """How a run scored its calls; the method's defaults where its configuration does not say.

    Raises:
        DataError: if the configuration names a signal or an option that does not exist.
    """
    try:
        return msgspec.convert(config.get("signal") or {}, SignalConfig)
    except msgspec.ValidationError as error:
        raise DataError(f"the run's signal configuration cannot be read: {error}") from error


def _signal_of_run(path: str) -> SignalConfig:
    if path == "-":
        return SignalConfig()
    for folder in (Path(path), *Path(path).resolve().parents):
        if (folder / "run.json").exists():
            return run_signal(RunDirectory(folder).config)
    return SignalConfig()
