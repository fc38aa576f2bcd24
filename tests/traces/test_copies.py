"""A log that lies in a folder plain and compressed is read once, one that differs is not lost."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import deltah.traces.copies
import pytest
from typer.testing import CliRunner

from deltah.cli.app import app
from deltah.compression import zstd
from deltah.traces import TraceReader, read_traces
from deltah.traces.record import encode

from .test_parts import in_parts
from .test_reader import make

LINES = [encode(make(f"t{i}")) + b"\n" for i in range(6)]
PACKED: dict[str, Callable[[bytes], bytes]] = {"": bytes, ".gz": gzip.compress, ".zst": zstd.compress}


def write(folder: Path, **content: bytes) -> Path:
    """Logs by the ending of their compression: `plain`, `gz`, `zst`."""
    folder.mkdir(exist_ok=True)
    for name, data in content.items():
        ending = "" if name == "plain" else f".{name}"
        (folder / f"a.jsonl{ending}").write_bytes(PACKED[ending](data))
    return folder


def read(paths: Path | Sequence[Path | str]) -> tuple[list[str], list[tuple[str, str]], TraceReader]:
    """Ids, and file names of what was left out with what it repeats; alike by parts."""
    whole, parts = read_traces(paths), read_traces(paths)
    found = [t.id for t in whole]
    assert sorted(t.id for t in in_parts(parts)[0]) == sorted(found)
    assert parts.copies == whole.copies
    assert [t.id for t in whole] == found, "a reader can be iterated again"
    return found, [(os.path.basename(copy.path), os.path.basename(copy.of)) for copy in whole.copies], whole


def names(*numbers: int) -> list[str]:
    return [f"t{i}" for i in numbers]


@pytest.mark.parametrize("block", [7, 2**18])
@pytest.mark.parametrize("ending", ["gz", "zst"])
def test_a_compressed_copy_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str, block: int
) -> None:
    monkeypatch.setattr(deltah.traces.copies, "_BLOCK_BYTES", block)
    whole = b"".join(LINES)
    folder = write(tmp_path / "logs", **{"plain": whole, ending: whole})
    assert read(folder)[:2] == (names(*range(6)), [(f"a.jsonl.{ending}", "a.jsonl")])
    assert read([tmp_path / "logs" / "*"])[:2] == (names(*range(6)), [(f"a.jsonl.{ending}", "a.jsonl")])


def test_a_log_that_grew_after_it_was_copied_holds_the_copy(tmp_path: Path) -> None:
    folder = write(tmp_path / "logs", plain=b"".join(LINES), gz=b"".join(LINES[:4]))
    assert read(folder)[:2] == (names(*range(6)), [("a.jsonl.gz", "a.jsonl")])


def test_a_copy_that_was_cut_off_is_left_out_whichever_it_is(tmp_path: Path) -> None:
    whole = b"".join(LINES)
    folder = write(tmp_path / "plain", plain=whole[:-9], gz=whole)
    found, copies, reader = read(folder)
    assert (found, copies, reader.n_problems) == (names(*range(6)), [("a.jsonl", "a.jsonl.gz")], 0)
    folder = write(tmp_path / "packed", plain=whole)
    noise = whole + os.urandom(2**16).hex().encode()  # so that what is cut off is long enough to come out in part
    (folder / "a.jsonl").write_bytes(noise)
    (folder / "a.jsonl.gz").write_bytes(gzip.compress(noise)[:-2000])
    assert read(folder)[1] == [("a.jsonl.gz", "a.jsonl")]


def test_other_lines_of_the_same_name_are_read(tmp_path: Path) -> None:
    """Rotation: what was logged before is compressed, the log goes on anew."""
    folder = write(tmp_path / "logs", plain=b"".join(LINES[4:]), gz=b"".join(LINES[:4]))
    found, copies, _ = read(folder)
    assert sorted(found) == names(*range(6))
    assert copies == []
    write(folder, plain=b"".join(LINES[:3]) + LINES[5], gz=b"".join(LINES[:4]))
    assert sorted(read(folder)[0]) == names(0, 0, 1, 1, 2, 2, 3, 5)


def test_an_empty_log_repeats_nothing(tmp_path: Path) -> None:
    folder = write(tmp_path / "logs", plain=b"", gz=b"".join(LINES))
    assert read(folder)[:2] == (names(*range(6)), [])
    write(folder, gz=b"", plain=b"".join(LINES))
    assert read(folder)[:2] == (names(*range(6)), [])


def test_of_three_one_is_read(tmp_path: Path) -> None:
    whole = b"".join(LINES)
    folder = write(tmp_path / "logs", plain=whole, gz=whole, zst=b"".join(LINES[:2]))
    assert read(folder)[:2] == (names(*range(6)), [("a.jsonl.gz", "a.jsonl"), ("a.jsonl.zst", "a.jsonl")])
    (folder / "a.jsonl").unlink()
    assert read(folder)[:2] == (names(*range(6)), [("a.jsonl.zst", "a.jsonl.gz")])


def test_files_that_were_named_stay(tmp_path: Path) -> None:
    whole = b"".join(LINES)
    folder = write(tmp_path / "logs", plain=whole, gz=whole)
    twice = sorted(names(*range(6)) * 2)
    assert sorted(read([folder / "a.jsonl", folder / "a.jsonl.gz"])[0]) == twice
    found, copies, _ = read([folder, folder / "a.jsonl.gz"])
    assert (found, copies) == (names(*range(6)), [("a.jsonl", "a.jsonl.gz")])
    write(tmp_path / "others", gz=whole)
    assert sorted(read([folder, tmp_path / "others"])[0]) == twice, "other folders are other logs"


def test_the_command_says_which_file_repeats_which(tmp_path: Path) -> None:
    whole = b"".join(LINES)
    folder = write(tmp_path / "logs", plain=whole, gz=whole)
    result = CliRunner().invoke(app, ["score", str(folder), "--json"])
    assert result.exit_code == 0, result.output
    copy = f"{folder / 'a.jsonl.gz'} (repeats {folder / 'a.jsonl'})"
    summary = json.loads(result.stdout)
    assert summary["trajectories"] == 6
    assert f"Left out 1 file for repeating others, plain or compressed: {copy}." in summary["notes"]
    assert f"passed over: {copy}" in result.stderr
