"""Logs as the commands of the diagnosis see them: trajectories graded and scored one by one, in constant memory.

One home for what `score`, `study` and `report` have in common: which files, which format, which vocabulary, whose
grades, which signal.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from deltah.core.scored import Signal
from deltah.core.signals import SIGNALS, SignalConfig, SignalName
from deltah.core.types import Trajectory
from deltah.errors import ConfigError, InvalidValueError
from deltah.study.grading import Answers, graded
from deltah.study.summary import score_measured
from deltah.traces import TraceReader, read_traces
from deltah.traces.openai import TOKENS_WITHOUT_LOGPROBS
from deltah.traces.reader import Paths
from deltah.traces.runsignal import signal_of
from deltah.traces.sources import STDIN


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
    """Name of the signal; None: that of the run that the traces lie in, else the method's."""
    margin: float | None = None
    """Dead band; None: likewise."""

    def signal_config(self, base: SignalConfig) -> SignalConfig:
        """A run's configuration with what is stated here in its place.

        Raises:
            InvalidValueError: if the signal does not exist, or the margin is not 0 or more.
        """
        if self.signal is None and self.margin is None:
            return base
        name = base.name if self.signal is None else _signal_name(self.signal)
        # Another signal has a margin of its own.
        kept = base.margin if name is base.name else None
        return replace(base, name=name, margin=kept if self.margin is None else self.margin)


class TokenCount(NamedTuple):
    """Tokens, and in how many trajectories they stand."""

    tokens: int
    trajectories: int

    def plus(self, found: object) -> TokenCount:
        """Count those of one more trajectory; anything but a positive whole number is none."""
        if not isinstance(found, int) or found <= 0:
            return self
        return TokenCount(self.tokens + found, self.trajectories + 1)


class ScoredLog(Iterable[tuple[Trajectory, Signal | None]]):
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
        self.answers = None if options.answers is None else Answers(options.answers)
        self.reader: TraceReader = read_traces(
            paths,
            format=options.format,
            strict=options.strict,
            vocab_size=options.vocab_size,
            join=options.join,
            skip=skip,
        )
        self.signal = _signal_of_sources(self.reader, options)
        self.unlisted = TokenCount(0, 0)
        """Drawn tokens that the logs give no log-probability of, so far."""

    def __iter__(self) -> Iterator[tuple[Trajectory, Signal | None]]:
        """Grade and score the trajectories that can be read, as they are asked for."""
        self.unlisted = TokenCount(0, 0)
        for read in self.reader:
            self.unlisted = self.unlisted.plus(read.metadata.get(TOKENS_WITHOUT_LOGPROBS))
            trajectory = graded(read) if self.answers is None else self.answers.apply(read)
            yield trajectory, score_measured(trajectory, self.signal)


def _signal_name(name: str) -> SignalName:
    if name not in SIGNALS:
        raise InvalidValueError(f"unknown signal {name!r}; choose one of: {', '.join(SIGNALS)}")
    return SignalName(name)


def _signal_of_sources(reader: TraceReader, options: LogOptions) -> SignalConfig:
    """Configuration under which the runs that the files lie in scored their calls."""
    folders = {str(Path(source.path).parent) for source in reader.sources if source.path != STDIN}
    found = {options.signal_config(signal_of(folder)) for folder in folders}
    if len(found) > 1:
        raise ConfigError(
            "these traces come from runs with different signals; say which to use with --signal or --margin"
        )
    return found.pop() if found else options.signal_config(SignalConfig())
