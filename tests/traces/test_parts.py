"""Parts of a log, read one by one, give what the whole log gives: trajectories, default ids, problems, counts."""

from __future__ import annotations

import copy
import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

import deltah.traces.parts
import deltah.traces.reading
from deltah.core.types import Trajectory
from deltah.errors import DataError
from deltah.traces import TraceReader, read_traces, write_traces
from deltah.traces.parquet import write_parquet
from deltah.traces.parts import LinePart, RowPart, read_part
from deltah.traces.record import encode

from .chat import assistant, line, token, user
from .test_joining import conversation, exchanges, first_request_again, turn
from .test_reader import make
from .test_record import assert_same


def in_parts(reader: TraceReader) -> tuple[list[Trajectory], int]:
    """Trajectories, and the number of parts."""
    found, n = list[Trajectory](), 0
    for part in reader.parts():
        trajectories, met = read_part(part, reader.options)
        found += trajectories
        found += reader.absorb(met)
        n += 1
    return found + list(reader.rest()), n


def assert_whole(path: Path, **options: object) -> int:
    """The parts give what the whole gives, files without parts after the others; returns their number."""
    whole, reader = read_traces(path, **options), read_traces(path, **options)
    expected = list(whole)
    found, n = in_parts(reader)
    if path.is_dir():
        expected.sort(key=lambda t: t.id)
        found.sort(key=lambda t: t.id)
    for a, b in zip(found, expected, strict=True):
        assert_same(a, b)
    for name in ("n_read", "n_problems", "n_unjoined", "n_branches", "problems", "skipped"):
        assert getattr(reader, name) == getattr(whole, name), name
    return n


def chat(text: str) -> bytes:
    """One whole conversation without an id: its trajectory is named by its line."""
    return line([user("Where?"), assistant([token(text)], content=text)])


@pytest.mark.parametrize("size", [1, 7, 200, 1000, 10**6])
@pytest.mark.parametrize("end", [b"\n", b"", b'\n{"messages": [', b"\n\n\n"])
def test_parts_of_lines_are_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, end: bytes) -> None:
    monkeypatch.setattr(deltah.traces.parts, "PART_BYTES", size)
    lines = [chat("a"), b"", chat("b"), b'{"broken', encode(make("own")), b"  ", b"[]", chat("c" * 400), b'{"x": 1}']
    path = tmp_path / "log.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + b"\n".join([*lines, *([chat("d")] * 5)]) + end)
    n = assert_whole(path)
    assert n > 1 if size < 1000 else n >= 1
    assert [t.id for t in read_traces(path)][:3] == ["log.jsonl:1", "log.jsonl:3", "own"]


def test_a_foreign_record_at_the_start_of_a_part_hides_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deltah.traces.parts, "PART_BYTES", 1)
    (tmp_path / "a.jsonl").write_bytes(b"\n".join([chat("a"), b'{"question": "?"}', chat("b")]) + b"\n")
    (tmp_path / "tasks.jsonl").write_bytes(b'{"id": 1, "question": "?"}\n')
    assert_whole(tmp_path)
    reader = read_traces(tmp_path)
    assert len(in_parts(reader)[0]) == 2
    assert (reader.n_problems, len(reader.skipped)) == (1, 1)


@pytest.mark.parametrize("size", [1, 1000, 10**6])
def test_api_calls_are_joined_across_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(deltah.traces.parts, "PART_BYTES", size)
    talks = [exchanges(conversation(question)) for question in ("Where?", "When?", "Why?")]
    retry = copy.deepcopy(talks[1][0])
    retry["response"]["id"] = "again"
    mixed = [call for round_ in zip(*talks, strict=True) for call in round_]  # as a proxy of three agents logs them
    path = tmp_path / "calls.jsonl"
    lines = [json.dumps(one).encode() for one in (mixed[0], retry, *mixed[1:])]
    path.write_bytes(b"\n".join([*lines[:4], b'{"request"', chat("whole"), *lines[4:]]))
    n = assert_whole(path)
    assert n > 3 if size < 10**6 else n == 1
    assert sorted(len(t.calls) for t in read_traces(path)) == [0, 1, 2, 2, 2]
    assert assert_whole(path, join=False) == n


