"""A log read file by file, by one process or several, gives what reading it in order gives."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import deltah.traces.reader
from deltah.core.types import Trajectory
from deltah.errors import DataError, InvalidValueError
from deltah.traces import TraceReader, read_traces, write_traces
from deltah.traces.reader import ReadCounts
from deltah.traces.record import encode

from .chat import assistant, line, token, user
from .test_joining import conversation, exchanges, first_request_again, turn
from .test_reader import make
from .test_record import assert_same


def kept(counts: ReadCounts, trajectories: Iterator[Trajectory]) -> tuple[int, list[Trajectory]]:
    return counts.number, list(trajectories)


def mapped(reader: TraceReader, workers: int = 1) -> list[Trajectory]:
    found = list(reader.map(kept, workers=workers))
    numbers = [number for number, _ in found]
    assert numbers == sorted(set(numbers))
    return [trajectory for _, trajectories in found for trajectory in trajectories]


def assert_whole(path: Path, *, workers: int = 1, **options: object) -> int:
    """Files one by one give what an iteration gives; returns the number of results."""
    whole, reader = read_traces(path, **options), read_traces(path, **options)
    expected, found = list(whole), mapped(reader, workers)
    for a, b in zip(sorted(found, key=lambda t: t.id), sorted(expected, key=lambda t: t.id), strict=True):
        assert_same(a, b)
    for name in ("n_read", "n_problems", "n_unjoined", "n_branches", "skipped"):
        assert getattr(reader, name) == getattr(whole, name), name
    assert set(reader.problems) == set(whole.problems)
    return len(list(read_traces(path, **options).map(kept, workers=1)))


def chat(text: str) -> bytes:
    """One whole conversation without an id: its trajectory is named by its line."""
    return line([user("Where?"), assistant([token(text)], content=text)])


def jsonl(*records: object) -> bytes:
    return b"".join((one if isinstance(one, bytes) else json.dumps(one).encode()) + b"\n" for one in records)


@pytest.mark.parametrize("workers", [1, 2])
def test_files_of_every_kind_are_read_one_by_one(tmp_path: Path, workers: int) -> None:
    (tmp_path / "a.jsonl").write_bytes(jsonl(chat("a"), b"", b'{"broken', encode(make("own")), b"[]", chat("b")))
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(jsonl(chat("a"))))
    (tmp_path / "c.json").write_bytes(b"[\n" + chat("b") + b"\n]\n")
    (tmp_path / "d.jsonl").write_bytes(b"")
    (tmp_path / "tasks.jsonl").write_bytes(b'{"id": 1, "question": "?"}\n')
    write_traces(tmp_path / "t.parquet", [make("p"), make("q")])
    assert assert_whole(tmp_path, workers=workers) == 6
    reader = read_traces(tmp_path)
    assert [t.id for t in mapped(reader, workers)] == [
        "a.jsonl:1",
        "own",
        "a.jsonl:6",
        "b.jsonl.gz:1",
        "c.json:1",
        "p",
        "q",
    ]
    assert (reader.n_problems, len(reader.skipped)) == (2, 1)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("packed", ["", "a", "b", "c", "ab", "bc", "ac"])
def test_a_conversation_goes_on_in_the_next_log_though_that_is_compressed(
    tmp_path: Path, packed: str, workers: int
) -> None:
    for name, call in zip("abc", exchanges(conversation()), strict=True):  # each day its log, some compressed by now
        data = gzip.compress(jsonl(call)) if name in packed else jsonl(call)
        (tmp_path / f"{name}.jsonl{'.gz' if name in packed else ''}").write_bytes(data)
    assert assert_whole(tmp_path, workers=workers) == 1
    reader = read_traces(tmp_path)
    assert [len(t.calls) for t in mapped(reader)] == [2]
    assert reader.n_unjoined == 0


def test_files_that_others_may_complete_come_last_and_in_their_order(tmp_path: Path) -> None:
    first, *later = exchanges(conversation(), session_id="s")
    again = first_request_again([first, *later], turn("never| mind"), session_id="s")
    (tmp_path / "a.jsonl").write_bytes(jsonl(first))
    (tmp_path / "b.jsonl").write_bytes(jsonl(encode(make("own"))))
    (tmp_path / "c.jsonl").write_bytes(jsonl(chat("whole"), again, *later))  # its first record stands alone
    assert assert_whole(tmp_path) == 2
    found = list(read_traces(tmp_path).map(kept))
    assert [[t.id for t in trajectories] for _, trajectories in found] == [["own"], ["c.jsonl:1", "s", "s/branch-1"]]


def test_calls_that_are_not_joined_need_no_other_file(tmp_path: Path) -> None:
    for name, call in zip("abc", exchanges(conversation()), strict=True):
        (tmp_path / f"{name}.jsonl").write_bytes(jsonl(call))
    assert assert_whole(tmp_path, join=False) == 3


@pytest.mark.parametrize("envelope", [None, {"session_id": "s"}, {"request": {"messages": [user()]}}])
def test_a_stream_may_go_on_in_the_next_log(tmp_path: Path, envelope: dict[str, object] | None) -> None:
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
    for i, chunk in enumerate(chunks):
        (tmp_path / f"{i}.jsonl").write_bytes(jsonl(chunk))
    assert assert_whole(tmp_path) == 1
    assert [t.prediction for t in read_traces(tmp_path)] == ["The answer is there"]


def test_of_many_problems_the_first_are_listed_and_all_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deltah.traces.reader, "MAX_KEPT_PROBLEMS", 100)
    for name in "ab":
        (tmp_path / f"{name}.jsonl").write_bytes(jsonl(chat("a"), *([b"{"] * 150), chat("b")))
    told: list[int] = []
    reader = read_traces(tmp_path, on_error=lambda problem: told.append(problem.line))
    assert len(mapped(reader)) == 4
    assert reader.n_problems == 300
    assert [problem.line for problem in reader.problems] == list(range(2, 102))
    assert told[:100] == list(range(2, 102))


@pytest.mark.parametrize("workers", [1, 2])
def test_strict_reading_stops_at_the_first_problem(tmp_path: Path, workers: int) -> None:
    for name in "ab":
        (tmp_path / f"{name}.jsonl").write_bytes(jsonl(chat("a"), b"{"))
    with pytest.raises(DataError, match=r"a\.jsonl, line 2"):
        mapped(read_traces(tmp_path, strict=True), workers)


def test_whoever_watches_is_told_of_every_trajectory(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(jsonl(chat("a"), chat("b")))
    (tmp_path / "b.jsonl").write_bytes(jsonl(*exchanges(conversation("When?"))))
    told: list[int] = []
    list(read_traces(tmp_path).map(kept, watch=told.append))
    assert sorted(set(told)) == [1, 2, 3]
    with pytest.raises(InvalidValueError, match="workers is 0"):
        list(read_traces(tmp_path).map(kept, workers=0))
