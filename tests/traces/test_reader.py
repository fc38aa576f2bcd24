"""Reading and writing files: formats, compression, damage, atomicity."""

from __future__ import annotations

import gzip
import io
import json
import os
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import deltah.traces.files
from deltah.core.types import Segment, SegmentKind, Trajectory
from deltah.errors import DataError, InvalidValueError
from deltah.jsonlines import zstd
from deltah.traces import ReadProblem, TraceWriter, read_traces, write_traces
from deltah.traces.record import encode

from .chat import assistant, call, line, result, token, user


def make(name: str, n_tokens: int = 3) -> Trajectory:
    return Trajectory(id=name, segments=(Segment(kind=SegmentKind.REASONING, start=0, stop=n_tokens, turn=0),))


def ids(path: Any, **options: Any) -> list[str]:
    return [t.id for t in read_traces(path, **options)]


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.zst"])
def test_written_traces_come_back(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / "new" / f"traces{suffix}"
    assert write_traces(path, (make(str(i)) for i in range(500))) == 500
    reader = read_traces(path)
    assert [t.id for t in reader] == [str(i) for i in range(500)]
    assert (reader.n_read, reader.problems) == (500, [])
    assert [t.id for t in reader][:2] == ["0", "1"], "a reader can be iterated again"
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    write_traces(path, [make("old")])

    def broken() -> Iterator[Trajectory]:
        yield make("new")
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        write_traces(path, broken())
    assert ids(path) == ["old"]
    assert len(list(tmp_path.iterdir())) == 1


def test_unwritable_target_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot write"):
        write_traces(tmp_path / "file" / "t.jsonl", [make("a")])
    with pytest.raises(DataError, match="cannot append"):
        TraceWriter(tmp_path / "file" / "t.jsonl")


def test_problems_are_counted_and_valid_lines_survive(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    chat = line([user(), assistant([token("a")])])
    path.write_bytes(
        b"\xef\xbb\xbf"
        + encode(make("a"))
        + b"\r\n\n{oops\n"
        + chat
        + b'\n{"foo":1}\n[1]\n\xff\xfe\n'
        + encode(make("b"))
    )
    met: list[ReadProblem] = []
    reader = read_traces(path, on_error=met.append)
    assert [t.id for t in reader] == ["a", "t.jsonl:4", "b"]
    assert [p.line for p in reader.problems] == [3, 5, 6, 7]
    assert met == list(reader.problems)
    assert str(met[0]).startswith(f"{path}, line 3: not valid JSON")
    assert "openai" in met[1].reason
    with pytest.raises(DataError, match="line 3"):
        list(read_traces(path, strict=True))


@pytest.mark.parametrize("pack", [gzip.compress, zstd.compress])
def test_a_byte_order_mark_inside_a_compressed_log_is_no_text(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "t.jsonl"
    path.write_bytes(pack(b"\xef\xbb\xbf" + encode(make("a")) + b"\n" + encode(make("b")) + b"\n"))
    assert ids(path, strict=True) == ["a", "b"]


def test_a_rotated_log_is_read_from_its_oldest_file_to_its_newest(tmp_path: Path) -> None:
    oldest_first = [
        *("a.jsonl.10", "a.jsonl.2.gz", "a.jsonl.1", "a.jsonl"),
        *("b.jsonl-20261123", "b.jsonl-20261124.gz", "b.jsonl"),
        *("c.log.2026-11-23", "c.log.2026-11-24_10", "c.log"),
        *("d.jsonl", "d1.jsonl"),
    ]
    for name in reversed(oldest_first):
        data = encode(make(name)) + b"\n"
        (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    assert ids(str(tmp_path / "*")) == oldest_first
    assert ids([tmp_path / name for name in sorted(oldest_first)]) == oldest_first, "as a shell expands a pattern"
    (tmp_path / "a.jsonl.bak").write_bytes(encode(make("no log")))
    assert ids(tmp_path) == oldest_first


@pytest.mark.parametrize("name", ["app.log", "app.log.1", "app.log.2.gz", "app.txt-20261124"])
def test_plain_text_in_a_folder_is_passed_over_rotated_or_not(tmp_path: Path, name: str) -> None:
    write_traces(tmp_path / "t.jsonl", [make("a")])
    text = b"10:00 started\n"
    (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    reader = read_traces(tmp_path)
    assert [t.id for t in reader] == ["a"]
    assert (reader.n_problems, reader.skipped) == (0, [str(tmp_path / name)])


def test_files_that_were_named_keep_their_order(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl", "c.jsonl.1", "c.jsonl"):
        write_traces(tmp_path / name, [make(name)])
    named = [tmp_path / name for name in ("c.jsonl", "b.jsonl", "c.jsonl.1", "a.jsonl")]
    assert ids(named) == ["c.jsonl.1", "b.jsonl", "c.jsonl", "a.jsonl"]


def test_a_conversation_goes_on_in_the_next_file_of_a_rotated_log(tmp_path: Path) -> None:
    asked = [user("Where?")]
    first, second = assistant(None, content="I look.", tool_calls=[call()]), assistant(None, content="Paris.")
    histories = (asked, [*asked, first, result("Paris")])
    calls = [
        json.dumps({"request": {"messages": history}, "response": {"choices": [{"message": reply}]}})
        for history, reply in zip(histories, (first, second), strict=True)
    ]
    (tmp_path / "log.jsonl.1").write_text(calls[0] + "\n")
    (tmp_path / "log.jsonl").write_text(calls[1] + "\n")
    reader = read_traces(tmp_path)
    assert [t.n_calls for t in reader] == [1]
    assert reader.n_unjoined == 0


def test_truncated_last_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_bytes(encode(make("a")) + b"\n" + encode(make("b"))[:-9])
    reader = read_traces(path)
    assert [t.id for t in reader] == ["a"]
    assert [(p.line, "cut off" in p.reason) for p in reader.problems] == [(2, True)]


def test_writer_after_a_killed_writer_starts_a_new_line(tmp_path: Path) -> None:
    path = tmp_path / "run" / "t.jsonl"
    with TraceWriter(path) as writer:
        writer.write(make("a"))
        assert ids(path) == ["a"], "flushed before close"
    with path.open("ab") as file:
        file.write(encode(make("lost"))[:20])
    with TraceWriter(path) as writer:
        writer.write(make("b"))
        assert writer.n_written == 1
    reader = read_traces(path)
    assert [t.id for t in reader] == ["a", "b"]
    assert [p.line for p in reader.problems] == [2]


def test_writer_refuses_compression(tmp_path: Path) -> None:
    with pytest.raises(InvalidValueError, match="write_traces"):
        TraceWriter(tmp_path / "t.jsonl.zst")


@pytest.mark.parametrize("pack", [gzip.compress, zstd.compress])
def test_compression_is_told_by_content_and_members_are_joined(tmp_path: Path, pack: Any) -> None:
    path = tmp_path / "plain-name.jsonl"
    path.write_bytes(pack(encode(make("a")) + b"\n" + encode(make("b"))[:5]) + pack(encode(make("b"))[5:] + b"\n"))
    assert ids(path) == ["a", "b"]


@pytest.mark.parametrize("pack", [gzip.compress, zstd.compress])
def test_damaged_streams_give_what_they_hold_and_a_problem(tmp_path: Path, pack: Any) -> None:
    path = tmp_path / "t"
    names = [make(str(i), i % 7) for i in range(20_000)]
    whole = pack(b"".join(encode(t) + b"\n" for t in names))
    path.write_bytes(whole[: len(whole) // 2])
    reader = read_traces(path)
    read = [t.id for t in reader]
    assert 0 < len(read) < 20_000
    assert read == [str(i) for i in range(len(read))]
    assert reader.n_problems == 1
    assert "ends in the middle" in reader.problems[0].reason
    path.write_bytes(whole[: len(whole) // 2] + b"garbage" * 100_000)
    reader = read_traces(path)
    list(reader)
    assert "lost" in reader.problems[-1].reason
    with pytest.raises(DataError, match=str(path)):
        list(read_traces(path, strict=True, format="deltah"))


def test_standard_input_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(gzip.compress(encode(make("a")) + b"\n{\n"))))
    reader = read_traces("-")
    assert [t.id for t in reader] == ["a"]
    assert [(p.file, p.line) for p in reader.problems] == [("-", 2)]
    with pytest.raises(DataError, match="already read"):
        list(reader)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names on this platform")
@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_a_pipe_is_read_once_and_whole(tmp_path: Path, pack: Any, mapped: bool) -> None:
    pipe, lines = tmp_path / "pipe.jsonl", [encode(make(str(i))) for i in range(2000)]
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(pack(b"\n".join(lines) + b"\n"),), daemon=True)
    writer.start()
    reader = read_traces(pipe)
    found = next(reader.map(lambda _, trajectories: [t.id for t in trajectories])) if mapped else [t.id for t in reader]
    assert found == [str(i) for i in range(2000)]
    assert not reader.n_problems
    writer.join(timeout=10)
    with pytest.raises(DataError, match=r"pipe\.jsonl was already read"):
        list(reader)


def test_a_file_met_under_two_names_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "logs").mkdir()
    write_traces(tmp_path / "logs" / "a.jsonl", [make("a")])
    (tmp_path / "logs" / "latest.jsonl").symlink_to("a.jsonl")
    monkeypatch.chdir(tmp_path)
    assert ids(["logs", "./logs/a.jsonl", str(tmp_path / "logs" / "*.jsonl")]) == ["a"]


def test_a_file_that_vanishes_before_its_turn_is_a_problem(tmp_path: Path) -> None:
    for name in "abc":
        write_traces(tmp_path / f"{name}.jsonl.gz", [make(name)])
    reader = read_traces(tmp_path)
    (tmp_path / "b.jsonl.gz").unlink()
    assert [t.id for t in reader] == ["a", "c"]
    assert [Path(problem.file).name for problem in reader.problems] == ["b.jsonl.gz"]
    assert "No such file" in reader.problems[0].reason


def test_what_cannot_be_opened_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        read_traces(tmp_path / "none.jsonl")
    with pytest.raises(DataError, match="holds no trace files"):
        read_traces(tmp_path)
    with pytest.raises(DataError, match="no file matches"):
        read_traces(tmp_path / "*.jsonl")
    with pytest.raises(InvalidValueError, match=r"choose one of: .*deltah, .*openai"):
        read_traces(tmp_path, format="csv")
    path = tmp_path / "t.jsonl"
    path.touch()
    assert ids(path) == []
    with pytest.raises(InvalidValueError, match="vocab_size"):
        read_traces(path, vocab_size=0)


def test_stated_format_is_not_second_guessed(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_bytes(line([user(), assistant([token("a")])], id="x"))
    assert ids(path, format="openai") == ["x"]
    assert ids(path, format="deltah") == []


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl.zst"
    write_traces(path, (make(str(i)) for i in range(100)))
    block = b"".join(encode(make(str(i))) + b"\n" for i in range(5_000))
    path.write_bytes(zstd.compress(block) * 4)
    tracemalloc.start()
    assert sum(1 for _ in read_traces(path)) == 20_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4e6


def test_overlong_line_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deltah.traces.files, "MAX_LINE_BYTES", 10_000)
    path = tmp_path / "t.jsonl"
    path.write_bytes(b"x" * 10_000_000 + b"\n" + encode(make("a")) + b"\n")
    reader = read_traces(path)
    assert [t.id for t in reader] == ["a"]
    assert [(p.line, "longer than" in p.reason) for p in reader.problems] == [(1, True)]


DATA = Path(__file__).parent / "data"


@pytest.mark.parametrize(
    ("name", "n_read", "unit"),
    [("inspect.eval", 4, "sample"), ("inspect.json", None, "sample"), ("trl.parquet", None, "row")],
)
def test_recorded_logs_of_other_programs_are_told_by_content(
    tmp_path: Path, name: str, n_read: int | None, unit: str
) -> None:
    path = tmp_path / "no-suffix"
    path.write_bytes((DATA / name).read_bytes())
    reader = read_traces(path, strict=True)
    found = list(reader)
    assert found
    assert len(found) == (n_read or len(found))
    assert {t.calls[0].name for t in found if t.calls} <= {"population", "search", "lookup"}
    path.write_bytes((DATA / name).read_bytes()[: path.stat().st_size // 2])
    reader = read_traces(path)
    list(reader)
    assert reader.n_problems >= 1
    assert reader.problems[0].unit == unit


def test_parquet_is_written_and_read_by_name_and_content(tmp_path: Path) -> None:
    assert write_traces(tmp_path / "t.parquet", [make(str(i)) for i in range(30)]) == 30
    (tmp_path / "t.parquet").rename(tmp_path / "t.log")
    reader = read_traces(tmp_path / "t.log", strict=True)
    assert [t.id for t in reader] == [str(i) for i in range(30)]
    assert reader.n_read == 30


def test_a_folder_of_everything_is_read_in_order(tmp_path: Path) -> None:
    write_traces(tmp_path / "a.parquet", [make("a")])
    write_traces(tmp_path / "b.jsonl.zst", [make("b")])
    (tmp_path / "c.eval").write_bytes((DATA / "inspect.eval").read_bytes())
    (tmp_path / "corpus.jsonl").write_text('{"id": "1", "contents": "x"}\n')
    (tmp_path / ".hidden.jsonl").write_text("{")
    reader = read_traces(tmp_path, strict=True)
    assert [t.id for t in reader][:2] == ["a", "b"]
    assert reader.n_read == 6
    assert reader.skipped == [str(tmp_path / "corpus.jsonl")]
    assert ids([tmp_path / "a.parquet", f"{tmp_path}/*.zst"]) == ["a", "b"]


def test_json_documents_are_records(tmp_path: Path) -> None:
    log = {"messages": [user(), assistant([token("a")])]}
    for text in (json.dumps([log, log]), json.dumps([log, log], indent=2), json.dumps(log, indent=2)):
        (tmp_path / "log.json").write_text(text)
        assert len(ids(tmp_path / "log.json", strict=True)) == (1 if text.startswith("{") else 2)
    (tmp_path / "log.json").write_text('[\n{"messages": ')
    reader = read_traces(tmp_path / "log.json")
    assert [t.id for t in reader] == []
    assert "array" in reader.problems[0].reason


def test_junk_at_the_start_of_a_file_in_a_folder_hides_nothing(tmp_path: Path) -> None:
    write_traces(tmp_path / "a.jsonl", [make("a"), make("b")])
    (tmp_path / "a.jsonl").write_bytes(b"#!junk\n" + (tmp_path / "a.jsonl").read_bytes())
    (tmp_path / "server.log").write_text("INFO started\nINFO ready\n")
    (tmp_path / "tasks.jsonl").write_text('{"question": "?", "answer": "!"}\n')
    reader = read_traces(tmp_path)
    assert [t.id for t in reader] == ["a", "b"]
    assert [(Path(problem.file).name, problem.line) for problem in reader.problems] == [("a.jsonl", 1)]
    assert [Path(path).name for path in reader.skipped] == ["server.log", "tasks.jsonl"]
