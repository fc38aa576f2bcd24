"""The table of calls: one row a call in `calls`, one row a trajectory in `trajectories`, both in one database.

    table = deltah.read_calls("logs/")
    table.df()                                                          # one row a call, as a pandas data frame
    table.sql("SELECT tool, avg(value) FROM calls GROUP BY tool").show()
    table.sql("SELECT c.* FROM calls c JOIN trajectories t USING (key) WHERE t.margin = 0")

Columns are declared in `deltah.calls.schema`. Rows travel as JSON lines in temporary files, which any process can write
and the database reads in bulk; what does not fit into its memory (`MEMORY_LIMIT`) it keeps on disk, until it is closed.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
import weakref
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import msgspec
import numpy as np

from deltah.calls.schema import TABLES, rows_of
from deltah.calls.waste import Waste, waste_of_calls
from deltah.core.signals import Signal, SignalConfig, score
from deltah.core.types import Trajectory
from deltah.errors import ConfigError, DataError, InvalidValueError

if TYPE_CHECKING:
    import duckdb

    from deltah.calls.logs import ScoredLog

MEMORY_LIMIT: Final = "1GB"
"""Of the database; further rows go to temporary files."""
_BATCH_BYTES: Final = 32 * 2**20
"""Rows that wait as JSON lines before the database reads them."""
_JSON = msgspec.json.Encoder(enc_hook=lambda value: value.item() if isinstance(value, np.generic) else str(value))
_FORMATS: Final = {
    ".parquet": "FORMAT parquet, COMPRESSION zstd",
    ".jsonl": "FORMAT json",
    ".csv": "FORMAT csv, HEADER true",
}


def score_measured(trajectory: Trajectory, config: SignalConfig | None = None) -> Signal | None:
    """Score, with the defaults when no configuration is given; None for a trajectory without entropies."""
    return None if trajectory.entropy is None else score(trajectory, config)


@dataclass(frozen=True, slots=True, kw_only=True)
class RowFiles:
    """Rows of some trajectories in files that the table has still to read."""

    paths: dict[str, str]
    """By table."""
    n_bytes: int
    longest: int
    """Bytes of the longest row."""
    next_key: int
    """Least key that no row here or before has."""


class RowWriter:
    """Writes rows of trajectories to files of a folder, in any process; `close` tells the table what to read."""

    def __init__(self, folder: str, first_key: int = 0) -> None:
        """Open the files.

        Args:
            folder: `CallTable.folder`.
            first_key: Key of the first trajectory; the others follow.
        """
        self._key = first_key
        self._n_bytes = self._longest = 0
        self._paths = {name: os.path.join(folder, f"{uuid.uuid4().hex}.{name}") for name in TABLES}
        self._files = {name: open(path, "wb") for name, path in self._paths.items()}  # noqa: SIM115 - `close` does

    @property
    def n_bytes(self) -> int:
        """Bytes written so far."""
        return self._n_bytes

    def add(
        self,
        trajectory: Trajectory,
        signal: Signal | None,
        waste: Sequence[frozenset[Waste]] | None,
        *,
        matched: bool = False,
        cluster: str = "task_id",
    ) -> None:
        """Write the rows of one trajectory; arguments and errors as of `deltah.calls.schema.rows_of`."""
        row, calls = rows_of(trajectory, signal, waste, key=self._key, matched=matched, cluster=cluster)
        self._key += 1
        self._write("trajectories", [row])
        self._write("calls", calls)

    def close(self) -> RowFiles:
        """Close the files."""
        for file in self._files.values():
            file.close()
        return RowFiles(paths=self._paths, n_bytes=self._n_bytes, longest=self._longest, next_key=self._key)

    def _write(self, table: str, rows: Sequence[msgspec.Struct]) -> None:
        for row in rows:
            try:
                line = _JSON.encode(row)
            except UnicodeEncodeError:  # a lone surrogate, which no UTF-8 file can hold
                line = _JSON.encode(_replaced(msgspec.to_builtins(row)))
            self._files[table].write(line + b"\n")
            self._n_bytes += len(line)
            self._longest = max(self._longest, len(line))


def _replaced(value: Any) -> Any:
    if isinstance(value, dict):
        return {_replaced(key): _replaced(item) for key, item in value.items()}
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value


class CallTable:
    """Calls and trajectories as two relations of one database; ask it with SQL, or take it as a data frame."""

    def __init__(self, *, cluster: str = "task_id") -> None:
        """Make an empty table.

        Args:
            cluster: Metadata key that names the question, where trajectories are added here.
        """
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
        self._writer: RowWriter | None = None
        self._next_key = 0

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
        if self._writer is None:
            self._writer = RowWriter(self.folder, self._next_key)
        found = waste_of_calls(trajectory) if waste is None and self.has_waste else waste
        self._writer.add(trajectory, signal, found, matched=matched, cluster=self._cluster)
        if self._writer.n_bytes > _BATCH_BYTES:
            self._flush()

    def load(self, files: RowFiles) -> None:
        """Add rows that another process wrote, whose keys are greater than all before."""
        self._close_writer()
        self._waiting.append(files)
        self._next_key = files.next_key
        if sum(waiting.n_bytes for waiting in self._waiting) > _BATCH_BYTES:
            self._flush()

    def _close_writer(self) -> None:
        if self._writer is not None:
            self._waiting.append(files := self._writer.close())
            self._writer, self._next_key = None, files.next_key

    def _flush(self) -> None:
        """Read the rows that wait into the database, in order."""
        self._close_writer()
        waiting, self._waiting = self._waiting, []
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
    """Refuse a name of rows that `CallTable.write` has no format for.

    Raises:
        ConfigError: if it ends in none of `.parquet`, `.jsonl` and `.csv`.
    """
    if path.suffix not in _FORMATS:
        raise ConfigError(f"--out {path}: expected a name that ends in .jsonl, .csv or .parquet")
