"""Importers: a format of one's own is one function; formats are told apart by their fields."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from deltah.core.types import Segment, SegmentKind, Trajectory
from deltah.errors import DataError, InvalidValueError
from deltah.traces import read_traces
from deltah.traces.importing import IMPORTERS, RecordContext, detect


def steps(record: dict[str, Any], context: RecordContext) -> Trajectory:
    """Log of steps."""
    segments = tuple(
        Segment(kind=SegmentKind.REASONING, start=0, stop=0, turn=turn, text=text)
        for turn, text in enumerate(record["steps"])
    )
    return Trajectory(id=context.default_id, segments=segments)


def test_a_function_of_ones_own_reads_the_records_it_is_named_for(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"steps": ["a", "b"]}\n{"steps": ["c"]}\n')
    found = list(read_traces(tmp_path, format=f"{__name__}:steps", strict=True))
    assert [(t.id, [s.text for s in t.segments]) for t in found] == [
        ("a.jsonl:1", ["a", "b"]),
        ("a.jsonl:2", ["c"]),
    ]


def test_a_field_that_an_importer_asks_for_in_vain_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"step": []}\n{"steps": ["c"]}\n')
    reader = read_traces(tmp_path, format=f"{__name__}:steps")
    assert [t.id for t in reader] == ["a.jsonl:2"]
    assert [problem.reason for problem in reader.problems] == ["field steps: missing"]


def test_a_registered_format_is_told_by_its_fields(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(IMPORTERS, "_entries", dict(IMPORTERS._entries))
    IMPORTERS.register("steps", fields=("steps", ("id", "name")))(steps)
    assert IMPORTERS["steps"].meaning == "Log of steps"
    (tmp_path / "a.jsonl").write_text('{"steps": ["a"], "name": 1}\n{"steps": ["b"]}\n')
    reader = read_traces(tmp_path / "a.jsonl")
    assert [t.id for t in reader] == ["a.jsonl:1", "a.jsonl:2"], "the format of the record before is tried first"
    assert detect(b'{"steps": 1, "id": 2}').name == "steps"
    with pytest.raises(DataError, match="no known trace format"):
        detect(b'{"steps": 1}')


@pytest.mark.parametrize(
    ("names", "format"),
    [
        (("schema_version", "segments"), "deltah"),
        (("schema_version", "loss_mask", "token_ids", "entropy"), "prime-rl"),
        (("schema_version", "messages"), "deltah"),
        (("messages", "id"), "openai"),
        (("choices",), "openai"),
        (("epoch", "target", "messages"), "inspect"),
        (("input", "output", "score", "step", "messages"), "verl"),
        (("prompt", "completion", "step"), "trl"),
    ],
)
def test_of_several_formats_the_one_with_most_fields_counts(names: tuple[str, ...], format: str) -> None:
    assert detect(json.dumps(dict.fromkeys(names)).encode()).name == format


def test_an_unknown_format_names_the_choices() -> None:
    with pytest.raises(InvalidValueError, match=r"choose one of: .*openai.*package\.module:function"):
        read_traces("-", format="opnai")
