"""The table of calls: one row a call in `calls`, one row a trajectory in `trajectories`, both in one database.

    table = deltah.read_calls("logs/")
    table.df()                                                          # one row a call, as a pandas data frame
    table.sql("SELECT tool, avg(value) FROM calls GROUP BY tool").show()
    table.sql("SELECT c.* FROM calls c JOIN trajectories t USING (key) WHERE t.margin = 0")

Columns are declared in `deltah.calls.schema`. What does not fit into the database's memory (`MEMORY_LIMIT`) it keeps on
disk, until it is closed. A `ScoredLog` reads, grades and scores trajectories one by one, in constant memory.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import uuid
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self, TypeAlias

from deltah.calls.grading import Answers
from deltah.calls.schema import TABLES, RowFiles, RowWriter
from deltah.calls.waste import Waste, waste_of_calls
from deltah.core.signals import SIGNALS, Signal, SignalConfig, score
from deltah.core.types import Trajectory
from deltah.errors import ConfigError, DataError, InvalidValueError
from deltah.runs import signal_of
from deltah.traces import TraceReader, read_traces
from deltah.traces.files import STDIN
from deltah.traces.parquet import OPTIONAL
from deltah.traces.reader import Paths

if TYPE_CHECKING:
    import duckdb

MEMORY_LIMIT: Final = "1GB"
"""Of the database; further rows go to temporary files."""
_BATCH_BYTES: Final = 32 * 2**20
"""Rows that wait as JSON lines before the database reads them."""
_FILE_KEYS: Final = 2**32
"""Distance between the first keys of two files of a log."""
_FORMATS: Final = {
    ".parquet": "FORMAT parquet, COMPRESSION zstd",
    ".jsonl": "FORMAT json",
    ".csv": "FORMAT csv, HEADER true",
}
_RESULT: Final = re.compile(rb'\{\s*"schema_version": ?\d+,\s*"(?:title|level)":')
"""How the JSON of a report or a study begins, as no record of traces does."""


def score_measured(trajectory: Trajectory, config: SignalConfig | None = None) -> Signal | None:
    """Score, with the defaults when no configuration is given; None for a trajectory without entropies."""
    return None if trajectory.entropy is None else score(trajectory, config)


class CallTable:
    """Calls and trajectories as two relations of one database; ask it with SQL, or take it as a data frame."""

    def __init__(self, *, cluster: str = "task_id") -> None:
        """Make an empty table; `cluster` is the metadata key that names the question of trajectories that are added."""
        self.log: ScoredLog | None = None
        """What the rows were read from; None for trajectories in memory."""
        self.has_waste = True
        """Whether anybody looked for waste."""
        import duckdb  # here, because it takes a tenth of a second to load

        spill = os.path.join(tempfile.gettempdir(), f"deltah-calls-{uuid.uuid4().hex}")
        self.connection = duckdb.connect(config={"memory_limit": MEMORY_LIMIT, "temp_directory": spill, "threads": 1})
        for name, columns in TABLES.items():
            listed = ", ".join(f'"{column.name}" {column.type}' for column in columns)
            self.connection.execute(f"CREATE TABLE {name} ({listed})")
        self._cluster = cluster
        self.folder = tempfile.mkdtemp(prefix="deltah-rows-")
        """Where a `RowWriter` puts rows for this table."""
        weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)
        self._waiting: list[RowFiles] = []
        self._writer = RowWriter(self.folder)

    @classmethod
    def of(
        cls,
        trajectories: Iterable[Trajectory],
        signals: Sequence[Signal | None] | None = None,
        *,
        config: SignalConfig | None = None,
        cluster: str = "task_id",
    ) -> Self:
        """Table of trajectories in memory.

        Args:
            trajectories: Read once.
            signals: One for each, None where it has no entropies; scored here when not given.
            config: How to score.
            cluster: Metadata key that names the question.

        Raises:
            InvalidValueError: if `signals` has another length, or one speaks of another number of calls.
        """
        table, listed = cls(cluster=cluster), list(trajectories)
        if signals is not None and len(signals) != len(listed):
            raise InvalidValueError(f"got {len(signals)} signals for {len(listed)} trajectories; give one for each")
        for i, trajectory in enumerate(listed):
            table.add(trajectory, score_measured(trajectory, config) if signals is None else signals[i])
        return table

    def add(
        self,
        trajectory: Trajectory,
        signal: Signal | None,
        waste: Sequence[frozenset[Waste]] | None = None,
        *,
        matched: bool = False,
    ) -> None:
        """Add one trajectory.

        Args:
            trajectory: C calls.
            signal: None for one without entropies.
            waste: (C,) what `waste_of_calls` says; looked for here when not given.
            matched: Whether a file of answers has a row of it.
        """
        found = waste_of_calls(trajectory) if waste is None and self.has_waste else waste
        self._writer.add(trajectory, signal, found, matched=matched, cluster=self._cluster)
        if self._writer.n_bytes > _BATCH_BYTES:
            self._flush()

    def load(self, files: RowFiles) -> None:
        """Add rows that another writer wrote, with keys of their own; to a table to which none are added otherwise."""
        self._waiting.append(files)
        if sum(waiting.n_bytes for waiting in self._waiting) > _BATCH_BYTES:
            self._flush()

    def _flush(self) -> None:
        """Read the rows that wait into the database, in order."""
        waiting = [files for files in (*self._waiting, self._writer.take()) if files.paths]
        self._waiting = []
        if not waiting:
            return
        size = max(2**20, 2 * max(files.longest for files in waiting))
        for name, columns in TABLES.items():
            shape = ", ".join(f"\"{column.name}\": '{column.type}'" for column in columns)
            paths = [files.paths[name] for files in waiting]
            self.connection.execute(
                f"INSERT INTO {name} FROM read_json($paths, format = 'newline_delimited', columns = {{{shape}}}, "
                f"maximum_object_size = {size})",
                {"paths": paths},
            )
            for path in paths:
                os.unlink(path)

    @property
    def calls(self) -> duckdb.DuckDBPyRelation:
        """One row a call."""
        return self.sql("FROM calls")

    @property
    def trajectories(self) -> duckdb.DuckDBPyRelation:
        """One row a trajectory."""
        return self.sql("FROM trajectories")

    def sql(self, query: str, **parameters: object) -> duckdb.DuckDBPyRelation:
        """Answer of a query on `calls` and `trajectories`.

        Args:
            query: In the dialect of DuckDB.
            **parameters: Values of `$name` in the query.
        """
        self._flush()
        # Each with a cursor of its own: one that was not read to its end does not stand in the way of the next.
        return self.connection.cursor().sql(query, params=parameters or None)

    def df(self) -> Any:
        """The calls as a pandas data frame; needs pandas."""
        return self.calls.df()

    def pl(self) -> Any:
        """The calls as a Polars data frame; needs polars and pyarrow."""
        return self.calls.pl()

    def arrow(self) -> Any:
        """The calls as an Arrow table; needs pyarrow."""
        return self.calls.to_arrow_table()

    def __len__(self) -> int:
        """Number of calls."""
        return int(self.sql("SELECT count(*) FROM calls").fetchall()[0][0])

    @property
    def n_trajectories(self) -> int:
        """Number of trajectories."""
        return int(self.sql("SELECT count(*) FROM trajectories").fetchall()[0][0])

    def write(self, path: str | os.PathLike[str]) -> int:
        """Write the calls to a `.parquet`, `.jsonl` or `.csv` file, which appears when it is complete.

        Returns:
            The number of rows.

        Raises:
            ConfigError: if the name has another ending.
            DataError: if the file cannot be written.
        """
        import duckdb

        target = Path(path)
        check_suffix(target)
        temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        source = "calls"
        if target.suffix == ".csv":
            source = "(SELECT * REPLACE (array_to_string(waste, '|') AS waste) FROM calls)"
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            self._flush()
            place = str(temporary).replace("'", "''")
            self.connection.execute(f"COPY {source} TO '{place}' ({_FORMATS[target.suffix]})")
            temporary.replace(target)
        except (OSError, duckdb.Error) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error).splitlines()[0]
            raise DataError(f"cannot write {target}: {reason}; choose another place or free some space") from error
        finally:
            with suppress(OSError):
                temporary.unlink()
        return len(self)


def check_suffix(path: Path) -> None:
    """Refuse a name of rows that `CallTable.write` has no format for."""
    if path.suffix not in _FORMATS:
        raise ConfigError(f"--out {path}: expected a name that ends in .jsonl, .csv or .parquet")


@dataclass(frozen=True, slots=True, kw_only=True)
class LogOptions:
    """How logs are read and scored; see `read_calls`."""

    format: str | None = None
    vocab_size: int | None = None
    join: bool = True
    strict: bool = False
    answers: str | None = None
    signal: str | None = None
    margin: float | None = None
    watch: Callable[[int], object] | None = None
    """Called with the number of trajectories read so far."""

    def signal_config(self, base: SignalConfig) -> SignalConfig:
        """A run's configuration with what is stated here in its place."""
        if self.signal is None and self.margin is None:
            return base
        name = base.name if self.signal in (None, base.name) else _signal_name(str(self.signal))
        # Another signal has a margin of its own.
        kept = base.margin if name == base.name else None
        return replace(base, name=name, margin=kept if self.margin is None else self.margin)


