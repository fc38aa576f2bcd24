"""The table of calls: one row per call in `calls`, one row per trajectory in `trajectories`, both in one database.

    table = deltah.read_calls("logs/")
    table.df()                                                          # one row per call, as a pandas data frame
    table.sql("SELECT tool, avg(value) FROM calls GROUP BY tool").show()
    table.sql("SELECT c.* FROM calls c JOIN trajectories t USING (key) WHERE t.margin = 0")

Columns are declared in `deltah.calls.schema`. What does not fit into the database's memory (`MEMORY_LIMIT`) is kept in
temporary files. A `ScoredLog` reads, grades and scores trajectories one by one, in constant memory.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self, TypeAlias

from deltah.calls.grading import Answers, signal_of, tools_of
from deltah.calls.savings import Costs, fill_costs
from deltah.calls.schema import TABLES, Facts, RowFiles, RowWriter
from deltah.calls.tool_kinds import LEVEL, Declared, ToolKinds, judge
from deltah.calls.waste import facts_of_calls
from deltah.core.signals import Signal, SignalConfig, score
from deltah.core.types import Trajectory
from deltah.errors import ConfigError, DataError, DataWarning, InvalidValueError, MissingDependencyError
from deltah.runs import is_result, known_signal
from deltah.text_format import count
from deltah.traces.files import STDIN
from deltah.traces.parquet import OPTIONAL
from deltah.traces.reader import Paths, ReadCounts, ReadOptions, ReadProblem, TraceReader

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
_NO_COSTS: Final = Costs()


def score_measured(trajectory: Trajectory, config: SignalConfig | None = None) -> Signal | None:
    """Signal of a trajectory; None without entropies."""
    return None if trajectory.entropy is None else score(trajectory, config)


class CallTable:
    """Calls and trajectories as two relations of one database; ask it with SQL, or take it as a data frame."""

    def __init__(self, *, cluster: str = "task_id", tools: ToolKinds | None = None) -> None:
        """Make an empty table; `cluster` is the metadata key that names the question, `tools` what is known of them."""
        self.log: ScoredLog | None = None
        """What the rows were read from; None for trajectories in memory."""
        self.has_waste = True
        """Whether anybody looked for waste."""
        self.tools = tools or ToolKinds()
        """What the levels of waste were computed with."""
        self.costs = _NO_COSTS
        """What the costs of calls were computed with, see `price`."""
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
        self._judged = False
        self._writer = RowWriter(self.folder)

    @classmethod
    def of(
        cls,
        trajectories: Iterable[Trajectory],
        signals: Sequence[Signal | None] | None = None,
        *,
        config: SignalConfig | None = None,
        cluster: str = "task_id",
        tools: Declared | None = None,
    ) -> Self:
        """Table of trajectories in memory.

        Args:
            trajectories: Read once.
            signals: One for each, None where it has no entropies; scored here when not given.
            config: How to score.
            cluster: Metadata key that names the question.
            tools: What calling each tool does, see `read_calls`.

        Raises:
            InvalidValueError: if `signals` has another length, or one has another number of calls.
        """
        table, listed = cls(cluster=cluster, tools=ToolKinds.of(tools)), list(trajectories)
        if signals is not None and len(signals) != len(listed):
            raise InvalidValueError(f"got {len(signals)} signals for {len(listed)} trajectories; give one for each")
        for i, trajectory in enumerate(map(table.tools.timed, listed)):
            table.add(trajectory, score_measured(trajectory, config) if signals is None else signals[i])
        return table

    def add(
        self, trajectory: Trajectory, signal: Signal | None, facts: Facts | None = None, *, matched: bool = False
    ) -> None:
        """Add one trajectory with its signal, None without entropies.

        `facts` is (C,) as of `facts_of_calls` (default: found here), `matched` whether a file of answers has it.
        """
        found = facts_of_calls(trajectory, self.tools.limits_s) if facts is None and self.has_waste else facts
        self._writer.add(trajectory, signal, found, matched=matched, cluster=self._cluster)
        self._flush(beyond=_BATCH_BYTES)

    def load(self, files: RowFiles) -> None:
        """Add rows that another writer wrote, with keys of their own; `add` is not to be mixed with it."""
        self._waiting.append(files)
        self._flush(beyond=_BATCH_BYTES)

    def _flush(self, beyond: int = 0) -> None:
        """Read the rows that wait into the database, in order, if they are more than so many bytes."""
        if self._writer.n_bytes + sum(files.n_bytes for files in self._waiting) <= beyond:
            return
        waiting = [files for files in (*self._waiting, self._writer.take()) if files.paths]
        self._waiting = []
        size = max(2**20, 2 * max(files.longest for files in waiting))
        for name, columns in TABLES.items():
            shape = ", ".join(f"\"{column.name}\": '{column.type}'" for column in columns)
            paths = [files.paths[name] for files in waiting]
            level = f"SELECT * REPLACE ({LEVEL} AS waste_level) " if name == "calls" else ""
            self.connection.execute(
                f"INSERT INTO {name} {level}FROM read_json($paths, format = 'newline_delimited', "
                f"columns = {{{shape}}}, maximum_object_size = {size})",
                {"paths": paths},
            )
            for path in paths:
                os.unlink(path)
        self._judged = False

    def _settle(self) -> None:
        """Read all rows that wait, and judge the calls by all that is known then."""
        self._flush()
        if not self._judged:
            judge(self)
            self._judged = True

    @property
    def calls(self) -> duckdb.DuckDBPyRelation:
        """One row per call."""
        return self.sql("FROM calls")

    @property
    def trajectories(self) -> duckdb.DuckDBPyRelation:
        """One row per trajectory."""
        return self.sql("FROM trajectories")

    def sql(self, query: str, **parameters: object) -> duckdb.DuckDBPyRelation:
        """Answer of a DuckDB query on `calls` and `trajectories`; parameters are values of `$name` in it."""
        self._settle()
        # Each with a cursor of its own: one that was not read to its end does not stand in the way of the next.
        return self.connection.cursor().sql(query, params=parameters or None)

    def price(self, costs: Costs) -> None:
        """Fill the columns `cost` and `cost_with_cache` of the calls that the table has now."""
        self._settle()
        self.costs = costs
        fill_costs(self, costs.prices)

    def df(self) -> Any:
        """The calls as a pandas data frame; needs pandas."""
        return self._checked("df", "pandas").df()

    def pl(self) -> Any:
        """The calls as a Polars data frame; needs polars and pyarrow."""
        return self._checked("pl", "polars", "pyarrow").pl()

    def arrow(self) -> Any:
        """The calls as an Arrow table; needs pyarrow."""
        return self._checked("arrow", "pyarrow").to_arrow_table()

    def _checked(self, method: str, *packages: str) -> duckdb.DuckDBPyRelation:
        """The calls, if the packages of a data frame are installed."""
        if missing := " ".join(name for name in packages if find_spec(name) is None):
            needed = " and ".join(packages)
            raise MissingDependencyError(f".{method}() needs {needed}; install with: pip install {missing}")
        return self.calls

    def __len__(self) -> int:
        """Number of calls."""
        return len(self.calls)

    def __repr__(self) -> str:
        """What it holds, and how to take it out."""
        calls, trajectories = count(len(self), "call"), count(self.n_trajectories, "trajectory")
        return f"<{type(self).__name__}: {calls} of {trajectories}; .df() .pl() .arrow() .sql()>"

    @property
    def problems(self) -> list[ReadProblem]:
        """Records that could not be read; of very many the first ones (`log.reader.n_problems` counts all)."""
        return [] if self.log is None else self.log.reader.problems

    @property
    def notes(self) -> list[str]:
        """What a reader of the numbers must know, such as an assumed vocabulary size; as `deltah score` prints it."""
        from deltah.calls.notes import notes_on

        return [] if self.log is None else notes_on(self, self.log)

    @property
    def n_trajectories(self) -> int:
        """Number of trajectories."""
        return len(self.trajectories)

    def write(self, path: str | os.PathLike[str]) -> int:
        """Write the calls to a `.parquet`, `.jsonl` or `.csv` file, which appears when it is complete, and count them.

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
            listed = (f"array_to_string({name}, '|') AS {name}" for name in ('"between"', "waste"))
            source = f"(SELECT * REPLACE ({', '.join(listed)}) FROM calls)"
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            self._settle()
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
    """Refuse a file name that `CallTable.write` has no format for."""
    if path.suffix not in _FORMATS:
        raise ConfigError(f"--out {path}: expected a name that ends in .jsonl, .csv or .parquet")


