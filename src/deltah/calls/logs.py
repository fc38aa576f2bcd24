"""Logs as the commands of the diagnosis see them: trajectories graded and scored one by one, in constant memory.

One home for what `score`, `study` and `report` have in common: which files, which format, which vocabulary, whose
grades, which signal.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Final, TypeAlias

from deltah.calls.grading import Answers, graded
from deltah.calls.table import CallTable, RowFiles, RowWriter, score_measured
from deltah.calls.waste import waste_of_calls
from deltah.core.signals import SIGNALS, Signal, SignalConfig
from deltah.core.types import Trajectory
from deltah.errors import ConfigError, InvalidValueError
from deltah.runs.directory import signal_of
from deltah.traces import TraceReader, read_traces
from deltah.traces.files import STDIN
from deltah.traces.parquet import OPTIONAL
from deltah.traces.reader import Paths

_FILE_KEYS: Final = 2**32
"""Distance between the first keys of two files of a log."""


Scored: TypeAlias = tuple[Trajectory, Signal | None]
"""A trajectory with its signal; None for one without entropies."""


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
    signal: str | None = None
    """One of `log_signals()`, an import path, or the run's own; None: that of the run that the traces lie in, or the
    method's."""
    margin: float | None = None
    """Dead band; None: likewise."""
    watch: Callable[[int], object] | None = None
    """Called with the number of trajectories read so far."""

    def signal_config(self, base: SignalConfig) -> SignalConfig:
        """A run's configuration with what is stated here in its place.

        Raises:
            InvalidValueError: if the signal is none of `log_signals()` and not the run's own, or the margin is below 0.
        """
        if self.signal is None and self.margin is None:
            return base
        name = base.name if self.signal in (None, base.name) else _signal_name(str(self.signal))
        # Another signal has a margin of its own.
        kept = base.margin if name == base.name else None
        return replace(base, name=name, margin=kept if self.margin is None else self.margin)


class ScoredLog(Iterable[Scored]):
    """Trajectories of logs with their signals, None for one without entropies; iterable again unless from stdin."""

    def __init__(self, paths: Paths, options: LogOptions | None = None, *, skip: Sequence[str] = ()) -> None:
        """Open the files.

        Args:
            paths: See `deltah.read_traces`.
            options: How they are read and scored.
            skip: Fields that the caller does not need, see `deltah.read_traces`.

        Raises:
            DataError: if a file does not exist, may not be read, or the answers' file is wrong.
            ConfigError: if no signal is stated and the traces lie in runs that scored their calls differently.
            InvalidValueError: if the format is unknown or the vocabulary size not positive.
        """
        options = options or LogOptions()
        self.answers_path = options.answers
        self.answers = None if options.answers is None else Answers(options.answers)
        self.watch = options.watch
        self.reader: TraceReader = read_traces(
            paths,
            format=options.format,
            strict=options.strict,
            vocab_size=options.vocab_size,
            join=options.join,
            skip=tuple(skip),
        )
        # What an earlier report or study left in a folder of logs is none of them.
        self.reader.sources = [s for s in self.reader.sources if s.named or not is_result(s.path)]
        self.signal = _signal_of_sources(self.reader, options)

    def __iter__(self) -> Iterator[Scored]:
        """Grade and score the trajectories that can be read, as they are asked for."""
        return ((trajectory, signal) for trajectory, signal, _ in self.read())

    def read(self) -> Iterator[tuple[Trajectory, Signal | None, bool]]:
        """The same, each with whether the file of answers has a row of it."""
        for read in self.reader:
            trajectory, matched = graded_by(self.answers, read)
            self.tell()
            yield trajectory, score_measured(trajectory, self.signal), matched

    def tell(self) -> None:
        """Say to whoever watches how many trajectories were read."""
        if self.watch is not None:
            self.watch(self.reader.n_read)


def graded_by(answers: Answers | None, trajectory: Trajectory) -> tuple[Trajectory, bool]:
    """A trajectory graded by the answers' file, if there is one, or by its own; and whether the file has a row of it.

    Raises:
        MissingDependencyError: if a math task needs math-verify and it is not installed.
    """
    return (graded(trajectory), False) if answers is None else answers.apply(trajectory)


def log_signals() -> tuple[str, ...]:
    """Names of the signals that a log can be scored by as it is read: those that need no fit."""
    return tuple(name for name, entry in SIGNALS.items() if "fit" not in entry.options)