Scored: TypeAlias = tuple[Trajectory, Signal | None]
"""A trajectory with its signal; None for one without entropies."""


class ScoredLog(Iterable[tuple[Trajectory, Signal | None, bool]]):
    """Trajectories of logs, graded, with their signals and whether the answers' file has a row of them.

    Iterable again unless from standard input.
    """

    def __init__(self, paths: Paths, options: LogOptions | None = None, *, waste: bool = True) -> None:
        """Open the files; without `waste` the texts of Parquet are not read. Errors as of `read_calls`."""
        options = options or LogOptions()
        self.answers = Answers(options.answers)
        self.watch = options.watch
        self.waste = waste
        self.reader: TraceReader = read_traces(
            paths,
            format=options.format,
            strict=options.strict,
            vocab_size=options.vocab_size,
            join=options.join,
            skip=("logprobs", "token_ids") if waste else OPTIONAL,
        )
        # What an earlier report or study left in a folder of logs is none of them.
        self.reader.sources = [s for s in self.reader.sources if s.named or not is_result(s.path)]
        folders = {str(Path(source.path).parent) for source in self.reader.sources if source.path != STDIN}
        found = {options.signal_config(signal_of(folder)) for folder in folders}
        if len(found) > 1:
            raise ConfigError(
                "these traces come from runs with different signals; say which to use with --signal or --margin"
            )
        self.signal = found.pop() if found else options.signal_config(SignalConfig())

    def __iter__(self) -> Iterator[tuple[Trajectory, Signal | None, bool]]:
        """Grade and score the trajectories that can be read, as they are asked for."""
        for read in self.reader:
            trajectory, matched = self.answers.apply(read)
            if self.watch is not None:
                self.watch(self.reader.n_read)
            yield trajectory, score_measured(trajectory, self.signal), matched


