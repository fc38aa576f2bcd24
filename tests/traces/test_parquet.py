"""Parquet: exact round trips, one row group at a time, SQL as documented, hostile files."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest
from builders import make_trajectory
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import deltah.traces.parquet
from deltah import score
from deltah.core.align import TokenTexts
from deltah.core.types import CallStatus, Segment, SegmentKind, ToolCall, Trajectory
from deltah.errors import DataError, InvalidValueError
from deltah.traces.parquet import LAYOUT, OPTIONAL, read_parquet, write_parquet
from deltah.traces.record import CallRecord, SegmentRecord, TraceRecord

from .test_record import ANY_TEXT, assert_same, trajectories

FILES = settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def plain(trajectory: Trajectory) -> Trajectory:
    """Token texts as a tuple, so that representations can be compared."""
    texts = trajectory.token_texts
    return trajectory if texts is None else replace(trajectory, token_texts=tuple(texts))


def written(path: Path, *trajectories: Trajectory) -> str:
    assert write_parquet(path, trajectories) == len(trajectories)
    return str(path)


def rewritten(path: Path, select: str) -> Path:
    """Apply a SELECT to the file, as another tool would."""
    target = path.with_name("changed.parquet")
    duckdb.execute(f"COPY (SELECT {select} FROM '{path}') TO '{target}' (FORMAT parquet)")
    return target


def make(name: str = "a", **fields: Any) -> Trajectory:
    texts = ("I", " am", " söre", "🙂", "x", "y", "{", "}", "", "f", "o", "u", "end")
    return make_trajectory([[1.0, 0.5], [0.25]], id=name, token_texts=texts, **fields)


@given(st.lists(trajectories(), max_size=4))
@FILES
def test_round_trip_is_exact(tmp_path: Path, given: list[Trajectory]) -> None:
    read = list(read_parquet(written(tmp_path / "t.parquet", *given)))
    assert len(read) == len(given)
    for again, trajectory in zip(read, given, strict=True):
        assert_same(plain(again), trajectory)


@given(trajectories(ANY_TEXT))
@FILES
def test_any_text_can_be_written(tmp_path: Path, given: Trajectory) -> None:
    (again,) = read_parquet(written(tmp_path / "t.parquet", given))
    assert again.id == "".join("\ufffd" if "\ud800" <= c <= "\udfff" else c for c in given.id)
    assert [len(text) for text in again.token_texts or ()] == [len(text) for text in given.token_texts or ()]


def test_columns_follow_from_the_record() -> None:
    assert {*LAYOUT, "token_texts"} - {"text", "token_ends"} == set(TraceRecord.__struct_fields__)
    assert LAYOUT["segments"] == (
        'STRUCT("kind" VARCHAR, "start" BIGINT, "stop" BIGINT, "turn" BIGINT, "text" VARCHAR)[]'
    )
    assert LAYOUT["calls"].endswith('"status" VARCHAR, "duration_s" DOUBLE)[]')
    assert [LAYOUT[name] for name in ("outcome", "temperature", "metadata", "golden_answers", "spans")] == [
        "DOUBLE", "DOUBLE", "VARCHAR", "VARCHAR[]", "VARCHAR",
    ]  # fmt: skip


def test_texts_are_lazy_and_spans_are_slices(tmp_path: Path) -> None:
    (again,) = read_parquet(written(tmp_path / "t.parquet", make()))
    assert isinstance(again.token_texts, TokenTexts)
    assert again.token_texts == make().token_texts
    assert [again.text(s.start, s.stop) for s in again.segments] == [
        make().text(s.start, s.stop) for s in again.segments
    ]


def test_extremes_survive(tmp_path: Path) -> None:
    given = make(
        question="a\x00b\r\n'\"",
        temperature=float("nan"),
        metadata={"nan": float("nan"), "int": 2**63 - 1, "true": True, "": None, "text": "1"},
        golden_answers=("", "{}", "🙂"),
        calls=(
            ToolCall(id="x", name="f'", arguments="y" * 3_000_000, turn=0, result="", duration_s=float("inf")),
            ToolCall(id="y", name="", arguments="", turn=0, status=CallStatus.UNANSWERED, duration_s=-0.0),
        ),
    )
    bare = Trajectory(id="", segments=())
    read = list(read_parquet(written(tmp_path / "it's [1] *?.parquet", given, bare)))
    assert_same(plain(read[0]), given)
    assert_same(read[1], bare)


def test_skipped_fields_are_none_and_do_not_change_the_signal(tmp_path: Path) -> None:
    given = make(half_width=0.1, token_ids=np.arange(13), logprobs=np.zeros(13))
    path = written(tmp_path / "t.parquet", given)
    (again,) = read_parquet(path, skip=OPTIONAL)
    assert [getattr(again, name) for name in OPTIONAL] == [None] * len(OPTIONAL)
    for a, b in zip(
        (score(again).value, score(again).lower, score(again).upper),
        (score(given).value, score(given).lower, score(given).upper),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(InvalidValueError, match="cannot skip 'entropy'; choose from: logprobs"):
        read_parquet(path, skip=["entropy"])


def ids(path: str | Path) -> list[str]:
    return [t.id for t in read_parquet(path)]


def row_groups(path: str) -> list[int]:
    """Rows of each row group."""
    found = duckdb.sql(f"SELECT DISTINCT row_group_id, row_group_num_rows FROM parquet_metadata('{path}')").fetchall()
    return [n for _, n in sorted(found)]


def test_row_groups_are_blocks_in_the_order_of_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deltah.traces.parquet, "_BLOCK_BYTES", 2_000)
    names = [str(i) for i in range(50)]
    path = written(tmp_path / "t.parquet", *(make(name) for name in names))
    assert len(row_groups(path)) > 5
    assert ids(path) == names
    monkeypatch.setattr(deltah.traces.parquet, "_READ_ROWS", 2)
    assert ids(path) == names


def test_a_file_that_is_written_anew_while_it_is_read_is_not_mixed_with_the_old(tmp_path: Path) -> None:
    path = written(tmp_path / "t.parquet", *(make(str(i)) for i in range(4100)))
    reading = read_parquet(path)
    found = [next(reading).id]
    written(tmp_path / "t.parquet", *(make("new") for _ in range(4100)))
    with pytest.raises(DataError, match="rows 2049 to 4096: the file was changed while it was read"):
        found.extend(t.id for t in reading)
    assert found == [str(i) for i in range(2048)]


def test_memory_does_not_grow_with_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deltah.traces.parquet, "_BLOCK_BYTES", 200_000)

    def peak(n: int) -> int:
        path = written(tmp_path / "t.parquet", *(make(str(i)) for i in range(100)))
        tracemalloc.start()
        assert write_parquet(path, (make(str(i)) for i in range(n))) == n
        assert sum(1 for _ in read_parquet(path)) == n
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    peak(100)
    assert peak(6000) < 1.3 * peak(2000)  # 500 rows do not fill what reading keeps


def test_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = written(tmp_path / "new" / "t.parquet", make("old"))

    def broken() -> Iterator[Trajectory]:
        yield make("new")
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        write_parquet(path, broken())
    assert ids(path) == ["old"]
    assert [p.name for p in Path(path).parent.iterdir()] == ["t.parquet"]
    with pytest.raises(DataError, match="cannot write"):
        write_parquet(Path(path) / "t.parquet", [make()])


def test_no_trajectories_make_a_file_with_columns(tmp_path: Path) -> None:
    path = written(tmp_path / "t.parquet")
    assert list(read_parquet(path)) == []
    described = duckdb.sql(f"DESCRIBE FROM '{path}'").fetchall()
    assert {name: kind.replace('"', "") for name, kind, *_ in described} == {
        name: kind.replace('"', "") for name, kind in LAYOUT.items()
    }


def test_sql_gives_what_the_documentation_says(tmp_path: Path) -> None:
    path = written(
        tmp_path / "t.parquet",
        make("a", outcome=1.0, metadata={"task": "qa", "step": 3}),
        make("b", outcome=0.0, unanswered_last=True),
    )
    by_tool = duckdb.sql(
        f"SELECT call.name, count(*), count(*) FILTER (call.status = 'unanswered') "
        f"FROM (SELECT unnest(calls) AS call FROM '{path}') GROUP BY call.name"
    )
    assert by_tool.fetchall() == [("search", 2, 1)]
    sampled = duckdb.sql(f"SELECT id, list_avg(entropy), len(entropy), metadata->>'task' FROM '{path}' ORDER BY id")
    mean = float(np.nanmean(make().entropy))
    assert sampled.fetchall() == [("a", pytest.approx(mean), 13, "qa"), ("b", pytest.approx(mean), 13, None)]
    spans = duckdb.sql(
        f"""
        SELECT s.kind, substring(text, coalesce(token_ends[s.start], 0) + 1,
                                 token_ends[s.stop] - coalesce(token_ends[s.start], 0))
        FROM (SELECT text, token_ends, unnest(segments) AS s FROM '{path}' WHERE id = 'a')
        """
    ).fetchall()
    assert spans == [(s.kind.value, make().text(s.start, s.stop)) for s in make().segments]


def test_files_of_other_tools_are_read(tmp_path: Path) -> None:
    path = Path(written(tmp_path / "t.parquet", make("a"), make("b")))
    fewer = rewritten(path, "1::TINYINT AS schema_version, id, segments, entropy::FLOAT[] AS entropy, 7 AS extra")
    read = list(read_parquet(fewer))
    assert [(t.id, t.calls, t.token_texts, t.golden_answers) for t in read] == [
        ("a", (), None, ()),
        ("b", (), None, ()),
    ]
    np.testing.assert_array_equal(read[0].entropy, make().entropy)


@pytest.mark.parametrize(
    ("select", "message"),
    [
        ("* EXCLUDE id", "column 'id' is missing.*write_parquet"),
        ("* REPLACE (2 AS schema_version)", "version 2, this release of deltah reads version 1.*upgrade"),
        ("* EXCLUDE entropy REPLACE (2 AS schema_version)", "version 2"),
        ("* REPLACE (NULL::INT AS schema_version)", "version 0"),
        ("* REPLACE (id AS entropy)", r"column 'entropy' is of type VARCHAR; expected DOUBLE\[\]"),
        ("* REPLACE ('x' AS segments)", "column 'segments'"),
    ],
)
def test_wrong_columns_are_named_at_once(tmp_path: Path, select: str, message: str) -> None:
    path = rewritten(Path(written(tmp_path / "t.parquet", make("a"), make("b"))), select)
    with pytest.raises(DataError, match=message) as caught:
        read_parquet(path)
    assert str(caught.value).startswith(str(path))


def changed(column: str, value: str) -> str:
    return f"* REPLACE (CASE WHEN id = 'b' THEN {value} ELSE {column} END AS {column})"


FIELDS = {"segments": SegmentRecord.__struct_fields__, "calls": CallRecord.__struct_fields__}


def with_field(column: str, field: str, value: str) -> str:
    """SQL that sets one field of every struct of a list."""
    fields = ", ".join(f"'{name}': {value if name == field else f'x.{name}'}" for name in FIELDS[column])
    return changed(column, f"[{{{fields}}} FOR x IN {column}]")


@pytest.mark.parametrize(
    ("select", "message"),
    [
        (changed("id", "NULL"), "field id: expected `str`, got `null`"),
        (changed("segments", "NULL"), "field segments: expected `array`, got `null`"),
        (changed("segments", "segments[2:]"), "without gap"),
        (changed("segments", "[NULL]"), "field segments"),
        (with_field("segments", "kind", "'poem'"), r"field segments\[0\].kind: invalid enum value 'poem'"),
        (with_field("segments", "stop", "NULL"), r"field segments\[0\].stop: expected `int`, got `null`"),
        (with_field("calls", "name", "NULL"), r"field calls\[0\].name: expected `str`, got `null`"),
        (with_field("calls", "status", "'lost'"), r"field calls\[0\].status: invalid enum value 'lost'"),
        (with_field("calls", "result", "NULL"), "status 'ok' does not fit"),
        (with_field("calls", "turn", "-1"), "turn is -1; expected the index of an assistant message"),
        (changed("entropy", "[1.0]"), "entropy has shape .* one number per token"),
        (changed("entropy", "[1.0 FOR x IN entropy]"), "not sampled but carries an entropy"),
        (changed("token_ids", "[NULL FOR x IN entropy]"), "column token_ids holds NULL"),
        (changed("token_ends", "[0 FOR x IN entropy]"), "token ends"),
        (changed("token_ends", "list_reverse(token_ends)"), "token ends"),
        (changed("text", "NULL"), "text and token_ends"),
        (changed("golden_answers", "[NULL]"), r"field golden_answers\[0\]"),
        (changed("outcome", "'nan'::DOUBLE"), "outcome nan"),
        (changed("outcome", "2"), "outcome 2.0"),
        (changed("estimator", "'guess'"), "field estimator: invalid enum value 'guess'"),
        (changed("metadata", "'[1]'"), "expected `object`, got `array`"),
        (changed("metadata", "'{'"), "not valid JSON"),
    ],
)
def test_a_broken_row_is_named_and_the_others_are_read(tmp_path: Path, select: str, message: str) -> None:
    given = [make(name, token_ids=np.arange(13)) for name in "abc"]
    path = rewritten(Path(written(tmp_path / "t.parquet", *given)), select)
    with pytest.raises(DataError, match=message) as caught:
        list(read_parquet(path))
    assert str(caught.value).startswith(f"{path}, row 2: ")
    met: list[tuple[int, str]] = []
    assert [t.id for t in read_parquet(path, on_error=lambda row, reason: met.append((row, reason)))] == ["a", "c"]
    assert [row for row, _ in met] == [2]


def test_what_is_no_parquet_file_is_one_clear_error(tmp_path: Path) -> None:
    path = Path(written(tmp_path / "t.parquet", make()))
    whole, bad = path.read_bytes(), tmp_path / "bad.parquet"
    for content in (b"", b"PAR1", b"{}\n" * 50, whole[:-30], whole[: len(whole) // 2]):
        bad.write_bytes(content)
        with pytest.raises(DataError, match=r"bad.parquet: the file cannot be read as Parquet .*copy it again"):
            read_parquet(bad)
    with pytest.raises(DataError, match="No such file"):
        read_parquet(tmp_path / "none")
    with pytest.raises(DataError, match="Is a directory"):
        read_parquet(tmp_path)


def test_a_damaged_row_group_is_one_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deltah.traces.parquet, "_BLOCK_BYTES", 1)
    path = Path(written(tmp_path / "t.parquet", make("a"), make("b"), make("c")))
    query = (
        f"SELECT data_page_offset FROM parquet_metadata('{path}') WHERE path_in_schema = 'text' ORDER BY row_group_id"
    )
    offset = duckdb.sql(query).fetchall()[1][0]
    data = bytearray(path.read_bytes())
    data[offset : offset + 60] = b"\xff" * 60
    path.write_bytes(bytes(data))
    with pytest.raises(DataError, match=r"t.parquet, rows 2 to 2: the file is damaged \("):
        list(read_parquet(path))
    met: list[int] = []
    assert [t.id for t in read_parquet(path, on_error=lambda row, reason: met.append(row))] == ["a", "c"]
    assert met == [2]


def test_arrays_that_are_only_sometimes_measured_keep_their_rows(tmp_path: Path) -> None:
    segment = Segment(kind=SegmentKind.REASONING, start=0, stop=2, turn=0)
    given = [
        Trajectory(id=str(i), segments=(segment,), entropy=[i, np.nan] if i % 97 == 96 else None) for i in range(3000)
    ]
    read = list(read_parquet(written(tmp_path / "t.parquet", *given)))
    assert len(row_groups(str(tmp_path / "t.parquet"))) == 2
    assert [t.entropy is None for t in read] == [t.entropy is None for t in given]
    assert [float(t.entropy[0]) for t in read if t.entropy is not None] == list(range(96, 3000, 97))
