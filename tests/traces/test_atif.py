"""ATIF trajectories: calls, results, costs and subagents."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import deltah
from deltah.core.types import SegmentKind


def step(source: str, message: Any, calls: list[tuple[str, str]] | None = None, **fields: Any) -> dict[str, Any]:
    """One step; its calls are ids with their results."""
    made = [
        {"tool_call_id": id, "function_name": "bash", "arguments": {"command": f"cat {id}"}} for id, _ in calls or []
    ]
    got = {"results": [{"source_call_id": id, "content": text} for id, text in calls or []]}
    return {"source": source, "message": message} | ({"tool_calls": made, "observation": got} if calls else {}) | fields


def trajectory(*steps: dict[str, Any], **fields: Any) -> dict[str, Any]:
    agent = {"name": "terminus", "version": "2", "model_name": "glm-4.6"}
    numbered = [{"step_id": i} | one for i, one in enumerate(steps, start=1)]
    return {"schema_version": "ATIF-v1.5", "session_id": "s7", "agent": agent, "steps": numbered} | fields


STEPS = (
    step("system", "You are in a shell."),
    step("user", "What is the port?"),
    step("agent", "Look.", [("b", "80"), ("a", "no such file")], metrics={"cost_usd": 0.25}),
    step("agent", "80", metrics={"cost_usd": 0.5, "completion_token_ids": [1], "logprobs": [-0.1]}),
)


def read(tmp_path: Path, record: dict[str, Any], **style: Any) -> list[deltah.Trajectory]:
    file = tmp_path / "trajectory.json"
    file.write_text(json.dumps(record, **style))
    reader = deltah.read_traces(file)
    found = [*reader]
    assert reader.problems == []
    return found


@pytest.mark.parametrize("style", [{}, {"indent": 2}])
def test_steps_become_turns_with_calls_and_results(tmp_path: Path, style: dict[str, Any]) -> None:
    (found,) = read(tmp_path, trajectory(*STEPS), **style)
    assert [(c.id, c.name, c.arguments, c.result, c.turn) for c in found.calls] == [
        ("b", "bash", '{"command":"cat b"}', "80", 0),
        ("a", "bash", '{"command":"cat a"}', "no such file", 0),
    ]
    assert (found.id, found.model, found.question, found.prediction) == ("s7", "glm-4.6", "What is the port?", "80")
    assert found.metadata["cost"] == 0.75
    assert found.entropy is None


def test_results_belong_to_their_call_whatever_their_order(tmp_path: Path) -> None:
    mixed = step("agent", "", [("x", "1"), ("y", "2")])
    mixed["observation"]["results"].reverse()
    (found,) = read(tmp_path, trajectory(STEPS[1], mixed))
    assert [(c.id, c.result) for c in found.calls] == [("x", "1"), ("y", "2")]


def test_what_the_environment_says_without_a_call_is_no_result(tmp_path: Path) -> None:
    acted = step("agent", "```bash\nls\n```", observation={"results": [{"content": "a.txt"}]})
    (found,) = read(tmp_path, trajectory(STEPS[1], acted, STEPS[3]))
    assert found.calls == ()
    assert [s.text for s in found.segments if s.kind is SegmentKind.PROMPT] == ["What is the port?", "a.txt"]


def test_reasoning_and_a_reward_are_kept(tmp_path: Path) -> None:
    thinking = step("agent", "80", reasoning_content="It is the usual one.")
    (found,) = read(tmp_path, trajectory(STEPS[1], thinking, extra={"reward": 0.0}))
    assert found.outcome == 0.0
    assert [s.text for s in found.segments] == ["What is the port?", "It is the usual one.", "80"]


def test_what_was_copied_from_an_earlier_trajectory_is_context(tmp_path: Path) -> None:
    copied = [dict(one, is_copied_context=True) for one in STEPS[:3]]
    (found,) = read(tmp_path, trajectory(*copied, STEPS[3], continued_trajectory_ref="trajectory.cont-1.json"))
    assert found.calls == ()
    assert found.prediction == "80"


def test_subagents_are_trajectories_of_their_own(tmp_path: Path) -> None:
    ask = step("agent", "", [("d", "")])
    ask["observation"]["results"][0] |= {"content": None, "subagent_trajectory_ref": [{"trajectory_id": "child"}]}
    child = trajectory(STEPS[1], STEPS[3], trajectory_id="child")
    main, sub = read(tmp_path, trajectory(STEPS[1], ask, STEPS[3], subagent_trajectories=[child]))
    assert (main.id, sub.id) == ("s7", "child")
    assert main.calls[0].result is not None
    assert "child" in main.calls[0].result


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (trajectory(*STEPS) | {"schema_version": "ATIF-v2.0"}, "ATIF-v2.0"),
        (trajectory(STEPS[0]), "no step of source 'agent'"),
    ],
)
def test_what_does_not_fit_is_a_problem(tmp_path: Path, record: dict[str, Any], reason: str) -> None:
    file = tmp_path / "trajectory.json"
    file.write_text(json.dumps(record))
    reader = deltah.read_traces(file)
    assert [*reader] == []
    assert reason in reader.problems[0].reason
