"""Scored calls as files: values, nulls, hostile text, every ending, an interrupted writer."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import duckdb
import pytest
from builders import make_trajectory

from deltah.calls.callfile import FIELDS, SQL_TYPES, CallWriter, call_records
from deltah.calls.waste import waste_of_calls
from deltah.core.signals import score
from deltah.core.types import Segment, SegmentKind, ToolCall, Trajectory
from deltah.errors import ConfigError, DataError

MEASURED = make_trajectory([[2.0, 1.0], [0.5], [0.75]], id="a", outcome=1.0, question="Where?")


def unmeasured(arguments: str = "{}") -> Trajectory:
    segments = (Segment(kind=SegmentKind.REASONING, start=0, stop=0, turn=0, text="x"),)
    calls = (ToolCall(id="c", name="f", arguments=arguments, turn=0, result="r", duration_s=0.5),)
    return Trajectory(id="b", segments=segments, calls=calls)


def write(path: Path, *trajectories: Trajectory) -> None:
    with CallWriter(path) as writer:
        for trajectory in trajectories:
            signal = None if trajectory.entropy is None else score(trajectory)
            records = list(call_records(trajectory, signal, waste_of_calls(trajectory)))
            writer.write(writer.encode(records), len(records))


def rows(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    if path.suffix == ".csv":
        with path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    with duckdb.connect() as database:
        found = database.execute("FROM read_parquet($file)", {"file": str(path)})
        names = [column[0] for column in found.description or ()]
        return [dict(zip(names, row, strict=True)) for row in found.fetchall()]


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_rows_by_hand(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / "new" / f"calls{suffix}"
    write(path, MEASURED, unmeasured())
    first, second, third = rows(path)
    assert tuple(first) == FIELDS
    assert (first["trajectory"], first["label"], second["label"]) == ("a", "reduced", "not_reduced")
    assert [float(first[key]) for key in ("delta_h", "lower", "upper")] == [-1.0] * 3
    assert [float(second[key]) for key in ("entropy_before", "entropy_after")] == [0.5, 0.75]
    assert [int(first[key]) for key in ("index", "round", "calls_in_round", "tokens_before")] == [1, 1, 1, 2]
    assert {third[key] for key in ("delta_h", "label", "signal", "outcome", "call_tokens")} <= {None, ""}
    assert float(third["duration_s"]) == 0.5
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_an_unknown_bound_is_null(tmp_path: Path) -> None:
    bounds = {"entropy_lower": MEASURED.entropy, "entropy_upper": None}
    state = {name: getattr(MEASURED, name) for name in MEASURED.__dataclass_fields__} | bounds
    upper = [math.nan if math.isnan(h) else math.inf for h in state["entropy"]]
    write(tmp_path / "c.jsonl", Trajectory(**(state | {"entropy_upper": upper})))
    assert [row["upper"] for row in rows(tmp_path / "c.jsonl")] == [None, None]
    assert {row["label"] for row in rows(tmp_path / "c.jsonl")} == {"undecided"}


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_hostile_arguments_stay_one_cell(tmp_path: Path, suffix: str) -> None:
    hostile = '\'; DROP \x00\x1b[31m\u202e\ud800 "x"\r\n, ' + "y" * 100_000
    write(tmp_path / f"it's{suffix}", unmeasured(hostile))
    [row] = rows(tmp_path / f"it's{suffix}")
    assert row["arguments"] == hostile.replace("\ud800", "?")


def test_no_call_gives_an_empty_table(tmp_path: Path) -> None:
    for suffix in (".jsonl", ".csv", ".parquet"):
        write(tmp_path / f"c{suffix}", make_trajectory([[1.0]], id="n"))
        assert rows(tmp_path / f"c{suffix}") == []


def test_every_field_has_a_column() -> None:
    assert tuple(SQL_TYPES) == FIELDS


def test_an_interrupted_writer_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "c.csv"
    path.write_text("old")

    def interrupted() -> None:
        with CallWriter(path) as writer:
            writer.write(writer.encode(call_records(unmeasured(), None, None)), 1)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["c.csv"]


def test_wrong_targets_are_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\.jsonl, \.csv or \.parquet"):
        CallWriter(tmp_path / "c.xlsx")
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot write"):
        CallWriter(tmp_path / "file" / "c.csv")
