"""SmolLM2's two templates: exact text, round trips, prefixes, and what becomes of malformed calls."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("trl")
from examples.smollm2_convert import convert
from jinja2 import TemplateError
from tokenizer_fixtures import byte_tokenizer
from trl.chat_template_utils import get_training_chat_template, is_chat_template_stop_token_trained, parse_response

CHAT_TEMPLATE, RESPONSE_TEMPLATE = convert.CHAT_TEMPLATE, convert.RESPONSE_TEMPLATE
TOKENIZER = byte_tokenizer(CHAT_TEMPLATE, RESPONSE_TEMPLATE)
QUESTION = {"role": "user", "content": "Where?"}
SYSTEM = "<|im_start|>system\nBe brief.<|im_end|>\n"


def search(query: str) -> str:
    """Search the corpus.

    Args:
        query: What to look for.
    """
    return query


def call(name: str, **arguments: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def render(*messages: dict[str, Any], **options: Any) -> str:
    return str(TOKENIZER.apply_chat_template(list(messages), tokenize=False, **options))


def parse(text: str) -> dict[str, Any]:
    prefix = TOKENIZER.apply_chat_template([QUESTION], add_generation_prompt=True, return_dict=False)
    return dict(parse_response(TOKENIZER, TOKENIZER(text).input_ids, prefix=prefix))


def test_exact_text_of_an_exchange() -> None:
    text = render(
        {"role": "system", "content": "Be brief."},
        QUESTION,
        {"role": "assistant", "content": "I look.", "tool_calls": [call("search", query='é "x"'), call("now")]},
        {"role": "tool", "name": "search", "content": "Port Ona"},
        {"role": "tool", "name": "now", "content": "12:00"},
        {"role": "assistant", "content": "Port Ona"},
        add_generation_prompt=True,
    )
    assert text == (
        SYSTEM + "<|im_start|>user\nWhere?<|im_end|>\n"
        "<|im_start|>assistant\nI look.\n"
        '<tool_call>\n{"name": "search", "arguments": {"query": "é \\"x\\""}}\n</tool_call>\n'
        '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call><|im_end|>\n'
        "<|im_start|>tool\nPort Ona<|im_end|>\n<|im_start|>tool\n12:00<|im_end|>\n"
        "<|im_start|>assistant\nPort Ona<|im_end|>\n<|im_start|>assistant\n"
    )


def test_tools_stand_in_the_system_message() -> None:
    system, rest = render({"role": "system", "content": "Be brief."}, QUESTION, tools=[search]).split("<|im_end|>", 1)
    assert system.startswith("<|im_start|>system\nBe brief.\n\n")
    assert '"name": "search"' in system
    assert '"description": "What to look for."' in system
    assert "<tool_call>" in system
    assert rest == "\n<|im_start|>user\nWhere?<|im_end|>\n"


def test_a_conversation_without_system_message_gets_the_models_own() -> None:
    assert render(QUESTION).startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")


def test_content_may_be_absent_or_in_parts_and_arguments_may_be_text() -> None:
    parts = {"role": "user", "content": [{"type": "text", "text": "Wh"}, {"type": "text", "text": "ere?"}]}
    assert render(parts) == render(QUESTION)
    as_text = {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"function": {"name": "f", "arguments": '{"a": 1}'}}],
    }
    flat = {"role": "assistant", "tool_calls": [{"name": "f", "arguments": {"a": 1}}]}
    assert render(QUESTION, as_text) == render(QUESTION, flat)


def test_an_unknown_role_is_refused() -> None:
    with pytest.raises(TemplateError, match="unknown role judge"):
        render({"role": "judge", "content": ""})


def test_trl_uses_the_template_unpatched() -> None:
    assert get_training_chat_template(TOKENIZER) is None
    assert is_chat_template_stop_token_trained(TOKENIZER)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)
plain = st.text().filter(lambda text: "<" not in text).map(str.strip)


@settings(max_examples=100, deadline=None)
@given(
    content=plain,
    calls=st.lists(st.tuples(st.text(min_size=1), st.dictionaries(st.text(), values, max_size=3)), max_size=3),
    result=st.text(),
)
def test_messages_round_trip_and_keep_their_prefix(content: str, calls: list[Any], result: str) -> None:
    tool_calls = [{"type": "function", "function": {"name": name, "arguments": a}} for name, a in calls]
    if any(mark in str(calls) for mark in ("</tool_call>", "<|im_end|>")):
        return
    message = {"role": "assistant", "content": content, **({"tool_calls": tool_calls} if calls else {})}
    prompt, full = render(QUESTION, add_generation_prompt=True), render(QUESTION, message)
    assert full.startswith(prompt)
    assert parse(full.removeprefix(prompt)) == message
    tool = {"role": "tool", "name": "t", "content": result}
    assert render(QUESTION, message, tool, tool, add_generation_prompt=True).startswith(full)


GOOD = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>\n{'name': 'f'}\n</tool_call><|im_end|>",
        '<tool_call>\n{"name": "f", "argum',
        "<tool_call></tool_call><|im_end|>",
        '<tool_call>\n{"name": "f", "arguments": {}}\n<|im_end|>',
        "<tool_call>\n[1]\n</tool_call><|im_end|>",
        '<tool_call>\n{"arguments": {}}\n</tool_call><|im_end|>',
        f"{GOOD}\n<tool_call>\nnot json\n</tool_call><|im_end|>",
    ],
    ids=["quotes", "cut", "empty", "unclosed", "list", "nameless", "one-of-two"],
)
def test_a_malformed_call_makes_the_turn_plain_text(text: str) -> None:
    message = parse(text)
    assert "tool_calls" not in message
    assert message["content"] == text.removesuffix("<|im_end|>")


def test_what_still_counts_as_a_call() -> None:
    assert parse('<tool_call>{"name": "f"}</tool_call>')["tool_calls"] == [call("f")]
    assert parse(GOOD.removesuffix("\n</tool_call>"))["tool_calls"] == [call("f", a=1)]
    both = parse(f"before{GOOD} after<|im_end|>")
    assert both["tool_calls"] == [call("f", a=1)]
