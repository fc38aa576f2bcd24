"""Calls that models spell in text: every dialect of the table, and what only looks like one."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from deltah import read_traces
from deltah.traces.dialects import DIALECTS, call_extents, json_call_extents, written_calls

from .chat import assistant, line, result, token, user

A, B = ("a", '{"x": 1}'), ("b", "{}")
SPELLED = {
    "hermes": '<tool_call>\n{"name": "a", "arguments": {"x": 1}}\n</tool_call>\n<tool_call>{"name": "b"}</tool_call>',
    "qwen3-coder": "<tool_call>\n<function=a>\n<parameter=x>\n1\n</parameter>\n</function>\n</tool_call>",
    "glm": "<tool_call>a\n<arg_key>x</arg_key>\n<arg_value>1</arg_value>\n</tool_call>",
    "llama": '<|python_tag|>{"name": "a", "parameters": {"x": 1}}',
    "mistral": '[TOOL_CALLS] [{"name": "a", "arguments": {"x": 1}}, {"name": "b", "arguments": {}}]',
    "mistral-v11": '[TOOL_CALLS]a{"x": 1}[TOOL_CALLS]b[CALL_ID]abc123[ARGS]{}',
    "deepseek": (
        '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>a<｜tool▁sep｜>{"x": 1}<｜tool▁call▁end｜>'
        "<｜tool▁call▁begin｜>function<｜tool▁sep｜>b\n```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
    ),
    "kimi": (
        '<|tool_calls_section_begin|><|tool_call_begin|>functions.a:0<|tool_call_argument_begin|>{"x": 1}'
        "<|tool_call_end|><|tool_call_begin|>b:1<|tool_call_argument_begin|>{}<|tool_call_end|>"
        "<|tool_calls_section_end|>"
    ),
    "functions": '<function=a>{"x": 1}</function><function=b>{}</function>',
    "minimax": (
        '<minimax:tool_call>\n<invoke name="a">\n<parameter name="x">1</parameter>\n</invoke>\n</minimax:tool_call>'
    ),
    "deepseek-v3.2": (
        '<｜DSML｜function_calls>\n<｜DSML｜invoke name="a">\n<｜DSML｜parameter name="x" string="false">1'
        "</｜DSML｜parameter>\n</｜DSML｜invoke>\n</｜DSML｜function_calls>"
    ),
    "invoke": '<function_calls><invoke name="a"><parameter name="x">1</parameter></invoke></function_calls>',
    "seed": "<seed:tool_call><function=a><parameter=x>1</parameter></function></seed:tool_call>",
    "phi": '<|tool_call|>[{"name": "a", "arguments": {"x": 1}}, {"name": "b"}]<|/tool_call|>',
    "nemotron": '<TOOLCALL>[{"name": "a", "arguments": {"x": 1}}, {"name": "b", "arguments": {}}]</TOOLCALL>',
    "cohere": (
        '<|START_ACTION|>[{"tool_call_id": "0", "tool_name": "a", "parameters": {"x": 1}}, '
        '{"tool_call_id": "1", "tool_name": "b", "parameters": {}}]<|END_ACTION|>'
    ),
    "lfm2": "<|tool_call_start|>[a(x=1), b()]<|tool_call_end|>",
    "llama4": "<|python_start|>[a(x=1), b()]<|python_end|>",
}
TEXT_ARGUMENTS = ("qwen3-coder", "glm", "minimax", "deepseek-v3.2", "invoke", "seed")
"""Whose values are texts."""


def pairs(text: str) -> list[tuple[str | None, object]]:
    return [(call.name, call.arguments) for call in written_calls(text)]


def test_the_table_has_a_sample_of_each() -> None:
    assert set(SPELLED) == {dialect.name for dialect in DIALECTS}


@pytest.mark.parametrize("name", SPELLED)
def test_names_and_arguments(name: str) -> None:
    expected = [("a", '{"x": "1"}')] if name in TEXT_ARGUMENTS else [A] if name == "llama" else [A, B]
    assert pairs(f"I look. {SPELLED[name]}") == expected


@pytest.mark.parametrize("name", SPELLED)
def test_a_log_whose_server_parsed_no_calls_gives_them(name: str, tmp_path: Path) -> None:
    text = SPELLED[name]
    reply = assistant([token("see "), token(text), token("<|im_end|>")], content=f"see {text}")
    (tmp_path / "log.jsonl").write_bytes(line([user(), reply, result("found")]))
    [t] = read_traces(tmp_path / "log.jsonl", strict=True)
    assert [(c.name, c.arguments) for c in t.calls] == pairs(text)
    assert t.calls[0].result == "found"
    sampled = [s.kind.value for s in t.segments if s.n_tokens]
    assert sampled[0] == "reasoning"
    assert "call" in sampled


def test_what_does_not_parse_is_a_call_without_a_name() -> None:
    cut = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call><tool_call>{"name": "g", "argu'
    assert pairs(cut) == [("f", '{"a": 1}'), (None, '{"name": "g", "argu')]
    assert pairs("<|python_tag|>print(1)") == [(None, "print(1)")]
    assert pairs("[TOOL_CALLS]") == [(None, "")]
    assert pairs("none") == []


def test_a_mark_that_is_mentioned_while_thinking_opens_no_call() -> None:
    text = f"maybe <tool_call> or not</think> go {SPELLED['hermes']}"
    assert pairs(text) == [A, B]
    assert "\n".join(text[start:stop] for start, stop in call_extents(text)) == SPELLED["hermes"]


def test_bare_json_is_a_call_where_its_name_is_known() -> None:
    text = 'like {"name": "g"} then {"function": {"name": "f"}} and {"x": {"name": "f"}}'
    [(start, stop)] = json_call_extents(text, frozenset({"f"}))
    assert text[start:stop] == '{"function": {"name": "f"}}'


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
def test_hostile_repetition_stays_linear(dialect: object) -> None:
    start = time.process_time()
    for piece in (*SPELLED.values(), *(d.opening for d in DIALECTS), "<function=", "<arg_key>", "<|tool_call_begin|>"):
        written_calls(piece * (60_000 // len(piece)))
    assert time.process_time() - start < 3