def _signal_name(name: str) -> str:
    if name in log_signals() or (":" in name and "fit" not in SIGNALS.resolve(name).options):
        return name
    if name in SIGNALS or ":" in name:
        wrong = (
            f"the signal {name!r} needs an expectation fitted on other questions, as `deltah study` computes it; here"
        )
    else:
        wrong = f"unknown signal {name!r};"
    raise InvalidValueError(
        f"{wrong} choose one of: {', '.join(log_signals())}; or name one of your own as package.module:function"
    )


def _signal_of_sources(reader: TraceReader, options: LogOptions) -> SignalConfig:
    """Configuration under which the runs that the files lie in scored their calls."""
    folders = {str(Path(source.path).parent) for source in reader.sources if source.path != STDIN}
    found = {options.signal_config(signal_of(folder)) for folder in folders}
    if len(found) > 1:
        raise ConfigError(
            "these traces come from runs with different signals; say which to use with --signal or --margin"
        )
    return found.pop() if found else options.signal_config(SignalConfig())


def read_calls(  # noqa: PLR0913 - the options of `deltah score`
    paths: Paths,
    *,
    signal: str | None = None,
    margin: float | None = None,
    answers: str | None = None,
    format: str | None = None,
    vocab_size: int | None = None,
    join: bool = True,
    strict: bool = False,
    waste: bool = True,
    workers: int | None = 1,
) -> CallTable:
    """Read traces or logs, score every call, and give the table of calls.

    Args:
        paths: Files, folders or glob patterns, see `deltah.read_traces`.
        signal: Name of a signal that needs no fit; None: that of the run that the traces lie in, else ΔH.
        margin: Dead band in the signal's unit; None: likewise.
        answers: Second file with grades or gold answers.
        format: Name of a trace format; None: told from the content.
        vocab_size: Vocabulary size of logs that do not state it.
        join: Whether API calls of one conversation become one trajectory.
        strict: Stop at the first record that cannot be read, instead of counting it in `log.reader.problems`.
        waste: Whether to look for waste in the text; without, scoring is faster.
        workers: Processes; None: one per core. More than one need a guarded main module (`multiprocessing`, "spawn").

    Returns:
        A `CallTable`: `.df()`, `.pl()`, `.arrow()`, `.sql("SELECT ... FROM calls")`.

    Raises:
        DataError: if a file cannot be read.
        ConfigError: if no signal is stated and the traces lie in runs that scored their calls differently.
        InvalidValueError: if an option is wrong.
    """
    options = LogOptions(
        format=format,
        vocab_size=vocab_size,
        join=join,
        strict=strict,
        answers=answers,
        signal=signal,
        margin=margin,
    )
    return table_of(ScoredLog(paths, options, skip=unneeded(waste)), waste=waste, workers=workers)


def unneeded(waste: bool) -> tuple[str, ...]:
    """Fields of trajectories that the table does not need, for `deltah.read_traces`."""
    return ("logprobs", "token_ids") if waste else OPTIONAL


def table_of(log: ScoredLog, *, waste: bool = True, workers: int | None = 1) -> CallTable:
    """Table of a log, which is read once.

    Args:
        log: What it met is then told by its reader.
        waste: Whether to look for waste in the text.
        workers: See `deltah.traces.TraceReader.map`.

    Raises:
        DataError: at the first problem, if the log is read strictly.
        InvalidValueError: if `workers` is below 1.
    """
    table = CallTable()
    table.log, table.has_waste = log, waste
    job = _Job(signal=log.signal, answers=log.answers_path, waste=waste, folder=table.folder)

    for files in log.reader.map(partial(_score_file, job), workers=workers, watch=log.watch):
        table.load(files)
    return table


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """What a process needs to know to score a file."""

    signal: SignalConfig
    answers: str | None
    waste: bool
    folder: str


def _score_file(job: _Job, number: int, trajectories: Iterable[Trajectory]) -> RowFiles:
    answers = None if job.answers is None else _answers(job.answers)
    writer = RowWriter(job.folder, number * _FILE_KEYS)
    for read in trajectories:
        trajectory, matched = graded_by(answers, read)
        waste = waste_of_calls(trajectory) if job.waste else None
        writer.add(trajectory, score_measured(trajectory, job.signal), waste, matched=matched)
    return writer.close()


@lru_cache(maxsize=1)
def _answers(path: str) -> Answers:
    """The answers' file, read once in each process."""
    return Answers(path)


_RESULT: Final = re.compile(rb'\{\s*"schema_version": ?\d+,\s*"(?:title|level)":')
"""How the JSON of a report or a study begins, as no record of traces does."""


def is_result(path: str | os.PathLike[str]) -> bool:
    """Whether a file is the JSON of a report or a study; False for one that cannot be read."""
    try:
        with open(path, "rb") as file:
            return _RESULT.match(file.read(64)) is not None
    except OSError:
        return False
