"""Splitting one message's tokens: dialects, borders inside tokens, hostile text."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltah.core.types import SegmentKind
from deltah.traces.borders import split_message

R, C, X = SegmentKind.REASONING, SegmentKind.CALL, SegmentKind.CONTROL


def kinds(tokens: list[str], names: tuple[str, ...] = ()) -> str:
    """One letter a token: r, c or x."""
    letters = {R: "r", C: "c", X: "x"}
    return "".join(letters[s.kind] * (s.stop - s.start) for s in split_message(tokens, names).spans)


@pytest.mark.parametrize(
    ("tokens", "names", "expected"),
    [
        (["I", " see", "."], (), "rrr"),
        (["Hm", "<tool_call>", "\n", '{"name": "f"}', "\n", "</tool_call>", "<|im_end|>"], (), "rcccccx"),
        (["<think>", "\n", "so", "\n", "</think>", "\n\n", "Paris", "<|im_end|>", "\n"], (), "xxrxxxrxx"),
        (["<tool_call>", "a", "</tool_call>", "\n", "<tool_call>", "b", "</tool_call>"], (), "cccxccc"),
        (["go", "<tool_call>", "cut", " off"], (), "rccc"),
        (["<|python_tag|>", "f", "(1)", "<|eom_id|>"], (), "cccc"),
        (["ok", "[TOOL_CALLS]", "[{}]"], (), "rcc"),
        (['{"', 'name"', ": ", '"f"', ', "parameters": {}}', "<|eot_id|>"], ("f",), "cccccx"),
        (['{"', 'name"', ": ", '"f"', ', "parameters": {}}', "<|eot_id|>"], (), "rrrrrx"),
        (["like ", '{"name": "g"}', " then ", '{"name": "f"}'], ("f",), "rrrc"),
        (["a", "</s>"], (), "rx"),
        (["the tag ", "</s> ends"], (), "rr"),
        (["maybe", "<tool_call>", " is wrong", "</think>", "no"], (), "rrrxr"),
        (
            ["<|channel|>", "analysis", "<|message|>", "hm", "<|end|>", "<|start|>", "assistant", "<|channel|>",
             "commentary to=functions.f ", "<|constrain|>", "json", "<|message|>", "{}", "<|call|>"],
            (), "xxxrxccccccccc",
        ),
        (["<|channel|>", "final", "<|message|>", "42", "<|return|>"], (), "xxxrx"),
        ([], (), ""),
    ],
)  # fmt: skip
def test_dialects(tokens: list[str], names: tuple[str, ...], expected: str) -> None:
    assert kinds(tokens, names) == expected
    assert split_message(tokens, names).exact


def test_touching_calls_stay_two_spans() -> None:
    spans = split_message(["<tool_call>", "a</tool_call>", "<tool_call>", "b</tool_call>"]).spans
    assert [(s.start, s.stop) for s in spans] == [(0, 2), (2, 4)]


def test_border_inside_a_token_is_approximate_unless_white_space() -> None:
    assert not split_message(["so.<tool", "_call>", "{}</tool_call>"]).exact
    spans, exact = split_message(["so", ".\n", "\n<tool", "_call>", "{}</tool_call>\n", "end"])
    assert exact
    assert [(s.kind, s.start, s.stop) for s in spans] == [(R, 0, 2), (C, 2, 5), (R, 5, 6)]


PIECES = st.sampled_from(
    ["<tool_call>", "</tool_call>", "<think>", "</think>", "{", '{"name": "f"', "}", " ", "\n", "<|channel|>",
     "<|message|>", "<|end|>", "<|start|>", " to=f", "<|call|>", "", "é", "[TOOL_CALLS]", "</s>", "<tool", "_call>"]
)  # fmt: skip


@given(st.lists(PIECES, max_size=14))
def test_any_text_is_partitioned(tokens: list[str]) -> None:
    spans = split_message(tokens, ("f",)).spans
    assert [t for s in spans for t in range(s.start, s.stop)] == list(range(len(tokens)))
    assert all(s.stop > s.start for s in spans)


@pytest.mark.parametrize(
    "piece", ['{"a":', "<tool_call>", "<tool_call></tool_call>", "<|start|>", "<think>", "<|channel|>"]
)
def test_hostile_text_takes_linear_time(piece: str) -> None:
    start = time.process_time()
    split_message([piece] * 20_000, ("f",))
    assert time.process_time() - start < 3
