"""Whatever a log holds, reading it ends in a trajectory or in a `ReadProblem`, never in another exception."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from deltah.errors import DeltahError
from deltah.traces import read_traces
from deltah.traces.files import Source
from deltah.traces.importing import IMPORTERS
from deltah.traces.reader import Reading, ReadOptions
from deltah.traces.record import encode

from .chat import assistant, call, line, result, token, user

SCALARS = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=6)
KEYS = st.sampled_from(
    ["schema_version", "id", "segments", "messages", "role", "content", "logprobs", "top_logprobs", "token", "logprob",
     "bytes", "tool_calls", "function", "name", "arguments", "request", "response", "choices", "message", "score",
     "loss_mask", "token_ids", "entropy", "epoch", "target", "input", "output", "step", "prompt", "completion"]
)  # fmt: skip
JSON_VALUES = st.recursive(
    SCALARS | st.sampled_from(["assistant", "tool", "user"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=14,
)


def check(data: bytes) -> None:
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        for format in (None, *IMPORTERS):
            reading = Reading(ReadOptions(format=format, vocab_size=5))
            try:
                for trajectory in (*reading.file(Source(file.name, True)), *reading.finish()):
                    assert encode(trajectory)
            except DeltahError:
                continue


@given(st.dictionaries(KEYS, JSON_VALUES, max_size=5))
@settings(max_examples=200, deadline=None)
def test_any_json(value: dict[str, Any]) -> None:
    check(json.dumps(value).encode())


@given(st.binary(max_size=60))
@settings(deadline=None)
def test_any_bytes(data: bytes) -> None:
    check(data)


SOUND = line(
    [user(), assistant([token("a"), token("<tool_call>")], tool_calls=[call()]), result("r"), assistant([token("b")])],
    vocab_size=3,
)


@given(st.integers(0, len(SOUND) - 1), st.integers(0, 255), st.booleans())
@settings(max_examples=300, deadline=None)
def test_any_damaged_byte_or_cut(at: int, value: int, cut: bool) -> None:
    check(SOUND[:at] if cut else SOUND[:at] + bytes([value]) + SOUND[at + 1 :])


@given(at=st.lists(JSON_VALUES, min_size=4, max_size=4))
@settings(max_examples=200, deadline=None)
def test_any_value_in_any_field(at: list[Any]) -> None:
    entry = {"token": "a", "logprob": at[0], "top_logprobs": at[1]}
    check(line([user(), assistant([entry], tool_calls=at[2], content=at[3])]))


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    text = "<script>alert(1)</script>\x1b[31m\u202e\x00" + "x" * 1_000_000
    path = tmp_path / "t"
    path.write_bytes(line([user(text), assistant([token(text)], tool_calls=[call(arguments=text)]), result(text)]))
    [trajectory] = read_traces(path, strict=True)
    assert trajectory.calls[0].arguments == trajectory.calls[0].result == trajectory.question == text