@dataclass(frozen=True, slots=True, kw_only=True)
class LogOptions(ReadOptions):
    """How logs are read and scored; see `read_calls`."""

    answers: str | None = None
    tools: Declared | None = None
    signal: str | None = None
    margin: float | None = None
    watch: Callable[[int], object] | None = None

    def signal_config(self, base: SignalConfig) -> SignalConfig:
        """A run's configuration with what is stated here in its place."""
        name = base.name if self.signal in (None, base.name) else known_signal(str(self.signal))
        kept = base.margin if name == base.name else None  # another signal has a margin of its own
        return replace(base, name=name, margin=kept if self.margin is None else self.margin)


Scored: TypeAlias = tuple[Trajectory, Signal | None]
"""A trajectory with its signal; None for one without entropies."""


class ScoredLog(Iterable[tuple[Trajectory, Signal | None, bool]]):
    """Trajectories of logs, graded, with their signals and whether the answers' file has a row of them."""

    def __init__(self, paths: Paths, options: LogOptions | None = None, *, waste: bool = True) -> None:
        """Open the files; without `waste` the texts of Parquet are not read. Errors as of `read_calls`."""
        options = options or LogOptions()
        self.answers = Answers(options.answers)
        self.watch = options.watch
        skip = ("logprobs", "token_ids") if waste else OPTIONAL
        self.reader = TraceReader(paths, replace(options, skip=skip, watch=None))
        # What an earlier report or study left in a folder of logs is none of them.
        self.reader.sources = [s for s in self.reader.sources if s.named or not is_result(s.path)]
        folders = {str(Path(source.path).parent) for source in self.reader.sources if source.path != STDIN}
        found = {options.signal_config(signal_of(folder)) for folder in folders}
        if len(found) > 1:
            raise ConfigError(
                "these traces come from runs with different signals; say which to use with --signal or --margin"
            )
        self.signal = found.pop() if found else options.signal_config(SignalConfig())
        self.tools = ToolKinds.of(options.tools, own=set().union(*map(tools_of, folders)))

    def __iter__(self) -> Iterator[tuple[Trajectory, Signal | None, bool]]:
        """Grade and score the trajectories that can be read, as they are asked for."""
        for read in self.reader:
            trajectory, matched = self.answers.apply(self.tools.timed(read))
            if self.watch is not None:
                self.watch(self.reader.n_read)
            yield trajectory, score_measured(trajectory, self.signal), matched


