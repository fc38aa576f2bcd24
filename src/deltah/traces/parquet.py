"""Traces as Parquet: the codec for large collections, readable by SQL; the columns are in `deltah.traces.columns`.

`list(read_parquet(path))` gives back the trajectories that `write_parquet(path, ...)` took, exact to the last bit; lone
surrogates in texts become U+FFFD, as in JSON lines. Reading holds one row group in memory, writing one block and the
row group it becomes, whatever the size of the file. Rows keep their order.

A file may have been filtered or joined by other tools: columns that are not required may be missing, others may have
been added, and integers and floats may be narrower. A file whose columns are of other types is refused by name.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

from deltah.core.types import Trajectory
from deltah.database import import_duckdb
from deltah.errors import DataError, InvalidValueError
from deltah.traces.columns import ARRAYS, LAYOUT, NESTED, REQUIRED, STRUCTURE, Rows, to_columns
from deltah.traces.record import check_version

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

OPTIONAL: Final = ("logprobs", "token_ids", "token_texts")
"""Fields of a trajectory that a reader may leave out; no entropy is computed from them."""

_MAGIC: Final = b"PAR1"
_VECTOR_ROWS: Final = 2048
"""Rows the database passes on at once: a part of no more rows becomes one row group."""
_BLOCK_BYTES: Final = 16 * 2**20
"""Size in memory at which a block of trajectories is written."""
_READ_ROWS: Final = 4 * _VECTOR_ROWS
"""Rows read at once from a file whose row groups, written by another tool, are longer."""
_NARROW: Final = (
    (re.compile(r"\b(?:U?TINYINT|U?SMALLINT|U?INTEGER)\b"), "BIGINT"),
    (re.compile(r"\bFLOAT\b"), "DOUBLE"),
)


def is_parquet(path: str | os.PathLike[str]) -> bool:
    """Whether a file begins as Parquet does; False for what cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read(len(_MAGIC)) == _MAGIC
    except OSError:
        return False


def holds_traces(path: str | os.PathLike[str]) -> bool:
    """Whether a file is Parquet with the columns of our traces; False for what cannot be read as such."""
    if not is_parquet(path):
        return False
    duckdb = import_duckdb("Reading a Parquet file")
    try:
        with _database() as db:
            found = db.execute("DESCRIBE FROM read_parquet($file)", {"file": _pattern(os.fspath(path))}).fetchall()
    except duckdb.Error:
        return False
    return {str(row[0]) for row in found}.issuperset(REQUIRED)


def write_parquet(path: str | os.PathLike[str], trajectories: Iterable[Trajectory]) -> int:
    """Write trajectories to a Parquet file, atomically: the old file stays whole until the new one is.

    Blocks are first written beside the target, so for a while the disk holds the traces twice.

    Args:
        path: Missing parent folders are made.
        trajectories: Consumed one block at a time.

    Returns:
        The number written.

    Raises:
        DataError: if the file cannot be written (no space, no permission).
    """
    duckdb = import_duckdb("Writing a Parquet file")
    target, count = Path(path), 0
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with (
            tempfile.TemporaryDirectory(dir=target.parent, prefix=".deltah-parquet-") as folder,
            closing(_database()) as db,
        ):
            parts: list[str] = []
            for block in _blocks(trajectories):
                parts.append(os.path.join(folder, f"{len(parts)}.parquet"))
                _write_part(db, parts[-1], block)
                count += len(block)
            whole = Path(folder, "whole")
            # A row group is closed as soon as it holds ROW_GROUP_SIZE rows, and a part arrives in one piece.
            db.execute(
                f"COPY (FROM read_parquet(?)) TO {_literal(str(whole))} "
                "(FORMAT parquet, PARQUET_VERSION v2, COMPRESSION zstd, ROW_GROUP_SIZE 1)",
                [[_pattern(part) for part in parts]],
            )
            with whole.open("rb") as file:
                os.fsync(file.fileno())
            whole.replace(target)
    except (OSError, duckdb.Error) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else _first_line(error)
        raise DataError(f"cannot write {target}: {reason}; the file there, if any, is as it was") from error
    return count


