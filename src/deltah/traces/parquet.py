"""Traces as Parquet: the codec for large collections, readable by SQL; one row per trajectory.

The columns are those of the record (`deltah.traces.record`), with differences made for SQL that docs/formats.md states.
A round trip is exact to the last bit. Reading holds one row group in memory, writing one block and its row group. Other
tools may have filtered or joined a file: optional columns may be missing, others added, numbers narrower.
"""

from __future__ import annotations

import glob
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from deltah.core.align import TokenTexts
from deltah.core.types import Trajectory
from deltah.errors import DataError, InvalidValueError
from deltah.traces import record
from deltah.traces.record import ARRAYS, NonFinite, TraceRecord

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

OPTIONAL: Final = ("logprobs", "token_ids", "token_texts")
"""Fields of a trajectory that a reader may leave out; no entropy is computed from them."""
_VECTOR_ROWS: Final = 2048
"""Rows the database passes on at once: a part of no more rows becomes one row group."""
_BLOCK_BYTES: Final = 16 * 2**20
_READ_ROWS: Final = 4 * _VECTOR_ROWS
"""Rows read at once from a file whose row groups, written by another tool, are longer."""


def _sql_type(kind: msgspec.inspect.Type) -> str:
    """SQL type of a field of the record."""
    if isinstance(kind, msgspec.inspect.UnionType):
        named = {type(part).__name__: part for part in kind.types}
        kind = named.get("FloatType") or next(part for name, part in named.items() if name != "NoneType")
    if isinstance(kind, msgspec.inspect.StructType):
        return "STRUCT({})".format(", ".join(f'"{field.name}" {_sql_type(field.type)}' for field in kind.fields))
    if isinstance(kind, msgspec.inspect.ListType):
        return f"{_sql_type(kind.item_type)}[]"
    if isinstance(kind, msgspec.inspect.FloatType):
        return "DOUBLE"
    return "BIGINT" if isinstance(kind, msgspec.inspect.IntType) else "VARCHAR"


_RECORD: Final = msgspec.inspect.type_info(TraceRecord)
assert isinstance(_RECORD, msgspec.inspect.StructType)
REQUIRED: Final = tuple(field.name for field in _RECORD.fields if field.required)
"""Columns that a file must have; any other that is missing was not recorded."""
_HEAD: Final = {
    field.name: _sql_type(field.type) for field in _RECORD.fields if field.name not in (*ARRAYS, "token_texts")
} | {"text": "VARCHAR"}
"""Columns that travel as JSON."""
_BESIDE: Final = ("metadata", "text")
"""Texts that are read beside that JSON: one is JSON itself, the other long."""
_PER_TOKEN: Final = (*ARRAYS, "token_ends")
LAYOUT: Final[Mapping[str, str]] = _HEAD | {
    name: "BIGINT[]" if name.startswith("token") else "DOUBLE[]" for name in _PER_TOKEN
}
"""Every column with its SQL type, in the order of the file."""


def holds_traces(path: str | os.PathLike[str]) -> bool:
    """Whether a Parquet file has the columns of our traces."""
    return columns(path).issuperset(REQUIRED)


def columns(path: str | os.PathLike[str]) -> set[str]:
    """Names of the columns of a Parquet file; none of a file that is not one."""
    import duckdb

    try:
        with _database() as db:
            found = db.execute("DESCRIBE FROM read_parquet($file)", {"file": _pattern(os.fspath(path))}).fetchall()
    except duckdb.Error:
        return set()
    return {str(row[0]) for row in found}


def write_parquet(path: str | os.PathLike[str], trajectories: Iterable[Trajectory]) -> int:
    """Write trajectories to a Parquet file as `deltah.write_traces` does; for a while the disk holds them twice."""
    import duckdb

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
    path: str | os.PathLike[str], *, skip: Sequence[str] = (), on_error: Callable[[int, str], None] | None = None
) -> Iterator[Trajectory]:
    """Trajectories of a Parquet file, in order, without the fields of `OPTIONAL` to skip; `DataError` if it has none.

    `on_error` is called with the number of a row that cannot be read, from 1, and the reason; without it the first such
    row is a `DataError`. A damaged row group is one problem, of its first row.
    """
    if unknown := sorted(set(skip) - set(OPTIONAL)):
        raise InvalidValueError(f"cannot skip {unknown[0]!r}; choose from: {', '.join(OPTIONAL)}")
    return _Source(os.fspath(path), skip).trajectories(on_error)


