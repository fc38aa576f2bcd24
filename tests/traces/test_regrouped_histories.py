"""Replies that a client sends back as several turns, turns that it merges, and responses that are logged twice."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import pytest

from deltah.core.types import Trajectory

from .chat import assistant, call, result, token, user
from .test_rewritten_histories import MOLE, QUAY, Line, Message, history, log_of, read, tide, turn


def look_up(place: str, id: str | None) -> Message:
    return call("tide_table", json.dumps({"place": place}), id)


@pytest.mark.parametrize("ids", [(QUAY, MOLE), (None, None), ("call_0", "call_1")])
@pytest.mark.parametrize("texts", [("Both harbours",), ("Both harbours", "Both harbours"), ("",)])
def test_a_reply_that_the_client_split_keeps_all_its_results(
    tmp_path: Path, ids: tuple[str | None, str | None], texts: tuple[str, ...]
) -> None:
    """Calls of one turn, sent back as a turn each: H(.7, .1, .1, .1) = 0.9404 before, ln 4 = 1.3863 after."""
    one, other = look_up("Larkholm", ids[0]), look_up("Ostrand", ids[1])
    first = assistant([token("Both harbours", (0.7, 0.1, 0.1, 0.1))], content="Both harbours") | {
        "tool_calls": [one, other]
    }
    found = [result("06:10", ids[0]), result("07:25", ids[1])]
    last = assistant([token("At six.", (0.25,) * 4)], content="At six.")
    lines = log_of([user("When?"), first, *found, last, user("Sure?"), turn("Yes.")], vocab_size=4)
    split = [turn(texts[0], one), found[0], turn(texts[-1] if texts[1:] else "", other), found[1]]
    for line in lines[1:]:
        history(line)[1:4] = [{k: v for k, v in m.items() if k != "logprobs"} for m in split]
    whole = joined_as(tmp_path, lines)
    assert [(c.result, c.turn) for c in whole.calls] == [("06:10", 0), ("07:25", 0)]
    assert whole.entropy is not None
    assert whole.entropy[:2] == pytest.approx([-0.7 * math.log(0.7) - 0.3 * math.log(0.1), math.log(4)], abs=1e-6)


@pytest.mark.parametrize("ids", [(QUAY, MOLE), (None, None), ("call_0", "call_0")])
def test_turns_that_the_client_merged_keep_their_own_results(
    tmp_path: Path, ids: tuple[str | None, str | None]
) -> None:
    one, other = look_up("Larkholm", ids[0]), look_up("Ostrand", ids[1])
    found = [result("06:10", ids[0]), result("07:25", ids[1])]
    lines = log_of([user("When?"), turn("Here", one), found[0], turn("There", other), found[1], turn("At six.")])
    history(lines[2])[1:] = [turn("Here There", one, other), *found]
    whole = joined_as(tmp_path, lines)
    assert [(c.arguments, c.result, c.turn) for c in whole.calls] == [
        ('{"place": "Larkholm"}', "06:10", 0),
        ('{"place": "Ostrand"}', "07:25", 1),
    ]


def joined_as(tmp_path: Path, lines: list[Line]) -> Trajectory:
    [whole], reader = read(tmp_path / "log", lines)
    assert (reader.n_unjoined, reader.n_branches, whole.metadata["n_requests"]) == (0, 0, len(lines))
    assert reader.n_weakly_joined
    return whole


def test_turns_of_another_rollout_are_not_taken_for_a_split_reply(tmp_path: Path) -> None:
    """Two rollouts of a question ask for the same, one at once, one step by step and with its texts dropped."""
    one, other = look_up("Larkholm", None), look_up("Ostrand", None)
    found = [result("06:10", None), result("07:25", None)]
    at_once = log_of([user("When?"), turn("Both", one, other), *found, turn("At six.")])
    by_step = log_of([user("When?"), turn("Here", one), found[0], turn("There", other), found[1], turn("At seven.")])
    for line in by_step[1:]:
        for message in history(line):
            message["content"] = None if message["role"] == "assistant" else message["content"]
    trajectories, reader = read(tmp_path / "log", [*at_once, *by_step])
    assert [[c.turn for c in t.calls] for t in trajectories] == [[0, 0], [0, 1]]
    assert (reader.n_unjoined, reader.n_branches) == (0, 0)


def test_a_response_that_is_logged_twice_is_one_api_call(tmp_path: Path) -> None:
    lines = log_of(tide(), session_id="s")
    [once], reader = read(tmp_path / "log", [lines[0], lines[0], lines[1], lines[1]])
    assert (once.n_calls, once.metadata["n_requests"], reader.n_repeated, reader.n_branches) == (1, 2, 2, 0)
    again = copy.deepcopy(lines[0])
    again["response"]["id"] = "another"
    found, reader = read(tmp_path / "other", [lines[0], again, lines[1]])
    assert (len(found), reader.n_repeated, reader.n_branches) == (2, 0, 1)
