"""Every form of a block of log-probabilities gives the same entropies, and what a block lacks is said.

V is 4 and every list has 4 entries, so that entropies are exact. UNSURE is uniform: H = ln 4 = 2 ln 2. SURER is
(1/2, 1/4, 1/8, 1/8): H = (1/2 + 2/4 + 3/8 + 3/8) ln 2 = 1.75 ln 2. Two unsure tokens before a call and one surer after
it give dH = (1.75 - 2) ln 2 = -0.25 ln 2.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import deltah
from deltah.calls.notes import notes_on
from deltah.calls.table import CallTable

from .chat import call, result, token, user

LN2 = math.log(2)
UNSURE, SURER = (0.25,) * 4, (0.5, 0.25, 0.125, 0.125)
BEFORE, AFTER = (("Hm", UNSURE), (" so", UNSURE)), (("South", SURER),)
Pairs = Sequence[tuple[str, Sequence[float]]]


def entries(pairs: Pairs) -> list[dict[str, Any]]:
    return [token(text, probabilities) for text, probabilities in pairs]


def lists(pairs: Pairs, **fields: Any) -> dict[str, Any]:
    """The older form."""
    top = [{(text if i == 0 else f"~{i}"): math.log(p) for i, p in enumerate(ps)} for text, ps in pairs]
    drawn = [math.log(ps[0]) for _, ps in pairs]
    return {"tokens": [text for text, _ in pairs], "token_logprobs": drawn, "top_logprobs": top} | fields


def pairs_of(pairs: Pairs) -> list[list[Any]]:
    return [[text, math.log(ps[0]), [[f"{i}", math.log(p)] for i, p in enumerate(ps)]] for text, ps in pairs]


def listing(pairs: Pairs, alternatives: Callable[[list[dict[str, Any]]], Any]) -> dict[str, Any]:
    return {"content": [one | {"top_logprobs": alternatives(one["top_logprobs"])} for one in entries(pairs)]}


def read(path: Path, *lines: dict[str, Any]) -> CallTable:
    path.write_text("".join(json.dumps(one) + "\n" for one in lines))
    return deltah.read_calls(path, vocab_size=4)


def conversation(block: Any, answer: Any = None, **fields: Any) -> dict[str, Any]:
    said = {"role": "assistant", "content": "Hm so", "logprobs": block, "tool_calls": [call()]} | fields
    last = {"role": "assistant", "content": "South", "logprobs": answer or {"content": entries(AFTER)}}
    return {"messages": [user(), said, result("It lies in the south."), last]}


def only(table: CallTable, columns: str = "value, tokens_before, tokens_after, reason") -> tuple[Any, ...]:
    [row] = table.sql(f"SELECT {columns} FROM calls").fetchall()
    return tuple(row)


def notes(table: CallTable) -> str:
    assert table.log is not None
    return "\n".join(notes_on(table, table.log))


FORMS: dict[str, Callable[[Pairs], Any]] = {
    "entries": lambda pairs: {"content": entries(pairs)},
    "bare entries": entries,
    "parallel lists": lists,
    "parallel lists with offsets": lambda pairs: lists(pairs, text_offset=[0] * len(pairs), token_ids=[2] * len(pairs)),
    "pairs": pairs_of,
    "pairs in a block": lambda pairs: {"content": pairs_of(pairs)},
    "alternatives by text": lambda pairs: listing(pairs, lambda top: {str(i): a["logprob"] for i, a in enumerate(top)}),
    "alternatives as pairs": lambda pairs: listing(pairs, lambda top: [[a["token"], a["logprob"]] for a in top]),
    "a refusal's": lambda pairs: {"content": None, "refusal": entries(pairs)},
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_entropies(form: str, tmp_path: Path) -> None:
    table = read(tmp_path / "log.jsonl", conversation(FORMS[form](BEFORE), FORMS[form](AFTER)))
    value, *rest = only(table)
    assert value == pytest.approx(-0.25 * LN2, abs=1e-12)
    assert rest == [2, 1, None]


def test_the_thinking_of_a_block_of_its_own_comes_first(tmp_path: Path) -> None:
    # r_0 holds the surer token of the thinking and two unsure ones: (1.75 + 2 + 2) / 3 ln 2; r_1 has 1.75 ln 2.
    block = {"content": entries(BEFORE), "reasoning_content": entries((("First", SURER),))}
    table = read(tmp_path / "log.jsonl", conversation(block, reasoning_content="First"))
    assert only(table) == (pytest.approx((1.75 - 5.75 / 3) * LN2, abs=1e-12), 3, 1, None)
    [t] = deltah.read_traces(tmp_path / "log.jsonl", vocab_size=4)
    assert t.token_texts is not None
    assert t.token_texts[:3] == ("First", "Hm", " so")


def test_the_form_that_has_alternatives_wins(tmp_path: Path) -> None:
    """ln 4 before and (1/2 + 2/4 + 6/8) ln 2 = 1.75 ln 2 after: ΔH = -0.25 ln 2, with alternatives in one form only."""
    older = {name: lists(BEFORE)[name] for name in ("tokens", "token_logprobs")}
    bare = [{"token": text, "logprob": math.log(ps[0])} for text, ps in BEFORE]
    for i, block in enumerate((older | {"content": entries(BEFORE)}, lists(BEFORE) | {"content": bare})):
        value = only(read(tmp_path / f"{i}.jsonl", conversation(block)), "value")[0]
        assert value == pytest.approx(-0.25 * math.log(2), abs=1e-6)


def test_an_unknown_field_of_a_block_is_named_once(tmp_path: Path) -> None:
    odd = conversation({"content": entries(BEFORE), "draft": entries(BEFORE), "rank": [1, 2]})
    table = read(tmp_path / "log.jsonl", odd, odd | {"id": "again"})
    assert table.sql("SELECT DISTINCT round(value / ln(2), 6) FROM calls").fetchall() == [(-0.25,)]
    assert notes(table).count("Fields of logprobs were not read, as they are not known: draft, rank.") == 1


@pytest.mark.parametrize(
    "block",
    [
        {"content": [{"token": "Hm", "logprob": -0.7}, {"token": " so", "logprob": -0.1, "top_logprobs": []}]},
        {"tokens": ["Hm", " so"], "token_logprobs": [-0.7, -0.1]},
        {"tokens": ["Hm", " so"], "token_logprobs": [-0.7, -0.1], "top_logprobs": [None, None]},
        [["Hm", -0.7], [" so", -0.1]],
    ],
)
def test_log_probabilities_without_alternatives_are_said_to_be_that(block: Any, tmp_path: Path) -> None:
    table = read(tmp_path / "log.jsonl", conversation(block, {"content": [{"token": "South", "logprob": -0.2}]}))
    said = notes(table)
    assert "Log-probabilities without alternatives for 1 of 1 call" in said
    assert "top_logprobs=20" in said
    assert "No log-probabilities" not in said


@pytest.mark.parametrize("block", [True, -0.5, "yes", {}, []])
def test_what_is_no_block_costs_no_record(block: Any, tmp_path: Path) -> None:
    table = read(tmp_path / "log.jsonl", conversation(block))
    assert only(table)[3] == "no entropies for the reasoning before the call"


PROMPT = "<|im_start|>user\nWhere is Velm?<|im_end|>\n<|im_start|>assistant\n"
SPELLED = '<tool_call>\n{"name": "search", "arguments": {"query": "Velm"}}\n</tool_call>'
ASKED = "Hm so\n" + SPELLED
ANSWERED = (
    f"{PROMPT}{ASKED}<|im_end|>\n<|im_start|>user\n<tool_response>\nIn the south.\n</tool_response><|im_end|>\n"
    "<|im_start|>assistant\n"
)
ASKING: Pairs = (*BEFORE, ("\n", SURER), (SPELLED, SURER))


def completion(prompt: Any, text: str, block: Any, **request: Any) -> dict[str, Any]:
    choice = {"index": 0, "text": text, "logprobs": block, "finish_reason": "stop"}
    return {
        "request": {"prompt": prompt, "temperature": 1.0, **request},
        "response": {"id": "cmpl-1", "object": "text_completion", "choices": [choice]},
    }


@pytest.mark.parametrize("wrapped", [str, lambda prompt: [prompt]])
def test_text_completions_of_a_chat_template_are_a_conversation(wrapped: Any, tmp_path: Path) -> None:
    first, second = (
        completion(wrapped(PROMPT), ASKED, lists(ASKING)),
        completion(wrapped(ANSWERED), "South", lists(AFTER)),
    )
    table = read(tmp_path / "log.jsonl", first, second)
    assert only(table) == (pytest.approx(-0.25 * LN2, abs=1e-12), 2, 1, None)
    assert only(table, "tool, arguments, status, question") == ("search", '{"query": "Velm"}', "ok", "Where is Velm?")


def test_a_prompt_that_is_echoed_is_no_reply(tmp_path: Path) -> None:
    def echoed(prompt: str, text: str, pairs: Pairs) -> dict[str, Any]:
        block = lists(((prompt, SURER), *pairs))
        block["token_logprobs"][0] = block["top_logprobs"][0] = None
        return completion(prompt, prompt + text, block, echo=True)

    table = read(tmp_path / "log.jsonl", echoed(PROMPT, ASKED, ASKING), echoed(ANSWERED, "South", AFTER))
    assert only(table) == (pytest.approx(-0.25 * LN2, abs=1e-12), 2, 1, None)


@pytest.mark.parametrize(
    ("asked", "answered"),
    [
        ("<s>[INST] Where? [/INST]", "</s>[TOOL_RESULTS] south[/TOOL_RESULTS]"),
        (
            "<｜begin▁of▁sentence｜>Be brief.<｜User｜>Where?<｜Assistant｜>",
            "<｜end▁of▁sentence｜><｜tool▁output▁begin｜>south<｜tool▁output▁end｜>",
        ),
        (
            "<|im_system|>system<|im_middle|>Be brief.<|im_end|><|im_user|>user<|im_middle|>Where?<|im_end|>"
            "<|im_assistant|>assistant<|im_middle|>",
            "<|im_end|><|im_system|>tool<|im_middle|>south<|im_end|><|im_assistant|>assistant<|im_middle|>",
        ),
    ],
)
def test_templates_of_mistral_deepseek_and_kimi(asked: str, answered: str, tmp_path: Path) -> None:
    first = completion(asked, ASKED, lists(ASKING))
    table = read(tmp_path / "log.jsonl", first, completion(asked + ASKED + answered, "South", lists(AFTER)))
    assert only(table)[0] == pytest.approx(-0.25 * LN2, abs=1e-12)
    [t] = deltah.read_traces(tmp_path / "log.jsonl", vocab_size=4)
    assert (t.question, t.calls[0].result) == ("Where?", "south")


def test_a_prompt_without_a_template_is_one_user_message(tmp_path: Path) -> None:
    only_drawn = {"tokens": ["Hm so\n", SPELLED], "token_logprobs": [-0.5, -0.1]}
    table = read(tmp_path / "log.jsonl", completion("Where is Velm?\n", ASKED, only_drawn))
    assert only(table, "question, tool, status") == ("Where is Velm?\n", "search", "unanswered")
    assert "logprobs=5" in notes(table)


def test_ids_of_tokens_without_texts_leave_the_border_unknown(tmp_path: Path) -> None:
    nameless = [one | {"token": f"token_id:{i}", "bytes": None} for i, one in enumerate(entries(BEFORE))]
    table = read(tmp_path / "log.jsonl", conversation({"content": nameless}))
    value, before, after, reason = only(table)
    assert (value, before, after) == (None, 0, 1)
    assert reason == "the log has ids of tokens instead of texts, so the border of the reasoning is not known"
    assert f"ΔH is undefined for 1 of 1 call: {reason}." in notes(table)
    [t] = deltah.read_traces(tmp_path / "log.jsonl", vocab_size=4)
    assert [s.kind.value for s in t.segments if s.n_tokens] == ["unplaced", "reasoning"]
    deltah.write_traces(tmp_path / "copy.parquet", [t])
    [again] = deltah.read_traces(tmp_path / "copy.parquet")
    assert deltah.score(again).reasons == (reason,)


def test_bytes_of_token_ids_locate_it(tmp_path: Path) -> None:
    with_bytes = [one | {"token": f"token_id:{i}"} for i, one in enumerate(entries(BEFORE))]
    table = read(tmp_path / "log.jsonl", conversation({"content": with_bytes}))
    assert only(table) == (pytest.approx(-0.25 * LN2, abs=1e-12), 2, 1, None)


def test_an_answer_of_token_ids_is_not_measured_either(tmp_path: Path) -> None:
    nameless = [one | {"token": "token_id:3", "bytes": None} for one in entries(AFTER)]
    table = read(tmp_path / "log.jsonl", conversation({"content": entries(BEFORE)}, {"content": nameless}))
    assert only(table)[:3] == (None, 2, 0)
