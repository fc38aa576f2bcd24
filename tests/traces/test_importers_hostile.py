"""Whatever a foreign record holds, reading it ends in a trajectory that can be written, or in an error of ours."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deltah.core.types import Trajectory
from deltah.errors import DeltahError
from deltah.traces.record import encode

from .chat import eval_samples, read_as
from .test_inspect import assistant, model_event, sample
from .test_prime_rl import export
from .test_trl import row as trl_row
from .test_verl import row as verl_row

Decode = Callable[..., Trajectory]

SCALARS = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=6)
VALUES = st.recursive(
    SCALARS | st.sampled_from(["assistant", "tool", "user", "<tool_call>", "<tool_response>", "\nuser\n"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "content", "name", "type", "id", "function", "value"]), inner, max_size=4
        )
    ),
    max_leaves=10,
)
CALLED = [{"id": "c", "function": "f", "arguments": {"a": 1}}]
SOUND: dict[str, tuple[Decode, bytes]] = {
    "prime_rl": (
        partial(read_as, "prime-rl"),
        json.dumps(export(["..xx.x"], padding=0)[0][0] | {"rewards": [1.0] * 6}).encode(),
    ),
    "verl": (partial(read_as, "verl"), verl_row(gts=["a"], uid="u_1_0", acc=True)),
    "trl": (partial(read_as, "trl"), trl_row(reward=1.0, solution="a", prompt=[{"role": "user", "content": "q"}])),
    "inspect": (
        partial(read_as, "inspect"),
        sample(
            assistant([{"type": "text", "text": "a"}], tool_calls=CALLED),
            {"role": "tool", "content": "r", "tool_call_id": "c", "error": {"message": "m"}},
            events=[model_event(assistant("a")), {"event": "tool", "id": "c", "timestamp": "x"}],
            scores={"s": {"value": "C", "answer": "a"}},
            metadata={"m": 1},
            output={"choices": []},
        ),
    ),
}


def check(decode: Decode, data: bytes) -> None:
    try:
        trajectory = decode(data, vocab_size=5)
    except DeltahError:
        return
    assert encode(trajectory)


@pytest.mark.parametrize("name", SOUND)
def test_the_sound_record_is_read(name: str) -> None:
    decode, data = SOUND[name]
    assert decode(data).segments


@pytest.mark.parametrize("name", SOUND)
@given(data=st.data())
@settings(max_examples=50, deadline=None)
def test_any_value_in_any_field(name: str, data: st.DataObject) -> None:
    decode, sound = SOUND[name]
    record = json.loads(sound)
    target: Any = record
    while isinstance(target, dict | list) and target:
        key = data.draw(st.sampled_from(sorted(target) if isinstance(target, dict) else range(len(target))))
        if not isinstance(target[key], dict | list) or not target[key] or data.draw(st.booleans()):
            target[key] = data.draw(VALUES)
            break
        target = target[key]
    check(decode, json.dumps(record).encode())


@pytest.mark.parametrize("name", SOUND)
@given(at=st.integers(0, 2000), value=st.integers(0, 255), cut=st.booleans())
@settings(max_examples=50, deadline=None)
def test_any_damaged_byte_or_cut(name: str, at: int, value: int, cut: bool) -> None:
    decode, sound = SOUND[name]
    at %= len(sound)
    check(decode, sound[:at] if cut else sound[:at] + bytes([value]) + sound[at + 1 :])


@pytest.mark.parametrize("name", SOUND)
@pytest.mark.parametrize("depth", [200, 500, 980, 5000])
def test_any_depth(name: str, depth: int) -> None:
    decode, sound = SOUND[name]
    nested = b"[" * depth + b"]" * depth
    for field in ("gts", "solution", "prompt", "metadata", "messages", "extra", "events", "rewards"):
        head = json.loads(sound)
        head.pop(field, None)
        check(decode, json.dumps(head).encode()[:-1] + b', "%s": %s}' % (field.encode(), nested))


@given(at=st.integers(0, 10**6), value=st.binary(min_size=1, max_size=30), cut=st.booleans())
@settings(max_examples=30, deadline=None)
@pytest.mark.parametrize("name", ["inspect.eval", "inspect.json"])
def test_any_damage_of_a_log_file(
    tmp_path_factory: pytest.TempPathFactory, name: str, at: int, value: bytes, cut: bool
) -> None:
    sound = (Path(__file__).parent / "data" / name).read_bytes()
    at %= len(sound)
    path = tmp_path_factory.mktemp("log") / "log"
    path.write_bytes(sound[:at] if cut else sound[:at] + value + sound[at + len(value) :])
    for member in eval_samples(path):
        assert (member.damage is None) == bool(member.data)
        if member.data:
            check(partial(read_as, "inspect"), member.data)