def read_parquet(
    path: str | os.PathLike[str],
    *,
    rows: range | None = None,
    skip: Sequence[str] = (),
    on_error: Callable[[int, str], None] | None = None,
) -> Iterator[Trajectory]:
    """Read the trajectories of a Parquet file, in order, as they are asked for.

    Args:
        path: Local file.
        rows: Read only these rows, counted from 0 (see `row_ranges`); None: all.
        skip: Fields of `OPTIONAL` to leave out, which makes reading faster; they are None in the trajectories.
        on_error: Called with the number of a row, from 1, and the reason why it cannot be read; the others are still
            read. None: the first such row is an error. A damaged row group is one problem, of its first row.

    Raises:
        DataError: at once, if the file is not Parquet, has no or wrong columns, or is of a newer version; later, from
            the iteration, naming the row, if one cannot be read.
        InvalidValueError: if `skip` names another field.
    """
    if unknown := sorted(set(skip) - set(OPTIONAL)):
        raise InvalidValueError(f"cannot skip {unknown[0]!r}; choose from: {', '.join(OPTIONAL)}")
    if rows is not None:
        return _kept_open(os.fspath(path), tuple(skip), stamp(path)).trajectories(rows, on_error)
    return _closing(_Source(os.fspath(path), skip), on_error)


def _closing(source: _Source, on_error: Callable[[int, str], None] | None) -> Iterator[Trajectory]:
    with closing(source):
        yield from source.trajectories(None, on_error)


@lru_cache(maxsize=1)
def _kept_open(path: str, skip: tuple[str, ...], found: tuple[int, ...]) -> _Source:
    """The file whose rows were read last: whoever reads some soon reads more, and opening costs as much as a few."""
    del found  # part of the key: a file that was written anew is opened anew
    return _Source(path, skip)


def stamp(path: str | os.PathLike[str]) -> tuple[int, ...]:
    """What changes when a file is written anew; empty for what cannot be read."""
    try:
        found = os.stat(path)
    except OSError:
        return ()
    return found.st_ino, found.st_size, found.st_mtime_ns


def row_ranges(path: str | os.PathLike[str], *, row_groups: int = 1) -> list[range]:
    """Ranges of rows for several processes to read, each by `read_parquet(path, rows=...)`.

    Args:
        path: Local file.
        row_groups: Row groups in a range.

    Returns:
        Adjacent ranges, in order, that together are all rows; empty for a file without rows.

    Raises:
        DataError: if the file is not a Parquet file of traces.
    """
    with closing(_Source(os.fspath(path), ())) as source:
        blocks = source.blocks
    return [range(blocks[i].start, blocks[i : i + row_groups][-1].stop) for i in range(0, len(blocks), row_groups)]


class _Source:
    """An open, checked file."""

    def __init__(self, path: str, skip: Sequence[str]) -> None:
        _check_readable(path)
        self.path = path
        self._pattern = _pattern(path)
        self._db = _database()
        with self._errors(f"{path}: the file cannot be read as Parquet"):
            types = {str(row[0]): str(row[1]) for row in self._query("DESCRIBE FROM read_parquet($file)").fetchall()}
            _check_types(path, types)
            self._check_versions()
            self.blocks = self._blocks()
        skipped = {"schema_version", *skip, *(("text", "token_ends") if "token_texts" in skip else ())}
        self._columns = [_expression(name, types[name]) for name in LAYOUT if name in types and name not in skipped]
        self._nested = [name for name in NESTED if name in types]

    def close(self) -> None:
        """Close the database."""
        self._db.close()

    def trajectories(self, rows: range | None, on_error: Callable[[int, str], None] | None) -> Iterator[Trajectory]:
        """Read block by block; see `read_parquet`."""

        def report(row: int, where: str, error: DataError) -> None:
            if on_error is None:
                raise DataError(f"{self.path}, {where}: {error}") from error
            on_error(row + 1, str(error))

        for block in self.blocks if rows is None else filter(None, (_overlap(b, rows) for b in self.blocks)):
            try:
                read = self._read(block)
            except DataError as error:
                report(block.start, f"rows {block.start + 1} to {block.stop}", error)
                continue
            for i in range(len(read)):
                try:
                    trajectory = read.trajectory(i)
                except DataError as error:
                    report(block.start + i, f"row {block.start + i + 1}", error)
                else:
                    yield trajectory

    def _read(self, rows: range) -> Rows:
        source = "read_parquet($file, file_row_number = true) WHERE file_row_number BETWEEN $first AND $last"
        bounds = {"first": rows.start, "last": rows.stop - 1}
        with self._errors("the file is damaged"):
            columns = self._query(f"SELECT {', '.join(self._columns)} FROM {source}", **bounds).fetchnumpy()
            nested = {
                name: self._query(
                    f"SELECT unnest({name}::{LAYOUT[name]}, recursive := true) FROM {source}", **bounds
                ).fetchnumpy()
                for name in self._nested
            }
        return Rows(columns, nested["segments"], nested.get("calls", {}))

    def _check_versions(self) -> None:
        for (version,) in self._query("SELECT DISTINCT schema_version FROM read_parquet($file)").fetchall():
            try:
                check_version(version or 0)
            except DataError as error:
                raise DataError(f"{self.path}: {error}") from error

    def _blocks(self) -> list[range]:
        """Row groups; longer ones, of other writers, in pieces."""
        query = "SELECT DISTINCT row_group_id, row_group_num_rows FROM parquet_metadata($file) ORDER BY row_group_id"
        blocks, start = list[range](), 0
        for _, n_rows in self._query(query).fetchall():
            stop = start + int(n_rows)
            blocks += [range(a, min(a + _READ_ROWS, stop)) for a in range(start, stop, _READ_ROWS)]
            start = stop
        return blocks

    def _query(self, query: str, **bounds: int) -> DuckDBPyConnection:
        return self._db.execute(query, {"file": self._pattern, **bounds})

    @contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        duckdb = import_duckdb("Reading a Parquet file")
        try:
            yield
        except duckdb.Error as error:
            raise DataError(f"{what} ({_first_line(error)}); write or copy it again") from error