@pytest.mark.parametrize("size", [1, 1000, 10**6])
@pytest.mark.parametrize("at", [0, 1, 3])
def test_a_first_call_sent_again_is_a_branch_though_it_lies_in_another_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, at: int
) -> None:
    monkeypatch.setattr(deltah.traces.parts, "PART_BYTES", size)
    calls = exchanges(conversation(), session_id="s")
    calls.insert(at, first_request_again(calls, turn("never| mind"), session_id="s"))
    path = tmp_path / "calls.jsonl"
    path.write_bytes(b"".join(json.dumps(one).encode() + b"\n" for one in calls))
    n = assert_whole(path)
    assert n == 4 if size == 1 else n >= 1
    reader = read_traces(path)
    assert [(t.id, len(t.calls)) for t in in_parts(reader)[0]] == [("s", 2), ("s/branch-1", 0)]
    assert reader.n_branches == 1


@pytest.mark.parametrize("size", [1, 10**6])
@pytest.mark.parametrize("packed", ["a", "b", "c", "ab", "bc", "ac"])
def test_a_conversation_goes_on_in_the_next_log_though_that_is_compressed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, packed: str
) -> None:
    monkeypatch.setattr(deltah.traces.parts, "PART_BYTES", size)
    calls = [json.dumps(one).encode() + b"\n" for one in exchanges(conversation())]
    assert len(calls) == 3
    for name, call in zip("abc", calls, strict=True):  # each day its log, some of them compressed by now
        data = gzip.compress(call) if name in packed else call
        (tmp_path / f"{name}.jsonl{'.gz' if name in packed else ''}").write_bytes(data)
    assert assert_whole(tmp_path) == 3 - len(packed)
    reader = read_traces(tmp_path)
    assert [len(t.calls) for t in in_parts(reader)[0]] == [2]
    assert reader.n_unjoined == 0


@pytest.mark.parametrize("envelope", [None, {"session_id": "s"}, {"request": {"messages": [user()]}}])
def test_a_stream_logged_one_chunk_a_line_has_no_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, envelope: dict[str, object] | None
) -> None:
    monkeypatch.setattr(deltah.traces.parts, "PART_BYTES", 1)
    message = turn("The answer| is there")
    block = message.pop("logprobs")
    chunks = [
        {"id": "s", "object": "chat.completion.chunk", "choices": [{"index": 0, **fields}]}
        for fields in (
            {"delta": {"role": "assistant", "content": message["content"]}, "logprobs": block},
            {"delta": {}, "finish_reason": "stop"},
        )
    ]
    if envelope is not None:
        chunks = [{"response": chunk} | envelope for chunk in chunks]
    path = tmp_path / "stream.jsonl"
    path.write_bytes(b"\n".join(json.dumps(chunk).encode() for chunk in chunks))
    assert assert_whole(path) == 0
    assert [t.prediction for t in read_traces(path)] == ["The answer is there"]
    path.write_bytes(chat("first") + b"\n" + path.read_bytes())
    assert assert_whole(path) == 3, "chunks after a whole line are left to one process"


def test_what_follows_from_what_stands_before_it_has_no_parts(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(chat("a") + b"\n"))
    (tmp_path / "b.json").write_bytes(b"[\n" + chat("b") + b"\n]\n")
    (tmp_path / "c.json").write_bytes(b"[" + chat("c") + b"]\n")
    (tmp_path / "d.jsonl").write_bytes(b"")
    (tmp_path / "e.jsonl").write_bytes(chat("e") + b"\n")
    assert assert_whole(tmp_path) == 1


