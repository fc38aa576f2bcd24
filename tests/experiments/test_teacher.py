"""The teacher answers as often and calls as much as its habits say, with the real tools and the same seed."""

from __future__ import annotations

import re
from dataclasses import asdict, replace

import numpy as np
import pytest
from coldstart.sequences import world_tools
from coldstart.teacher import Message, TeacherConfig, Tools, count_calls, rollout, search_query

from deltah.lab.questions import Compute, Lookup, Question, questions
from deltah.lab.world import Split, World

PERFECT = TeacherConfig(
    verify_known=0.0,
    wrong_belief=0.0,
    trust_guess=0.0,
    wrong_query=0.0,
    repeat=0.0,
    recheck=0.0,
    parallel=0.0,
    wrong_answer=0.0,
)


def answers(conversations: list[list[Message]]) -> list[str]:
    found = [re.search(r"<answer> (.*)</answer>$", messages[-1]["content"]) for messages in conversations]
    assert all(found)
    return [match.group(1) for match in found if match]


def ask_all(asked: list[Question], tools: Tools, config: TeacherConfig) -> list[list[Message]]:
    rng = np.random.default_rng(0)
    return [rollout(question, tools, config, rng) for question in asked]


def test_without_vices_it_makes_exactly_the_needed_calls_and_is_right(asked: list[Question], tools: Tools) -> None:
    conversations = ask_all(asked, tools, PERFECT)
    assert answers(conversations) == [question.task.golden_answers[0] for question in asked]
    assert [count_calls(m) for m in conversations] == [q.task.metadata["n_needed_calls"] for q in asked]


def test_habits_of_the_shipped_teacher(asked: list[Question], conversations: list[list[Message]]) -> None:
    right = np.mean([a == q.task.golden_answers[0] for a, q in zip(answers(conversations), asked, strict=True)])
    calls = [count_calls(messages) for messages in conversations]
    assert 0.75 < right < 0.95
    assert 2.5 < np.mean(calls) < 4.0
    assert max(calls) <= TeacherConfig().max_calls + 3


def test_the_same_seed_says_the_same(asked: list[Question], tools: Tools, conversations: list[list[Message]]) -> None:
    assert ask_all(asked, tools, TeacherConfig()) == conversations


def test_a_teacher_that_trusts_itself_is_wrong_where_it_does_not_know(asked: list[Question], tools: Tools) -> None:
    conversations = ask_all(asked, tools, replace(PERFECT, trust_guess=1.0))
    assert sum(map(count_calls, conversations)) == 0
    needs = [bool(q.task.metadata["needs_tools"]) for q in asked]
    right = [a == q.task.golden_answers[0] for a, q in zip(answers(conversations), asked, strict=True)]
    assert np.mean([r for r, n in zip(right, needs, strict=True) if n]) < 0.05
    assert all(r for r, n in zip(right, needs, strict=True) if not n)


def test_every_call_is_preceded_by_a_belief_and_followed_by_its_result(conversations: list[list[Message]]) -> None:
    for messages in conversations:
        for i, message in enumerate(messages):
            calls = message.get("tool_calls") or []
            names = [call["function"]["name"] for call in calls]
            following = messages[i + 1 : i + 1 + len(calls)]
            assert [m["name"] for m in following] == names
            if calls:
                assert re.search(r"(I think|So) .*\. Let me check", message["content"])


def test_parallel_calls_are_one_turn(asked: list[Question], tools: Tools) -> None:
    conversations = ask_all(asked, tools, replace(PERFECT, parallel=1.0))
    for question, messages in zip(asked, conversations, strict=True):
        pair = len(question.plan) == 3 and isinstance(question.plan[-1], Compute)
        assert max(len(m.get("tool_calls") or ()) for m in messages) == (2 if pair else min(1, count_calls(messages)))


@pytest.mark.parametrize("habit", ["verify_known", "repeat", "recheck", "wrong_query"])
def test_each_vice_adds_calls(asked: list[Question], tools: Tools, habit: str) -> None:
    vicious = TeacherConfig(**{**asdict(PERFECT), habit: 0.9})
    few, more = (sum(map(count_calls, ask_all(asked, tools, config))) for config in (PERFECT, vicious))
    assert more > 1.2 * few


@pytest.mark.parametrize("split", Split)
def test_the_right_query_finds_the_right_document_first(split: Split) -> None:
    world = World(11, split)
    tools: Tools = world_tools(world)
    steps = {s for q in questions(world, 300, seed=2) for s in q.plan if isinstance(s, Lookup)}
    missed = [s for s in steps if not tools["search"](f" {search_query(s)}").startswith(s.subject)]
    assert len(missed) <= 0.01 * len(steps)