def _overlap(block: range, rows: range) -> range:
    return range(max(block.start, rows.start), min(block.stop, rows.stop))


def _database() -> DuckDBPyConnection:
    """Database in memory that keeps the order of rows, loads no extension and uses one thread."""
    db: DuckDBPyConnection = import_duckdb("Reading a Parquet file").connect(
        config={"threads": 1, "autoinstall_known_extensions": False, "autoload_known_extensions": False}
    )
    # A footer describes every column of every row group; without the cache each query reads it again.
    db.execute("SET parquet_metadata_cache = true")
    return db


def _blocks(trajectories: Iterable[Trajectory]) -> Iterator[list[Trajectory]]:
    """Blocks of bounded size; one empty block if there is nothing, because a file needs its columns."""
    block, size, n_blocks = list[Trajectory](), 0, 0
    for trajectory in trajectories:
        block.append(trajectory)
        size += _size(trajectory)
        if size >= _BLOCK_BYTES or len(block) == _VECTOR_ROWS:
            yield block
            block, size, n_blocks = [], 0, n_blocks + 1
    if block or not n_blocks:
        yield block


def _size(trajectory: Trajectory) -> int:
    """Approximate bytes of a trajectory in memory."""
    arrays: int = sum(values.nbytes for name in ARRAYS if (values := getattr(trajectory, name, None)) is not None)
    texts = sum(len(s.text or "") for s in trajectory.segments)
    calls = sum(len(call.arguments) + len(call.result or "") for call in trajectory.calls)
    return arrays + texts + calls + (0 if trajectory.token_texts is None else 16 * len(trajectory))


def _write_part(db: DuckDBPyConnection, path: str, block: Sequence[Trajectory]) -> None:
    structure = json.dumps(STRUCTURE)
    head = ", ".join(f"head.{name}" for name in STRUCTURE)
    arrays = ", ".join(f"{name}::{LAYOUT[name]} AS {name}" for name in ARRAYS)
    db.register("block", dict(to_columns(block)))
    db.execute(
        f"COPY (SELECT {head}, {arrays} FROM (SELECT from_json(head::VARCHAR, {_literal(structure)}) AS head, "
        f"{', '.join(ARRAYS)} FROM block)) TO {_literal(path)} (FORMAT parquet, COMPRESSION uncompressed)"
    )
    db.unregister("block")


def _check_readable(path: str) -> None:
    if Path(path).is_dir():
        raise DataError(f"{path} is a folder; expected a Parquet file of traces")
    try:
        with open(path, "rb"):
            pass
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}; expected a Parquet file of traces") from error


def _check_types(path: str, types: dict[str, str]) -> None:
    """Refuse a file that lacks a column, or has one of another type."""
    if missing := [name for name in REQUIRED if name not in types]:
        raise DataError(
            f"{path}: the column {missing[0]!r} is missing; expected a file of deltah.traces.parquet.write_parquet, "
            f"with at least {', '.join(REQUIRED)}"
        )
    for name, expected in LAYOUT.items():
        found = types.get(name, expected)
        if _widest(found) != _widest(expected):
            raise DataError(f"{path}: column {name!r} is of type {found}; expected {expected}")


def _widest(sql_type: str) -> str:
    """A type without the quotes and the width of its numbers."""
    for pattern, wide in _NARROW:
        sql_type = pattern.sub(wide, sql_type)
    return sql_type.replace('"', "")


def _expression(name: str, found: str) -> str:
    if name in NESTED:
        return f"len({name}) AS {name}"
    return name if found == LAYOUT[name] else f"{name}::{LAYOUT[name]} AS {name}"


def _pattern(path: str) -> str:
    """An absolute path as a pattern that matches this file alone: the database expands wildcards."""
    return re.sub(r"[*?[]", r"[\g<0>]", os.path.abspath(path))


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
