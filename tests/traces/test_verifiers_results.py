"""Result rows of older verifiers: calls, results and the reward that the environment gave."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import deltah
from deltah.core.types import StopReason

ASKED = [{"role": "system", "content": "Use the map."}, {"role": "user", "content": "Which river crosses Velt?"}]
CALL = {"id": "q1", "type": "function", "function": {"name": "map", "arguments": '{"of": "Velt"}'}}
DONE = [
    {"role": "assistant", "content": "Let me see", "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "q1", "content": "The Aune crosses Velt."},
    {"role": "assistant", "content": "aune"},
]


def row(reward: Any, completion: Any = DONE, **fields: Any) -> dict[str, Any]:
    head = {"example_id": 12, "prompt": ASKED, "completion": completion, "answer": "Aune", "task": "rivers"}
    return (
        head | {"reward": reward, "metrics": {"judge": 0.5}, "judge": 0.5, "info": {}, "is_truncated": False} | fields
    )


def read(tmp_path: Path, *rows: dict[str, Any]) -> list[deltah.Trajectory]:
    file = tmp_path / "results.jsonl"
    file.write_text("".join(json.dumps(one) + "\n" for one in rows))
    reader = deltah.read_traces(file)
    found = [*reader]
    assert reader.problems == []
    return found


@pytest.mark.parametrize("call", [CALL, json.dumps(CALL), {"id": "q1", "name": "map", "arguments": '{"of": "Velt"}'}])
def test_calls_are_read_in_every_form_that_versions_write(tmp_path: Path, call: Any) -> None:
    (found,) = read(tmp_path, row(1.0, [DONE[0] | {"tool_calls": [call]}, *DONE[1:]]))
    assert [(c.id, c.name, c.arguments, c.result) for c in found.calls] == [
        ("q1", "map", '{"of": "Velt"}', "The Aune crosses Velt.")
    ]
    assert (found.question, found.group_id, found.golden_answers) == ("Which river crosses Velt?", "12", ("Aune",))
    assert found.metadata["judge"] == 0.5


@pytest.mark.parametrize("reward", [0.0, 0.75, 1])
def test_the_reward_beats_our_own_grading(tmp_path: Path, reward: float) -> None:
    file = tmp_path / "results.jsonl"
    file.write_text(json.dumps(row(reward)))
    table = deltah.read_calls(file)
    assert table.sql("SELECT outcome FROM trajectories").fetchall() == [(float(reward),)]


def test_a_reward_that_is_no_share_is_kept_beside_and_a_cut_reply_is_named(tmp_path: Path) -> None:
    first, second = read(tmp_path, row(3.5), row(0.0, [{"role": "assistant", "content": "The"}], is_truncated=True))
    assert (first.outcome, first.metadata["score_outside_0_1"]) == (None, 3.5)
    assert second.stop_reason is StopReason.LENGTH


def test_plain_texts_are_read_too(tmp_path: Path) -> None:
    said = 'I see\n<tool_call>\n{"name": "map", "arguments": {"of": "Velt"}}\n</tool_call>'
    (found,) = read(tmp_path, row(0.5, said, prompt="Which river crosses Velt?"))
    assert (found.calls[0].name, found.outcome) == ("map", 0.5)