def log_signals() -> tuple[str, ...]:
    """Names of the signals that a log can be scored by as it is read: those that need no fit."""
    return tuple(name for name, entry in SIGNALS.items() if "fit" not in entry.options)


def _signal_name(name: str) -> str:
    if name in log_signals() or (":" in name and "fit" not in SIGNALS.resolve(name).options):
        return name
    wrong = f"unknown signal {name!r};"
    if name in SIGNALS or ":" in name:
        wrong = (
            f"the signal {name!r} needs an expectation fitted on other questions, as `deltah study` computes it; here"
        )
    raise InvalidValueError(
        f"{wrong} choose one of: {', '.join(log_signals())}; or name one of your own as package.module:function"
    )


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
        signal: A name, or `package.module:function`; None: that of the run that the traces lie in, else ΔH.
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
    return table_of(ScoredLog(paths, options, waste=waste), workers=workers)


def table_of(log: ScoredLog, *, workers: int | None = 1) -> CallTable:
    """Table of a log, which is read once; see `read_calls`."""
    table = CallTable()
    table.log, table.has_waste = log, log.waste
    score_file = partial(_score_file, log.signal, log.answers, log.waste, table.folder)
    for files in log.reader.map(score_file, workers=workers, watch=log.watch):
        table.load(files)
    return table


def _score_file(
    config: SignalConfig, answers: Answers, waste: bool, folder: str, number: int, trajectories: Iterable[Trajectory]
) -> RowFiles:
    """Write the rows of one file of a log, in any process."""
    writer = RowWriter(folder, number * _FILE_KEYS)
    for read in trajectories:
        trajectory, matched = answers.apply(read)
        found = waste_of_calls(trajectory) if waste else None
        writer.add(trajectory, score_measured(trajectory, config), found, matched=matched)
    return writer.take()


def is_result(path: str | os.PathLike[str]) -> bool:
    """Whether a file is the JSON of a report or a study; False for one that cannot be read."""
    try:
        with open(path, "rb") as file:
            return _RESULT.match(file.read(64)) is not None
    except OSError:
        return False
