"""Columns of calls from files: what is read, what is ignored, what is refused and how it is said."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from builders import make_trajectory

from deltah.calls.table import CallTable
from deltah.errors import DataError
from deltah.stats.labels import read_call_values


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_csv(tmp_path: Path) -> None:
    file = write(
        tmp_path / "labels.csv",
        "trajectory,call,good,grade,who,delta_h\n"
        "t1,a,yes,0.5,Mira,-0.1\n"
        "t1,b,FALSE,,Mira,0.2\n"
        't2,"a,1",,nan,Tomas,0.3\n',
    )
    assert read_call_values(file) == {
        ("t1", "a"): {"good": 1.0, "grade": 0.5},
        ("t1", "b"): {"good": 0.0},
        ("t2", "a,1"): {},
    }


def test_json_lines_may_be_compressed_and_text_stays_text(tmp_path: Path) -> None:
    rows = [
        {"trajectory": "t", "call": "a", "good": True, "note": "0.5", "nested": {"x": 1}, "absent": None},
        {"trajectory": 7, "call": 1, "good": False, "absent": 2},
    ]
    path = tmp_path / "labels.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    assert read_call_values(path) == {("t", "a"): {"good": 1.0}, ("7", "1"): {"good": 0.0, "absent": 2.0}}


def test_only_the_named_columns_are_looked_at(tmp_path: Path) -> None:
    """A probe's infinite bound, or a column of its own that mixes kinds, is none of the study's business."""
    file = write(
        tmp_path / "probe.jsonl", '{"trajectory": "t", "call": "a", "useful": true, "upper": "inf", "mixed": 1}\n'
    )
    assert read_call_values(file, only=("useful", "upper")) == {("t", "a"): {"useful": 1.0}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("trajectory,call,good\nt,a,1\nt,a,0\n", r"labels\.csv:3: call 'a' of trajectory 't' is already on line 2"),
        ("trajectory,call,good\nt,a,1\nt,b,maybe\n", r"labels\.csv:3: column 'good' is 'maybe', elsewhere a number"),
        ("trajectory,call,good\nt,a,1\nt,b,inf\n", r"labels\.csv:3: column 'good' is 'inf', elsewhere a number"),
        (
            "trajectory,good\nt,1\n",
            r"labels\.csv:2: column 'call' is missing; got the columns \['good', 'trajectory'\]",
        ),
        ("trajectory,call,good\nt,,1\n", r"labels\.csv:2: column 'call' is ''"),
        ("trajectory,call,good\nt,a,1,2\n", r"labels\.csv:2: the row has more cells than the header"),
        ("trajectory,call,who\nt,a,Mira\n", "no column of numbers or booleans"),
        ("", "no column of numbers or booleans"),
        ('trajectory,call,good\nt,"a,1\n', "not readable as CSV"),
    ],
)
def test_what_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_call_values(write(tmp_path / "labels.csv", text))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot read it"):
        read_call_values(tmp_path / "absent.csv")
    (tmp_path / "latin.csv").write_bytes(b"trajectory,call,good\nt\xe9,a,1\n")
    with pytest.raises(DataError, match="not readable as CSV in UTF-8"):
        read_call_values(tmp_path / "latin.csv")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("labels.txt", b"call c0 of q1 was good\n"),
        ("labels.txt", b"trajectory,call,good\nt,a,1\n"),
        ("labels.json", b'[{"trajectory": "t", "call": "a", "good": 1}]'),
        ("labels.xlsx", b"PK\x03\x04\xff\xfe\x00\x01"),
        ("labels.csv.gz", gzip.compress(b"trajectory,call,good\nt,a,1\n")),
    ],
)
def test_a_file_of_another_kind_is_one_sentence_that_names_both(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_call_values(tmp_path / name)
    said = str(caught.value)
    assert said.startswith(f"{tmp_path / name}: its first row is not a JSON object, and its name does not end in .csv")
    assert "a file that ends in .csv" in said
    assert '{"trajectory": "a", "call": "c0", "good": 1}' in said


def test_a_later_broken_row_and_a_missing_file_keep_their_own_words(tmp_path: Path) -> None:
    broken = write(tmp_path / "labels.jsonl", '{"trajectory": "t", "call": "a", "good": 1}\nbroken\n')
    with pytest.raises(DataError, match=r"labels\.jsonl:2: the line is not JSON"):
        read_call_values(broken)
    with pytest.raises(DataError, match="cannot read it"):
        read_call_values(tmp_path / "absent.txt")


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_a_label_added_to_the_file_of_score_is_the_only_one(tmp_path: Path, suffix: str) -> None:
    path, trajectory = tmp_path / f"calls{suffix}", make_trajectory([[1.0], [0.5], [0.2]])
    CallTable.of([trajectory]).write(path)
    lines = path.read_text().splitlines()
    if suffix == ".csv":
        path.write_text("\n".join(f"{line},{'mine' if i == 0 else i % 2}" for i, line in enumerate(lines)) + "\n")
    else:
        path.write_text("\n".join(json.dumps(json.loads(line) | {"mine": i % 2}) for i, line in enumerate(lines)))
    assert {name for row in read_call_values(path).values() for name in row} == {"mine"}
