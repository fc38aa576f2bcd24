"""Taking Inspect logs apart: real files, then damaged ones."""

from __future__ import annotations

import io
import json
import re
import tracemalloc
import zipfile
import zlib
from pathlib import Path
from typing import Any

import pytest

from deltah.jsonlines import zstd
from deltah.traces.files import is_inspect_log

from .chat import eval_samples

DATA = Path(__file__).parent / "data"
REAL = (DATA / "inspect.eval").read_bytes()
NAMES = [f"samples/{id}_epoch_{n}.json" for n in (1, 2) for id in ("anselm", "2")]


def read(tmp_path: Path, data: bytes) -> list[tuple[str, bool]]:
    """(member's name, or what is damaged; whether it is sound) of each sample."""
    path = tmp_path / "log"
    path.write_bytes(data)
    found = []
    for number, line in enumerate(eval_samples(path), start=1):
        assert line.number == number
        if line.damage is None:
            sample = json.loads(line.data)
            found.append((f"samples/{sample['id']}_epoch_{sample.get('epoch', 1)}.json", True))
        else:
            assert not line.data
            found.append((re.match(r"samples/\S+(?=:)|the \w+", line.damage)[0], False))
    return found


def archive(members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as file:
        for name, data in members.items():
            file.writestr(name, data)
    return out.getvalue()


def test_members_of_a_real_log_are_compressed_with_zstandard_and_whole(tmp_path: Path) -> None:
    with zipfile.ZipFile(DATA / "inspect.eval") as file:
        assert {info.compress_type for info in file.infolist()} == {93}
    assert sorted(read(tmp_path, REAL)) == sorted((name, True) for name in NAMES)


def test_json_and_eval_hold_samples_of_one_shape(tmp_path: Path) -> None:
    members = list(eval_samples(DATA / "inspect.json"))
    assert [member.number for member in members] == [1, 2]
    of_zip = json.loads(next(iter(eval_samples(DATA / "inspect.eval"))).data)
    assert set(json.loads(members[0].data)) | {"metadata"} == set(of_zip) | {"metadata"}


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_older_compression_nested_ids_and_repeated_names(tmp_path: Path, method: int) -> None:
    members = {"header.json": b"{}", "samples/a/b_epoch_1.json": b'{"id": "a/b"}', "summaries.json": b"[]"}
    data = archive(members, method)
    assert read(tmp_path, data) == [("samples/a/b_epoch_1.json", True)]
    out = io.BytesIO(data)
    with zipfile.ZipFile(out, "a") as file, pytest.warns(UserWarning, match="Duplicate"):
        file.writestr("samples/a/b_epoch_1.json", b'{"id": 2}')
    (tmp_path / "twice").write_bytes(out.getvalue())
    [member] = eval_samples(tmp_path / "twice")
    assert member.data == b'{"id": 2}'


def claim(data: bytes, *, method: int | None = None, content: bytes | None = None, size: int | None = None) -> bytes:
    """Change what the headers of the first member say of it."""
    out, directory = bytearray(data), data.index(b"PK\x01\x02")
    for start, shift in ((0, 0), (directory, 2)):
        at = start + shift
        if method is not None:
            out[at + 8 : at + 10] = method.to_bytes(2, "little")
        if content is not None:
            out[at + 14 : at + 18] = zlib.crc32(content).to_bytes(4, "little")
        if size is not None:
            out[at + 22 : at + 26] = size.to_bytes(4, "little")
    return bytes(out)


def test_a_member_of_several_zstandard_frames(tmp_path: Path) -> None:
    pack, whole = zstd.compress, b'{"id": 12}'
    stored = archive({"samples/a_epoch_1.json": pack(whole[:6]) + pack(whole[6:])}, zipfile.ZIP_STORED)
    (tmp_path / "log").write_bytes(claim(stored, method=93, content=whole, size=len(whole)))
    [member] = eval_samples(tmp_path / "log")
    assert (member.data, member.damage) == (whole, None)
    assert read(tmp_path, claim(stored, method=14)) == [("samples/a_epoch_1.json", False)]


def test_a_damaged_member_does_not_cost_the_others(tmp_path: Path) -> None:
    with zipfile.ZipFile(DATA / "inspect.eval") as file:
        info = file.getinfo(NAMES[1])
        body = info.header_offset + 30 + len(info.filename)
    data = bytearray(REAL)
    data[body + 40 : body + 60] = bytes(20)
    found = read(tmp_path, bytes(data))
    assert dict(found) == {name: name != NAMES[1] for name in NAMES}


@pytest.mark.parametrize("share", [0.999, 0.5, 0.01])
def test_a_cut_zip_is_one_problem(tmp_path: Path, share: float) -> None:
    assert read(tmp_path, REAL[: int(len(REAL) * share)]) == [("the zip", False)]


def test_a_cut_json_log_gives_the_samples_before_the_cut_and_says_so(tmp_path: Path) -> None:
    data = (DATA / "inspect.json").read_bytes()
    second = data.index(b'"id": "anselm",\n      "epoch"')
    assert read(tmp_path, data[: second + 50]) == [(NAMES[1], True), ("the document", False)]
    assert read(tmp_path, data[:400]) == [("the document", False)]
    assert read(tmp_path, data[: data.index(b'"reductions"')]) == [(NAMES[1], True), (NAMES[0], True)]


def test_a_json_log_with_not_a_number_and_sample_counts_elsewhere(tmp_path: Path) -> None:
    log: dict[str, Any] = {"version": 2, "eval": {"samples": [1]}, "samples": [{"value": float("nan")}, {}], "after": 1}
    path = tmp_path / "log.json"
    path.write_text(json.dumps(log))
    assert [member.data for member in eval_samples(path)] == [b'{"value": NaN}', b"{}"]


@pytest.mark.parametrize("data", [b'{"version": 2, "eval": {}}', b'{"samples": []}', archive({"header.json": b"{}"})])
def test_a_log_without_samples_says_so(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "log").write_bytes(data)
    [member] = eval_samples(tmp_path / "log")
    assert member.damage is not None
    assert "no samples" in member.damage


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04", b"PK\x03\x04" + b"\xff" * 100, b"text", b"[1]", b"[" * 100_000])
def test_a_file_that_is_no_log_is_one_problem(tmp_path: Path, data: bytes) -> None:
    assert [sound for _, sound in read(tmp_path, data)] == [False]


def test_the_chunked_shape_is_reported(tmp_path: Path) -> None:
    shape = {"samples/a_epoch_1/sample.json": b"{}", "samples/a_epoch_1/messages/0.json": b"[]"}
    assert read(tmp_path, archive(shape | {"samples/b_epoch_1.json": b'{"id": "b"}'})) == [
        ("samples/a_epoch_1/sample.json", False),
        ("samples/b_epoch_1.json", True),
    ]


def test_a_bomb_is_not_unpacked(tmp_path: Path) -> None:
    bomb = archive({"samples/a_epoch_1.json": b" " * 5_000_000})
    assert read(tmp_path, claim(bomb, size=10)) == [("samples/a_epoch_1.json", False)]


def test_memory_holds_one_sample(tmp_path: Path) -> None:
    megabyte = json.dumps({"id": "x" * 2**20}).encode()
    (tmp_path / "log").write_bytes(archive({f"samples/{i}_epoch_1.json": megabyte for i in range(20)}))
    tracemalloc.start()
    assert sum(len(member.data) for member in eval_samples(tmp_path / "log")) == 20 * len(megabyte)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5 * len(megabyte)


def test_a_log_is_known_by_its_first_bytes() -> None:
    assert is_inspect_log(REAL[:1000])
    assert is_inspect_log((DATA / "inspect.json").read_bytes()[:1000])
    assert not is_inspect_log(b'{"messages": [], "version": 1, "status": "x"}')
