"""Progress of every long command, on standard error: what, how far, numbers that matter, time left.

On a terminal there is a bar for each thing under way. Where standard error is a file or a pipe, a plain line says the
same now and then, so that a log shows that the command is alive and a pipe gets results alone. What was done is said at
the end, but for reading, which most commands begin with.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from deltah.core import metrics

LINE_EVERY_S: Final = 10.0
"""Between two plain lines."""
_BAR_AFTER_S: Final = 1.0
_REDRAWN_AFTER_S: Final = 0.1

Report = Callable[[int, int, dict[str, float]], None]
"""Called with (done, total, latest metrics)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """How far one thing is."""

    description: str
    done: int = 0
    total: int | None = None
    """None: not known yet."""
    numbers: str = ""
    waiting: bool = False
    """Whether it has not begun: then its time does not run."""


class Display(Protocol):
    """Shows the states of several things, by name."""

    def show(self, name: str, state: State, *, afresh: bool = False) -> None:
        """Show a state; `afresh`: what is done from now on has a speed, and a time left, of its own."""


class Bars:
    """Bars on a terminal."""

    def __init__(self, progress: Progress) -> None:
        """Draw into a display that is running."""
        self._progress = progress
        self._bars: dict[str, TaskID] = {}

    def show(self, name: str, state: State, *, afresh: bool = False) -> None:
        """See `Display`."""
        if name not in self._bars:
            self._bars[name] = self._progress.add_task(state.description, total=state.total, numbers="", start=False)
        bar = self._bars[name]
        if afresh:
            self._progress.reset(bar, start=not state.waiting, total=state.total)
        if not state.waiting:
            self._progress.start_task(bar)
        self._progress.update(
            bar, description=state.description, completed=state.done, total=state.total, numbers=state.numbers
        )


class Lines:
    """Plain lines, one for all that has changed, no oftener than every `LINE_EVERY_S`."""

    def __init__(self, write: Callable[[str], object], now: Callable[[], float] = time.monotonic) -> None:
        """Start with nothing to say.

        Args:
            write: Takes a line with its end.
            now: Clock, in seconds.
        """
        self._write, self._now = write, now
        self._due = now() + LINE_EVERY_S
        self._states: dict[str, State] = {}
        self._begun: dict[str, tuple[float, int]] = {}
        """When each one's present phase began, and how much was done then."""
        self._said: dict[str, State] = {}

    def show(self, name: str, state: State, *, afresh: bool = False) -> None:
        """See `Display`."""
        if not state.waiting and (afresh or name not in self._begun):
            self._begun[name] = self._now(), state.done
        self._states[name] = state
        if self._now() >= self._due:
            self.flush()

    def flush(self) -> None:
        """Say what has changed since the last line."""
        changed = {name: state for name, state in self._states.items() if self._said.get(name) != state}
        told = [self._text(name, state) for name, state in changed.items() if not state.waiting]
        if told:
            self._write("; ".join(told) + "\n")
        self._said |= changed
        self._due = self._now() + LINE_EVERY_S

    def _text(self, name: str, state: State) -> str:
        began, done_before = self._begun[name]
        elapsed = self._now() - began
        counted = f" {state.done}" + ("" if state.total is None else f"/{state.total}")
        parts = [" ".join(state.description.split()) + counted, *([state.numbers] if state.numbers else [])]
        parts.append(_clock(elapsed))
        fresh, left = state.done - done_before, (state.total or 0) - state.done
        if fresh > 0 and left > 0:
            parts.append(f"{_clock(elapsed / fresh * left)} left")
        return ", ".join(parts)


@contextmanager
def display(*, hidden: bool = False) -> Iterator[Display]:
    """Show progress while the block runs, as bars or as lines."""
    console = Console(stderr=True)
    if hidden or console.is_terminal:
        with _layout(console, disable=hidden) as progress:
            yield Bars(progress)
        return
    lines = Lines(_to_stderr)
    try:
        yield lines
    finally:
        lines.flush()


@contextmanager
def reporting(description: str) -> Iterator[Report]:
    """Show progress of one thing while the block runs; yields the function that moves it."""
    with reporting_phases(description) as (report,):
        yield report


@contextmanager
def reporting_phases(first: str, *later: str, hidden: bool = False) -> Iterator[list[Report]]:
    """Show each phase of a command, a later one from its first report on, with a time left of its own.

    Args:
        first: Description of the first phase.
        *later: Of those that follow.
        hidden: Show nothing.
    """
    with display(hidden=hidden) as shown:
        shown.show(first, State(description=first))
        yield [_mover(shown, text) for text in (first, *later)]


@contextmanager
def reading() -> Iterator[Callable[[int], None]]:
    """Show how many trajectories of a log were read; yields the function to tell it.

    A bar appears after a second and vanishes at the end, a line after `LINE_EVERY_S`: most logs are read before.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        lines = Lines(_to_stderr)

        def write(n: int) -> None:
            lines.show("read", State(description="trajectories read", done=n))

        write(0)
        yield write
        return
    due, bar = time.monotonic() + _BAR_AFTER_S, None
    with _layout(console, disable=False, transient=True) as progress:

        def draw(n: int) -> None:
            nonlocal due, bar
            if time.monotonic() < due:
                return
            if bar is None:
                bar = progress.add_task("trajectories read", total=None, numbers="")
            progress.update(bar, completed=n)
            due = time.monotonic() + _REDRAWN_AFTER_S

        yield draw


def _mover(shown: Display, name: str) -> Report:
    """Function that moves one bar."""

    def report(done: int, total: int, row: dict[str, float]) -> None:
        shown.show(name, State(description=name, done=done, total=total, numbers=numbers_of(row)))

    return report


class _TimeLeftColumn(TimeRemainingColumn):
    """The time left, with that word; nothing where it is not known or all is done."""

    def render(self, task: Task) -> Text:
        """See `rich.progress.ProgressColumn`."""
        known = task.total is not None and task.time_remaining is not None and not task.finished
        return Text.assemble(super().render(task), (" left", "dim")) if known else Text("")


def _layout(console: Console, *, disable: bool, transient: bool = False) -> Progress:
    """Bars in the project's layout."""
    return Progress(
        TextColumn("{task.description:<22}"),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TextColumn("[dim]{task.fields[numbers]}"),
        TimeElapsedColumn(),
        _TimeLeftColumn(compact=True),
        console=console,
        disable=disable,
        transient=transient,
    )


def _to_stderr(line: str) -> None:
    sys.stderr.write(line)
    sys.stderr.flush()


def _clock(seconds: float) -> str:
    """Minutes and seconds, with hours where there are any."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def numbers_of(row: dict[str, float]) -> str:
    """The three numbers worth watching during training."""
    shown = (("F1", metrics.OUTCOME), ("calls", metrics.CALLS), ("reduced", metrics.REDUCTION_RATE))
    return "  ".join(f"{name} {row[key]:.2f}" for name, key in shown if key in row)
