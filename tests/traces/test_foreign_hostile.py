"""Whatever a record of another protocol holds, reading it ends in trajectories that can be written, or in problems."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import deltah
from deltah.traces.parts import json_value
from deltah.traces.record import encode

from . import test_atif, test_ollama, test_responses, test_verifiers_results, test_verifiers_trace
from .test_anthropic import TIDE, answer, as_text, codex, events, result, said, session, text
from .test_importers_hostile import VALUES
from .test_span_formats import FORMS
from .test_wrapping import BEDROCK, CALLS, GEMINI, WHOLE, exchanges

Records = list[Any]
ASKED = {"system": "s", "messages": [said("user", "Tide?")]}
SOUND: dict[str, Callable[[], Records]] = dict(FORMS) | {
    "anthropic": lambda: [
        {"messages": [said("user", "Tide?"), said("assistant", text("a"), TIDE), said("user", result("b"))]}
    ],
    "anthropic exchange": lambda: [{"request": ASKED, "response": answer(text("a"), TIDE)}],
    "anthropic events": lambda: [{"request": ASKED, "response": events()}],
    "anthropic stream": lambda: [{"request": ASKED, "response": as_text(events())}],
    "claude code": lambda: session(("user", "Tide?", ""), ("assistant", [TIDE], "m"), ("assistant", [text("a")], "m")),
    "codex": codex,
    "gemini": lambda: [dict(zip(("request", "response"), GEMINI, strict=True))],
    "bedrock": lambda: [dict(zip(("input", "output"), BEDROCK, strict=True))],
}
SOUND |= {
    "verifiers": lambda: [test_verifiers_trace.episode(test_verifiers_trace.trace())],
    "verifiers results": lambda: [test_verifiers_results.row(1.0)],
    "responses": lambda: [test_responses.exchange([test_responses.ASKED], test_responses.FIRST)],
    "nemo gym": lambda: [test_responses.rollout(1.0, *test_responses.FIRST, test_responses.output("rain"))],
    "ollama": lambda: [test_ollama.exchange([test_ollama.ASKED], test_ollama.chunks())],
    "atif": lambda: [test_atif.trajectory(*test_atif.STEPS)],
}
SOUND |= {f"around: {name}": lambda form=form: [form()] for name, form in WHOLE.items()}
SOUND |= {f"calls: {name}": lambda form=form: [form(a, b) for a, b in exchanges()] for name, form in CALLS.items()}


def check(folder: Path, records: Records) -> int:
    path = folder / "log.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    found = list(deltah.read_traces(path))
    for trajectory in found:
        assert encode(trajectory)
    return len(found)


@pytest.mark.parametrize("name", SOUND)
def test_the_sound_records_are_read(tmp_path: Path, name: str) -> None:
    assert check(tmp_path, SOUND[name]()) == 1


@pytest.mark.parametrize("name", SOUND)
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_any_value_in_any_field(tmp_path_factory: pytest.TempPathFactory, name: str, data: st.DataObject) -> None:
    records = json.loads(json.dumps(SOUND[name]()))
    target: Any = records
    while isinstance(target, dict | list) and target:
        key = data.draw(st.sampled_from(sorted(target) if isinstance(target, dict) else range(len(target))))
        inner = json_value(target[key])
        if isinstance(inner, dict) and inner is not target[key] and inner and data.draw(st.booleans()):
            inner[data.draw(st.sampled_from(sorted(inner)))] = data.draw(VALUES)
            target[key] = json.dumps(inner)  # JSON as text is opened and closed again
            break
        if not isinstance(target[key], dict | list) or not target[key] or data.draw(st.booleans()):
            target[key] = data.draw(VALUES)
            break
        target = target[key]
    check(tmp_path_factory.getbasetemp(), records)
