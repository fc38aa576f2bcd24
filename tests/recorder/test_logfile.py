"""The log of a recorder: lines stay whole, and what the disk does not take is counted."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from deltah.errors import ConfigError
from deltah.recorder.logfile import LogFile


@dataclass
class Line:
    number: int
    size: int = 100

    def line(self) -> bytes:
        return json.dumps({"n": self.number, "pad": "x" * self.size}).encode() + b"\n"


def numbers(path: Path) -> list[int]:
    return [json.loads(line)["n"] for line in path.read_text().splitlines()]


def test_lines_are_appended_and_a_cut_one_is_ended(tmp_path: Path) -> None:
    path = tmp_path / "new" / "log.jsonl"
    for n in range(2):
        log = LogFile(path, print)
        log.offer(Line(n))
        log.close()
    assert numbers(path) == [0, 1]
    with path.open("ab") as file:
        file.write(b'{"n": 2, "pa')
    log = LogFile(path, print)
    log.offer(Line(3))
    log.close()
    assert path.read_text().splitlines()[2] == '{"n": 2, "pa'
    assert json.loads(path.read_text().splitlines()[3])["n"] == 3


def test_nobody_else_writes_it(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "log.jsonl", print)
    with pytest.raises(ConfigError, match="another recorder writes"):
        LogFile(log.path, print)
    log.close()
    LogFile(log.path, print).close()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("log.jsonl.zst", b"", "plain text"),
        ("notes.txt", b"Dear all", "no log of JSON lines"),
        (".", None, "cannot append"),
    ],
)
def test_what_is_no_log_is_left_alone(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    path = tmp_path / name
    if content:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        LogFile(path, print)
    assert content is None or not content or path.read_bytes() == content


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_costs_lines_until_there_is_room(tmp_path: Path) -> None:
    path, said = tmp_path / "log.jsonl", list[str]()
    path.symlink_to("/dev/full")
    log = LogFile(path, said.append)
    for n in range(3):
        log.offer(Line(n))
    while log.n_lost < 3:
        time.sleep(0.005)
    path.unlink()
    log.offer(Line(3))
    log.close()
    assert (numbers(path), log.n_written, log.n_lost) == ([3], 1, 3)
    assert said == [f"{path}: 1 exchange not recorded so far (No space left on device); requests still pass"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes with names")
def test_a_disk_that_hangs_costs_lines_and_no_time(tmp_path: Path) -> None:
    """A pipe that nobody reads takes 64 KB, then blocks."""
    path, said = tmp_path / "log.jsonl", list[str]()
    os.mkfifo(path)
    log = LogFile(path, said.append, max_waiting_bytes=1_000_000)
    began = time.monotonic()
    for n in range(20):
        log.offer(Line(n, size=100_000))
    assert time.monotonic() - began < 1
    log.close(timeout_s=0.2)
    assert (log.n_written, log.n_lost) == (0, 20)
    assert "slower than the lines come" in said[0]


def test_a_log_that_is_moved_is_begun_again(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "log.jsonl", print)
    log.offer(Line(0))
    while log.n_written < 1:
        time.sleep(0.005)
    log.path.rename(tmp_path / "log.jsonl.1")
    log.offer(Line(1))
    log.close()
    assert (numbers(tmp_path / "log.jsonl.1"), numbers(log.path)) == ([0], [1])


def test_a_line_that_cannot_be_made_is_one_line_lost(tmp_path: Path) -> None:
    class Broken(Line):
        def line(self) -> bytes:
            raise KeyError("response")

    log = LogFile(tmp_path / "log.jsonl", lambda sentence: None)
    for line in (Broken(0), Line(1)):
        log.offer(line)
    log.close()
    assert (numbers(log.path), log.n_lost) == ([1], 1)