def test_parts_of_parquet_are_its_row_groups(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    write_parquet(path, [make(str(i)) for i in range(2500)])
    parts = list(read_traces(path).parts())
    assert [part.rows for part in parts if isinstance(part, RowPart)] == [range(2048), range(2048, 2500)]
    assert_whole(path)
    write_traces(tmp_path / "more.jsonl", [make("x")])
    assert [type(part) for part in read_traces(tmp_path).parts()] == [LinePart, RowPart, RowPart]


def test_a_file_written_anew_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    for name in ("old", "new"):
        write_parquet(path, [make(name)])
        assert [t.id for t in in_parts(read_traces(path))[0]] == [name]


def changed_while_read(path: Path, change: Callable[[Path], object]) -> tuple[list[str], list[str]]:
    """Ids and problems of a log that is changed after its second part was cut."""
    reader, found = read_traces(path), list[str]()
    for i, part in enumerate(reader.parts()):
        if i == 2:
            change(path)
        trajectories, met = read_part(part, reader.options)
        found += [t.id for t in trajectories]
        assert not list(reader.absorb(met))
    return found, [str(problem) for problem in reader.problems]


def rotate(path: Path) -> None:
    path.rename(path.with_suffix(".1"))
    path.write_bytes(b"".join(encode(make(f"new{i}")) + b"\n" for i in range(6)))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (Path.unlink, "No such file"),
        (lambda path: os.truncate(path, 0), "the file became shorter while it was read"),
        (rotate, "another file took the place of this one while it was read"),
    ],
)
def test_lines_of_a_file_that_changes_are_lost_but_not_unannounced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], object], problem: str
) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(b"".join(encode(make(str(i))) + b"\n" for i in range(6)))
    monkeypatch.setattr(deltah.traces.parts, "PART_BYTES", path.stat().st_size // 6)
    found, problems = changed_while_read(path, change)
    assert found == ["0", "1"]
    assert problem in problems[0]
    assert "line 3" in problems[0]


def test_a_log_may_grow_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, lines = tmp_path / "log.jsonl", [encode(make(str(i))) + b"\n" for i in range(9)]
    path.write_bytes(b"".join(lines[:6]))
    monkeypatch.setattr(deltah.traces.parts, "PART_BYTES", len(lines[0]))

    def grow(path: Path) -> None:
        with path.open("ab") as file:
            file.writelines(lines[6:])

    assert changed_while_read(path, grow) == ([str(i) for i in range(9)], [])


def test_a_table_that_is_written_anew_while_it_is_read_is_not_mixed_with_the_old(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    write_parquet(path, [make(str(i)) for i in range(6000)])
    found, problems = changed_while_read(path, lambda path: write_parquet(path, [make("new")] * 6000))
    assert found == [str(i) for i in range(4096)]
    assert problems == [f"{path}, row 4097: the file was changed while it was read; its rows up to 6,000 are lost"]


@pytest.mark.parametrize("size", [1, 30_000, 10**6])
def test_of_many_problems_the_first_are_listed_and_all_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """Some parts hold more of them than are kept, and pieces of a stream that only the whole log can tell as broken."""
    monkeypatch.setattr(deltah.traces.parts, "PART_BYTES", size)
    monkeypatch.setattr(deltah.traces.reading, "MAX_KEPT_PROBLEMS", 100)
    broken_stream = b'{"id": "s", "object": "chat.completion.chunk", "error": "full", "choices": []}'
    path = tmp_path / "log.jsonl"
    lines = [broken_stream if i % 3 else b'{"broken": %d' % i for i in range(1000)]
    path.write_bytes(b"\n".join([chat("a"), *lines, chat("b")]))
    assert_whole(path)
    told: list[int] = []
    reader = read_traces(path, on_error=lambda problem: told.append(problem.line))
    assert len(in_parts(reader)[0]) == 2
    assert reader.n_problems == 1000
    assert [problem.line for problem in reader.problems] == list(range(2, 102))
    assert told[:100] == list(range(2, 102))


def test_a_damaged_table_is_one_problem(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    write_parquet(path, [make(str(i)) for i in range(10)])
    data = bytearray(path.read_bytes())
    data[8:200] = bytes(192)
    path.write_bytes(data)
    assert_whole(path)
    assert read_traces(path).n_problems == 0
    reader = read_traces(path)
    in_parts(reader)
    assert reader.n_problems == 1


def test_strict_reading_stops_at_the_first_problem_of_a_part(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(chat("a") + b"\n{\n")
    with pytest.raises(DataError, match=r"log\.jsonl, line 2"):
        in_parts(read_traces(path, strict=True))
