"""Where a call begins when its opening token was lost, and what is undefined because nothing shows it.

V is 4 and every list has 4 entries: exact entropies. UNSURE has H = ln 4 = 2 ln 2, SURER 1.75 ln 2 (test_blocks.py).
Two unsure tokens before the call and one surer after it: dH = -0.25 ln 2. Every token of call or mark is SURE, of
H = 0.94 (0.7 ln(1/0.7) + 0.3 ln 10), so that one that is taken for reasoning shows.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

import deltah

from .chat import call, result, token, user

EXPECTED = -0.25 * math.log(2)
UNSURE, SURER, SURE = (0.25,) * 4, (0.5, 0.25, 0.125, 0.125), (0.7, 0.1, 0.1, 0.1)
SAID = [token("Hm", UNSURE), token(" so", UNSURE)]
ANSWER = {"role": "assistant", "content": "South", "logprobs": {"content": [token("South", SURER)]}}
QUERY = '{"query": "x"}'
UNOPENED = "the log does not show which token begins the call"


def sure(*texts: str) -> list[dict[str, Any]]:
    return [token(text, SURE) for text in texts]


def measured(
    path: Path, tokens: list[dict[str, Any]], answer: dict[str, Any] = ANSWER, **message: Any
) -> tuple[Any, ...]:
    """ΔH, tokens before and after, reason and spans of the one call of a conversation."""
    said = {"role": "assistant", "content": "Hm so", "logprobs": {"content": tokens}, "tool_calls": [call()], **message}
    path.write_text(json.dumps({"messages": [user(), said, result("In the south."), answer]}) + "\n")
    table = deltah.read_calls(path, vocab_size=4)
    [row] = table.sql("SELECT value, tokens_before, tokens_after, reason, spans FROM calls").fetchall()
    return tuple(row)


@pytest.mark.parametrize(
    "spelled",
    [
        ["\n", '{"name": "search", "arguments": {"query": "x"}}', "\n", "</tool_call>", "<|im_end|>"],
        ["<function=search>\n", "<parameter=query>\nx\n</parameter>\n", "</function>", "\n</tool_call>"],
        ["search", QUERY, "</s>"],
        ["<｜tool▁call▁begin｜>search<｜tool▁sep｜>", QUERY, "<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>"],
        ["search\n", "<arg_key>query</arg_key>\n<arg_value>x</arg_value>\n", "</tool_call>"],
        ["functions.search:0", "<|tool_call_argument_begin|>", QUERY, "<|tool_call_end|>"],
        [" @@search ", "x", "@@"],  # no dialect that we know
        ["</tool_call>", "<|im_end|>"],  # all but the closing mark was lost
        [],
    ],
)
def test_a_call_whose_opening_token_was_lost_begins_where_the_visible_text_ends(
    spelled: list[str], tmp_path: Path
) -> None:
    found = measured(tmp_path / "log.jsonl", [*SAID, *sure(*spelled)])
    assert found == (pytest.approx(EXPECTED, abs=1e-12), 2, 1, None, "exact")


def test_the_first_of_two_calls_may_lack_its_opening_token(tmp_path: Path) -> None:
    first, second = (f'{{"name": "{name}", "arguments": {QUERY}}}' for name in ("search", "look"))
    tokens = [*SAID, *sure("\n", first, "\n", "</tool_call>", "\n", "<tool_call>", f"\n{second}\n", "</tool_call>")]
    message = {"role": "assistant", "content": "Hm so", "logprobs": {"content": tokens}}
    message["tool_calls"] = [call(), call("look", QUERY, "c2")]
    lines = [user(), message, result("In the south."), result("There.", "c2"), ANSWER]
    (tmp_path / "log.jsonl").write_text(json.dumps({"messages": lines}) + "\n")
    rows = (
        deltah.read_calls(tmp_path / "log.jsonl", vocab_size=4).sql("SELECT value, tokens_before FROM calls").fetchall()
    )
    assert rows == [(pytest.approx(EXPECTED, abs=1e-12), 2)] * 2


def test_thinking_that_says_the_same_as_the_text_is_no_call(tmp_path: Path) -> None:
    tokens = [token("Hm", UNSURE), token(" so", UNSURE), *sure("</think>", "\n\n"), *SAID, *sure("search", QUERY)]
    found = measured(tmp_path / "log.jsonl", tokens, reasoning_content="Hm so")
    assert found == (pytest.approx(EXPECTED, abs=1e-12), 4, 1, None, "exact")


def test_marks_that_end_a_call_or_a_turn_are_never_reasoning(tmp_path: Path) -> None:
    for marks in (["</tool_call>", "<|im_end|>"], ["</s>"], ["\n</tool_call>", "<|im_end|>", "<|endoftext|>"]):
        answer = ANSWER | {"logprobs": {"content": [token("South", SURER), *sure(*marks)]}}
        found = measured(tmp_path / "log.jsonl", SAID, answer)
        assert found == (pytest.approx(EXPECTED, abs=1e-12), 2, 1, None, "exact")
    answer = ANSWER | {"logprobs": {"content": [*sure("</think>", "\n"), token("South", SURER)]}}
    assert measured(tmp_path / "log.jsonl", SAID, answer)[:3] == (pytest.approx(EXPECTED, abs=1e-12), 2, 1)


def test_a_call_that_nothing_locates_is_undefined(tmp_path: Path) -> None:
    """The visible text is not what was sampled, and the call is spelled in no known dialect."""
    found = measured(tmp_path / "log.jsonl", [*SAID, *sure("@search ", QUERY)], content="Something else")
    assert found == (None, 0, 1, UNOPENED, "approximate")


def test_text_that_lost_characters_is_measured_where_no_call_is_spelled(tmp_path: Path) -> None:
    found = measured(tmp_path / "log.jsonl", SAID, content="Hm \ufffd")
    assert found == (pytest.approx(EXPECTED, abs=1e-12), 2, 1, None, "approximate")


def test_a_call_in_plain_text_without_its_opening_mark_is_a_call(tmp_path: Path) -> None:
    spelled = '{"name": "search", "arguments": {"query": "x"}}\n</tool_call>'
    tokens = [*SAID, *sure("\n", spelled)]
    found = measured(tmp_path / "log.jsonl", tokens, content=f"Hm so\n{spelled}", tool_calls=None)
    assert found == (pytest.approx(EXPECTED, abs=1e-12), 2, 1, None, "exact")


FIRST, SECOND = (f'{{"name": "{name}", "arguments": {QUERY}}}' for name in ("search", "look"))
WRAPPED = [
    ["", "[", FIRST, "]"],  # a server that prints its special token as nothing
    ["", "[", FIRST, "]", ""],
    ["<tool_calls>", "[", FIRST, "]", "</tool_calls>", "<|im_end|>"],
    ["\n", "<fn", "_call>[", f"{FIRST}]<", "/fn", "_call>"],
    ["\n", "```", "json", "\n", "[\n", FIRST, "\n]", "\n", "```"],
    ["<|start_act|>", "<|plug|>", "\n", FIRST, "<|end_act|>", "</s>"],
    [" functools", "[", FIRST, "]"],
    ["<calls>\n", "<tool_call>", f"search\n```json\n{QUERY}\n```\n", "</tool_call>", "\n</calls>"],
    ["<|channel|>commentary to=functions.search<|message|>", "<tool_call>", QUERY, "</tool_call>", "<|call|>"],
]


@pytest.mark.parametrize("spelled", WRAPPED)
def test_what_stands_around_a_call_is_never_reasoning(spelled: list[str], tmp_path: Path) -> None:
    expected = (pytest.approx(EXPECTED, abs=1e-12), 2, 1, None, "exact")
    assert measured(tmp_path / "log.jsonl", [*SAID, *sure(*spelled)]) == expected
    thought = [*sure("<think>", "\n"), *SAID, *sure("\n", "</think>", "\n\n", *spelled)]
    assert measured(tmp_path / "thought.jsonl", thought, content=None, reasoning_content="Hm so") == expected
    silent = measured(tmp_path / "silent.jsonl", sure(*spelled), content=None)
    assert silent[:3] == (None, 0, 1)


def test_brackets_and_fences_around_a_call_in_prose_are_no_reasoning(tmp_path: Path) -> None:
    for spelled in (["\n", "[", FIRST, "]"], ["\n```json\n", FIRST, "\n```"], ["<calls>", FIRST, "</calls>"]):
        tokens, content = [*SAID, *sure(*spelled)], "Hm so" + "".join(spelled)
        found = measured(tmp_path / "log.jsonl", tokens, content=content, tool_calls=None)
        assert found == (pytest.approx(EXPECTED, abs=1e-12), 2, 1, None, "exact")


def test_words_and_tags_of_prose_that_touch_no_call_stay_reasoning(tmp_path: Path) -> None:
    """Three unsure tokens before the call, two surer ones after it: the means are those of one token each."""
    tokens = [token("<b>Hm", UNSURE), token(" so</b>", UNSURE), token(" [1]", UNSURE), *sure("\n", "[", FIRST, "]")]
    answer = ANSWER | {"content": "[2] <i>", "logprobs": {"content": [token("[2]", SURER), token(" <i>", SURER)]}}
    found = measured(tmp_path / "log.jsonl", tokens, answer, content="<b>Hm so</b> [1]")
    assert found == (pytest.approx(EXPECTED, abs=1e-12), 3, 2, None, "exact")


@pytest.mark.parametrize(
    ("opens", "closes", "called"),
    [
        (["\n", "<think>"], ["</think>"], ["<tool_call>", FIRST, "</tool_call>"]),
        (
            ["<|end|>", "<|start|>assistant<|channel|>analysis<|message|>"],
            ["<|end|>"],
            ["<|start|>assistant<|channel|>commentary to=functions.search<|message|>", QUERY, "<|call|>"],
        ),
    ],
)
def test_thinking_between_the_visible_text_and_the_call_stays_reasoning(
    opens: list[str], closes: list[str], called: list[str], tmp_path: Path
) -> None:
    """One unsure token of text and one of thinking: the mean of two."""
    tokens = [token("Hm", UNSURE), *sure(*opens), token("why", UNSURE), *sure(*closes, *called)]
    found = measured(tmp_path / "log.jsonl", tokens, content="Hm", reasoning_content="why")
    assert found == (pytest.approx(EXPECTED, abs=1e-12), 2, 1, None, "exact")


@pytest.mark.parametrize("between", [[", "], [";\n"], ["]", "\n", "["], ["</call>", "\n", "<call>"], [" and "]])
def test_what_stands_between_two_calls_is_never_reasoning(between: list[str], tmp_path: Path) -> None:
    tokens = [*SAID, *sure("\n", "<call>", "[", FIRST, *between, SECOND, "]", "</call>")]
    message = {"role": "assistant", "content": "Hm so", "logprobs": {"content": tokens}}
    message["tool_calls"] = [call(), call("look", QUERY, "c2")]
    lines = [user(), message, result("In the south."), result("There.", "c2"), ANSWER]
    (tmp_path / "log.jsonl").write_text(json.dumps({"messages": lines}) + "\n")
    table = deltah.read_calls(tmp_path / "log.jsonl", vocab_size=4)
    rows = table.sql("SELECT value, tokens_before, tokens_after, spans FROM calls").fetchall()
    assert rows == [(pytest.approx(EXPECTED, abs=1e-12), 2, 1, "exact")] * 2


@pytest.mark.parametrize("texts", [["17", "4", "260"], ["\ufffd", "\ufffd\ufffd", "\ufffd"]])
def test_tokens_that_spell_nothing_are_unplaced(texts: list[str], tmp_path: Path) -> None:
    found = measured(tmp_path / "log.jsonl", [token(text, UNSURE) for text in texts])
    assert found == (None, 0, 1, UNOPENED, "approximate")


def test_an_answer_in_digits_is_reasoning(tmp_path: Path) -> None:
    found = measured(tmp_path / "log.jsonl", [token("4", UNSURE), token("2", UNSURE)], content="42")
    assert found == (pytest.approx(EXPECTED, abs=1e-12), 2, 1, None, "exact")


def test_white_space_that_a_server_prints_as_marks_of_its_tokenizer_is_white_space(tmp_path: Path) -> None:
    tokens = [token("Hm", UNSURE), token("Ġso", UNSURE), *sure("ĊĊ", "<tool_call>", "ĊsearchĠx", "</tool_call>", "Ċ")]
    found = measured(tmp_path / "log.jsonl", tokens)
    assert found[:4] == (pytest.approx(EXPECTED, abs=1e-12), 2, 1, None)


def test_the_report_says_why(tmp_path: Path) -> None:
    from deltah.core.signals import score
    from deltah.report.viewer import _round_block

    measured(tmp_path / "log.jsonl", [*SAID, *sure("@search ", QUERY)], content="Something else")
    [t] = deltah.read_traces(tmp_path / "log.jsonl", vocab_size=4)
    assert _round_block(score(t), t.rounds[0], [])["reason"] == UNOPENED
