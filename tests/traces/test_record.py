"""The record: exact round trips, strict JSON, versions."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deltah.core.types import (
    CallStatus,
    Estimator,
    Segment,
    SegmentKind,
    SpanQuality,
    StopReason,
    ToolCall,
    Trajectory,
)
from deltah.errors import DataError
from deltah.traces import SCHEMA_VERSION
from deltah.traces.record import CallRecord, SegmentRecord, TraceRecord, decode, encode, from_record, to_record

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
ANY_TEXT = st.text(max_size=12)
FLOATS = st.floats(width=64)


@st.composite
def trajectories(draw: st.DrawFn, text: st.SearchStrategy[str] = TEXT) -> Trajectory:
    """Any trajectory that the type allows, and no more."""
    kinds = draw(st.lists(st.sampled_from(SegmentKind), max_size=5))
    segments, stop = [], 0
    for turn, kind in enumerate(kinds):
        length = draw(st.integers(0, 4))
        segments.append(Segment(kind=kind, start=stop, stop=stop + length, turn=turn, text=draw(st.none() | text)))
        stop += length
    sampled = np.zeros(stop, dtype=bool)
    for segment in segments:
        sampled[segment.start : segment.stop] = segment.kind.sampled

    def array(values: st.SearchStrategy[float]) -> st.SearchStrategy[list[float]]:
        return st.lists(values, min_size=stop, max_size=stop)

    entropy = np.where(sampled, draw(array(st.floats(0, 20) | st.just(math.nan))), np.nan)
    bounded, measured = draw(st.booleans()), draw(st.booleans())
    width = np.array(draw(array(st.floats(0, 5) | st.just(math.inf))))
    ids = st.lists(st.integers(-(2**63), 2**63 - 1), min_size=stop, max_size=stop)
    n_calls = draw(st.integers(0, 3))
    calls = []
    for i in range(n_calls):
        answer = draw(st.none() | text)
        status = CallStatus.UNANSWERED if answer is None else draw(st.sampled_from((CallStatus.OK, CallStatus.ERROR)))
        calls.append(
            ToolCall(
                id=f"c{i}", name=draw(text), arguments=draw(text), turn=i, result=answer, status=status,
                duration_s=draw(st.none() | FLOATS),
            )
        )  # fmt: skip
    return Trajectory(
        id=draw(text),
        segments=tuple(segments),
        calls=tuple(calls),
        entropy=entropy if measured else None,
        entropy_lower=entropy * draw(st.floats(0, 1)) if measured and bounded else None,
        entropy_upper=entropy + width if measured and bounded else None,
        estimator=draw(st.sampled_from(Estimator)),
        temperature=draw(st.none() | FLOATS),
        logprobs=None if draw(st.booleans()) else np.array(draw(array(FLOATS)), dtype=np.float64),
        token_ids=None if draw(st.booleans()) else np.array(draw(ids), dtype=np.int64),
        token_texts=draw(st.none() | st.lists(text, min_size=stop, max_size=stop).map(tuple)),
        group_id=draw(st.none() | text),
        question=draw(st.none() | text),
        prediction=draw(st.none() | text),
        golden_answers=tuple(draw(st.lists(text, max_size=2))),
        outcome=draw(st.none() | st.floats(0, 1)),
        stop_reason=draw(st.sampled_from(StopReason)),
        spans=draw(st.sampled_from(SpanQuality)),
        model=draw(st.none() | text),
        metadata=draw(
            st.dictionaries(
                text, st.none() | text | st.integers(-(2**63), 2**63 - 1) | FLOATS | st.booleans(), max_size=3
            )
        ),
    )


def assert_same(left: Any, right: Any) -> None:
    """Bitwise equal, NaN equal to NaN, types included."""
    for name in Trajectory.__dataclass_fields__:
        a, b = getattr(left, name), getattr(right, name)
        if isinstance(a, np.ndarray):
            np.testing.assert_array_equal(a, b)
            assert a.dtype == b.dtype
            assert np.array_equal(np.signbit(a[a == a]), np.signbit(b[b == b]))
        else:
            assert repr(a) == repr(b), name


@given(trajectories())
@settings(max_examples=80, deadline=None)
def test_round_trip_is_exact_and_strict_json(trajectory: Trajectory) -> None:
    assert_same(from_record(to_record(trajectory)), trajectory)
    line = encode(trajectory)
    assert b"\n" not in line
    json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert_same(decode(line), trajectory)


@given(trajectories(ANY_TEXT))
@settings(max_examples=50, deadline=None)
def test_any_text_can_be_written(trajectory: Trajectory) -> None:
    again = decode(encode(trajectory))
    assert again.id == "".join("\ufffd" if "\ud800" <= c <= "\udfff" else c for c in trajectory.id)
    assert len(again) == len(trajectory)


def test_small_trajectory_is_a_small_line() -> None:
    trajectory = Trajectory(
        id="a",
        segments=(Segment(kind=SegmentKind.REASONING, start=0, stop=3, turn=0),),
        entropy=np.array([0.1, np.nan, 2.0]),
        entropy_upper=np.array([np.inf, np.nan, 2.0]),
    )
    assert encode(trajectory) == (
        b'{"schema_version":1,"id":"a","segments":[{"kind":"reasoning","start":0,"stop":3,"turn":0}],'
        b'"entropy":[0.1,null,2.0],"entropy_upper":["inf",null,2.0]}'
    )


def test_newer_version_is_named_even_if_its_fields_are_unknown() -> None:
    for line in (b'{"schema_version":2,"id":"a","segments":[]}', b'{"schema_version":2,"id":{"new":1}}'):
        with pytest.raises(DataError, match=r"version 2, this release of deltah reads version 1.*upgrade"):
            decode(line)
    assert SCHEMA_VERSION == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"schema_version":0,"id":"a","segments":[]}', "version 0"),
        (b'{"schema_version":1,"id":"a"}', "segments"),
        (b'{"schema_version":1,"id":"a","segments":[],"entropy":["x"]}', r"entropy\[0\]"),
        (b'{"schema_version":1,"id":"a","segments":[],"entropy":[1.0]}', "one number per token"),
        (b'{"schema_version":1,"id":"a","segments":[{"kind":"poem","start":0,"stop":1,"turn":0}]}', "poem"),
        (b'{"schema_version":1,"id":"a","segments":[{"kind":"call","start":2,"stop":3,"turn":0}]}', "without gap"),
        (
            b'{"schema_version":1,"id":"a","segments":[],"calls":[{"id":"c","name":"f","arguments":"","turn":-1}]}',
            "call 'c': turn is -1; expected the index of an assistant message",
        ),
        (b'{"schema_version":1,"id":"a","segments":[],"outcome":1.5}', "outcome"),
        (b'{"schema_version":1,"id":"a","segments":[],"token_ids":[99999999999999999999]}', "64 bits|token_ids"),
        (b'{"schema_version":1,"id":"a","segme', "not valid JSON"),
        (b"[1]", "object"),
        (b'{"schema_version":1,"new":' + b"[" * 100_000, "too deeply"),
    ],
)
def test_broken_records_name_the_field(line: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        decode(line)


def test_records_from_lenient_writers_are_read() -> None:
    line = (
        b'{"schema_version":1,"id":"\\ud800","segments":[{"kind":"call","start":0,"stop":1,"turn":0}],"logprobs":[NaN]}'
    )
    trajectory = decode(line)
    assert trajectory.id == "\ufffd"
    assert trajectory.logprobs is not None
    assert np.isnan(trajectory.logprobs).all()


def test_record_mirrors_every_field() -> None:
    assert set(TraceRecord.__struct_fields__) == {*Trajectory.__dataclass_fields__, "schema_version"}
    assert set(SegmentRecord.__struct_fields__) == set(Segment.__dataclass_fields__)
    assert set(CallRecord.__struct_fields__) == set(ToolCall.__dataclass_fields__)