class _Source:
    """An open, checked file."""

    def __init__(self, path: str, skip: Sequence[str]) -> None:
        self.path, self._pattern = path, _pattern(path)
        self._stamp = _stamp(path)
        self._db = _database()
        with self._errors(f"{path}: the file cannot be read as Parquet"):
            types = {str(row[0]): str(row[1]) for row in self._query("DESCRIBE FROM read_parquet($file)").fetchall()}
            _check_types(path, types)
            for (version,) in self._query("SELECT DISTINCT schema_version FROM read_parquet($file)").fetchall():
                record.check_version(version or 0, f"{path}: ")
            self._row_groups = list(self._blocks())
        left_out = {*skip, *(("text", "token_ends") if "token_texts" in skip else ())}
        present = [name for name in LAYOUT if name in types and name not in left_out]
        as_json = [name for name in present if name in _HEAD and name not in _BESIDE]
        head = ", ".join(f"'{name}': {_with_default(name)}" for name in as_json)
        beside = [f"{name}::{LAYOUT[name]} AS {name}" for name in present if name not in as_json]
        self._columns = ", ".join([f"to_json({{{head}}}) AS head", *beside])

    def trajectories(self, on_error: Callable[[int, str], None] | None) -> Iterator[Trajectory]:
        """See `read_parquet`."""

        def report(row: int, where: str, error: DataError) -> None:
            if on_error is None:
                raise DataError(f"{self.path}, {where}: {error}") from error
            on_error(row + 1, str(error))

        with closing(self._db):
            for block in self._row_groups:
                try:
                    columns = self._read(block)
                except DataError as error:
                    report(block.start, f"rows {block.start + 1} to {block.stop}", error)
                    continue
                for row, values in zip(block, zip(*columns.values(), strict=True), strict=True):
                    try:
                        trajectory = _trajectory(dict(zip(columns, values, strict=True)))
                    except DataError as error:
                        report(row, f"row {row + 1}", error)
                    else:
                        yield trajectory

    def _read(self, rows: range) -> dict[str, list[Any]]:
        """Columns of some rows, one value per row."""
        if _stamp(self.path) != self._stamp:
            raise DataError("the file was changed while it was read")
        source = "read_parquet($file, file_row_number = true) WHERE file_row_number BETWEEN $first AND $last"
        query = f"SELECT {self._columns} FROM {source}"
        with self._errors("the file is damaged"):
            found = self._query(query, first=rows.start, last=rows.stop - 1).fetchnumpy()
        return {name: values.tolist() for name, values in found.items()}

    def _blocks(self) -> Iterator[range]:
        """Row groups; longer ones, of other writers, in pieces."""
        query = "SELECT DISTINCT row_group_id, row_group_num_rows FROM parquet_metadata($file) ORDER BY row_group_id"
        start = 0
        for _, n_rows in self._query(query).fetchall():
            stop = start + int(n_rows)
            yield from (range(a, min(a + _READ_ROWS, stop)) for a in range(start, stop, _READ_ROWS))
            start = stop

    def _query(self, query: str, **bounds: int) -> DuckDBPyConnection:
        return self._db.execute(query, {"file": self._pattern, **bounds})

    @contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        import duckdb

        try:
            yield
        except duckdb.Error as error:
            raise DataError(f"{what} ({_first_line(error)}); write or copy it again") from error


def _trajectory(row: dict[str, Any]) -> Trajectory:
    """Trajectory of the columns of one row."""
    text, ends = row.pop("text", None), _array(row.pop("token_ends", None), "token_ends")
    if (text is None) != (ends is None):
        raise DataError("one of the columns text and token_ends is NULL or missing; expected both or neither")
    head, metadata = row.pop("head"), row.pop("metadata", None)
    read: dict[str, Any] = {name: _array(values, name) for name, values in row.items()}
    if text is not None and ends is not None:
        try:
            read["token_texts"] = TokenTexts(text, ends)
        except InvalidValueError as error:
            raise DataError(str(error)) from error
    return record.decode(head.encode(), metadata=record.decode_metadata(metadata or "{}"), **read)


def _array(values: NDArray[Any] | None, name: str) -> NDArray[Any] | None:
    """Per-token values of one row; NULL is NaN."""
    if not isinstance(values, np.ma.MaskedArray):
        return values
    if name.startswith("token"):
        raise DataError(f"column {name} holds NULL; expected one integer per token")
    return np.where(values.mask, np.nan, values.data)  # `filled` takes five times as long