def read_calls(  # noqa: PLR0913 - the options of `deltah score`
    paths: Paths,
    *,
    signal: str | None = None,
    margin: float | None = None,
    answers: str | None = None,
    tools: Declared | None = None,
    format: str | None = None,
    vocab_size: int | None = None,
    join: bool = True,
    strict: bool = False,
    waste: bool = True,
    costs: Costs | None = None,
    workers: int | None = 1,
    watch: Callable[[int], object] | None = None,
) -> CallTable:
    """Read traces or logs, score every call, and give the table of calls.

    Args:
        paths: Files, folders or glob patterns, see `deltah.read_traces`.
        signal: A name, or `package.module:function`; None: that of the run that the traces lie in, else ΔH.
        margin: Dead band in the signal's unit; None: likewise.
        answers: Second file with grades or gold answers.
        tools: What calling each tool does, a TOML file or a mapping: `{"search": "read"}`, see `tool_kinds.Tool`.
        format: Name of a trace format; None: detected from the content.
        vocab_size: Vocabulary size of logs that do not state it.
        join: Whether API calls of one conversation become one trajectory.
        strict: Stop at the first record that cannot be read, instead of adding it to `CallTable.problems`.
        waste: Whether to look for waste in the text; without, scoring is faster.
        costs: Prices, for the column `cost`.
        workers: Processes; None: one per core, at most 8. Several need a guarded main (`multiprocessing`, "spawn").
        watch: Called with the number of trajectories read so far.

    Warns:
        DataWarning: if some records could not be read: how many, and the first of them.

    Raises:
        DataError: if a file, or every record, cannot be read.
        ConfigError: if no signal is stated and the traces lie in runs that scored their calls differently.
        InvalidValueError: if an option is wrong.
    """
    from deltah.calls.notes import losses, nothing_read  # notes are on tables

    options = LogOptions(
        format=format, vocab_size=vocab_size, join=join, strict=strict, answers=answers, signal=signal, margin=margin
    )
    named = [paths] if isinstance(paths, str | os.PathLike) else [*paths]
    log = ScoredLog(named, replace(options, tools=tools), waste=waste)
    table = CallTable(tools=log.tools)
    table.log, table.has_waste = log, waste
    score_file = partial(_score_file, (log.signal, log.answers, log.tools), waste, table.folder)
    for files in log.reader.map(score_file, workers=workers, watch=watch):
        table.load(files)
    if not table.n_trajectories:
        raise nothing_read(log, named)
    if log.reader.n_problems:
        warnings.warn(losses(log), DataWarning, stacklevel=2)
    if costs is not None or log.tools.fees:
        table.price((costs or Costs()).with_fees(log.tools.fees))
    return table


def _score_file(
    known: tuple[SignalConfig, Answers, ToolKinds],
    waste: bool,
    folder: str,
    read: ReadCounts,
    found: Iterable[Trajectory],
) -> RowFiles:
    """Write the rows of one file of a log, in any process."""
    config, answers, tools = known
    writer = RowWriter(folder, read.number * _FILE_KEYS)
    for trajectory, matched in map(answers.apply, map(tools.timed, found)):
        facts = facts_of_calls(trajectory, tools.limits_s) if waste else None
        writer.add(trajectory, score_measured(trajectory, config), facts, matched=matched, file=read.file)
    return writer.take()