def _with_default(name: str) -> str:
    """SQL of a column of the head, with the record's default in the place of NULL."""
    default = next(f for f in msgspec.structs.fields(TraceRecord) if f.name == name).default
    if name in ("golden_answers", "calls"):
        return f"coalesce({name}::{LAYOUT[name]}, [])"
    known = default is not None and default is not msgspec.NODEFAULT
    return f"coalesce({name}::{LAYOUT[name]}, {_literal(str(default)) if known else 'NULL'})"


def _database() -> DuckDBPyConnection:
    """Database in memory that keeps the order of rows, loads no extension and uses one thread."""
    import duckdb

    db = duckdb.connect(
        config={"threads": 1, "autoinstall_known_extensions": False, "autoload_known_extensions": False}
    )
    # A footer describes every column of every row group; without the cache each query reads it again.
    db.execute("SET parquet_metadata_cache = true")
    return db


def _blocks(trajectories: Iterable[Trajectory]) -> Iterator[list[Trajectory]]:
    """Blocks of bounded size; the last may be empty, because a file without trajectories needs its columns too."""
    block, size = list[Trajectory](), 0
    for trajectory in trajectories:
        block.append(trajectory)
        size += _size(trajectory)
        if size >= _BLOCK_BYTES or len(block) == _VECTOR_ROWS:
            yield block
            block, size = [], 0
    yield block


def _size(trajectory: Trajectory) -> int:
    """Approximate bytes of a trajectory in memory."""
    arrays: int = sum(values.nbytes for name in ARRAYS if (values := getattr(trajectory, name)) is not None)
    texts = sum(len(s.text or "") for s in trajectory.segments)
    calls = sum(len(call.arguments) + len(call.result or "") for call in trajectory.calls)
    return arrays + texts + calls + (0 if trajectory.token_texts is None else 16 * len(trajectory))


def _write_part(db: DuckDBPyConnection, path: str, block: Sequence[Trajectory]) -> None:
    columns = {name: np.empty(len(block), dtype=object) for name in ("head", *_PER_TOKEN)}
    for i, trajectory in enumerate(block):
        texts = None if trajectory.token_texts is None else TokenTexts.of(trajectory.token_texts)
        columns["head"][i] = _head(trajectory, texts)
        columns["token_ends"][i] = None if texts is None else texts.ends
        for name in ARRAYS:
            columns[name][i] = getattr(trajectory, name)
    head = ", ".join(f"head.{name}" for name in _HEAD)
    structure = ", ".join(f"{name} {kind}" for name, kind in _HEAD.items())
    arrays = ", ".join(f"{name}::{LAYOUT[name]} AS {name}" for name in _PER_TOKEN)
    db.register("block", columns)
    db.execute(
        f"COPY (SELECT {head}, {arrays} FROM (SELECT head::VARCHAR::JSON::STRUCT({structure}) AS head, "
        f"{', '.join(_PER_TOKEN)} FROM block)) TO {_literal(path)} (FORMAT parquet, COMPRESSION uncompressed)"
    )
    db.unregister("block")


def _head(trajectory: Trajectory, texts: TokenTexts | None) -> str:
    mirrored = record.to_record(trajectory, per_token=False)
    row = _explicit(mirrored) | {
        "metadata": record.to_json(mirrored.metadata).decode(),
        "text": None if texts is None else texts.joined,
    }
    return record.to_json({name: row[name] for name in _HEAD}).decode()


def _explicit(value: Any) -> Any:
    """A record as JSON values that SQL reads: defaults included, a number that is not finite as its name."""
    if isinstance(value, NonFinite):
        return value.float
    if isinstance(value, msgspec.Struct):
        return {name: _explicit(getattr(value, name)) for name in value.__struct_fields__}
    return [_explicit(item) for item in value] if isinstance(value, list) else value


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
    wide = re.sub(r"\b(?:U?TINYINT|U?SMALLINT|U?INTEGER)\b", "BIGINT", sql_type.replace('"', ""))
    return re.sub(r"\bFLOAT\b", "DOUBLE", wide)


def _stamp(path: str) -> tuple[int, ...]:
    """What changes when a file is written anew."""
    try:
        with open(path, "rb") as file:
            found = os.fstat(file.fileno())
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}; expected a Parquet file of traces") from error
    return found.st_ino, found.st_size, found.st_mtime_ns


def _pattern(path: str) -> str:
    """An absolute path as a pattern that matches this file alone: the database expands wildcards."""
    return glob.escape(os.path.abspath(path))


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
