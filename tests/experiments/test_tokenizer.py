"""The tokenizer is lossless over everything the lab says, and its chat template passes TRL's own checks unpatched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from coldstart.teacher import Message
from coldstart.tokenizer import MAX_NUMBER, RESPONSE_TEMPLATE, build_tokenizer
from hypothesis import given
from hypothesis import strategies as st

from deltah.lab.questions import Question
from deltah.lab.world import World

CALL = '<tool_call>{"name": "search", "arguments": {"query": " Mira Kovel"}}</tool_call>'
SECOND = '<tool_call>{"name": "python", "arguments": {"code": " 345 + 278"}}</tool_call>'


def ids_of(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


@pytest.fixture(scope="module")
def reloaded(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    from transformers import AutoTokenizer

    path: Path = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save_pretrained(path)
    return AutoTokenizer.from_pretrained(path)


def test_every_text_of_the_lab_survives(
    tokenizer: Any, world: World, asked: list[Question], conversations: list[list[Message]]
) -> None:
    texts = [document.contents for document in world.documents] + [question.task.question for question in asked]
    texts += [str(tokenizer.apply_chat_template(messages, tokenize=False)) for messages in conversations]
    for text in texts:
        ids = ids_of(tokenizer, text)
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids) == text


def test_words_and_numbers_of_conversations_are_single_tokens(
    tokenizer: Any, conversations: list[list[Message]]
) -> None:
    for messages in conversations[:100]:
        ids = ids_of(tokenizer, str(tokenizer.apply_chat_template(messages, tokenize=False)))
        pieces = [tokenizer.decode([i]) for i in ids]
        assert not [p for p in pieces if len(p) == 1 and p.isalnum()], pieces
    assert all(len(ids_of(tokenizer, f" {n}")) == 1 for n in range(MAX_NUMBER + 1))


@given(st.text(alphabet=st.characters(min_codepoint=32, max_codepoint=126) | st.sampled_from("\n\t"), max_size=60))
def test_any_ascii_survives(text: str) -> None:
    tokenizer = _cached()
    assert tokenizer.decode(ids_of(tokenizer, text)) == text


_CACHE: list[Any] = []


def _cached() -> Any:
    if not _CACHE:
        _CACHE.append(build_tokenizer())
    return _CACHE[0]


def test_a_call_costs_four_tokens_beside_its_argument(tokenizer: Any) -> None:
    assert len(ids_of(tokenizer, CALL)) == 4 + 2


def test_the_response_template_is_saved(reloaded: Any, tokenizer: Any) -> None:
    assert reloaded.response_template == RESPONSE_TEMPLATE
    assert reloaded.chat_template == tokenizer.chat_template
    assert reloaded.eos_token == "<|end|>"
    assert reloaded.pad_token_id != reloaded.eos_token_id
    assert reloaded.get_vocab() == tokenizer.get_vocab()


def test_trl_accepts_the_template(reloaded: Any) -> None:
    templates = pytest.importorskip("trl.chat_template_utils")
    assert templates.supports_tool_calling(reloaded)
    assert templates.is_chat_template_prefix_preserving(reloaded)
    assert templates.is_chat_template_stop_token_trained(reloaded)
    assert templates.get_training_chat_template(reloaded) is None


@pytest.mark.parametrize("calls", [0, 1, 2])
def test_calls_parse(reloaded: Any, calls: int) -> None:
    templates = pytest.importorskip("trl.chat_template_utils")
    text = " I think so. Let me check." + "".join((CALL, SECOND)[:calls])
    prefix = ids_of(reloaded, "<|user|> Where was Mira Kovel born?<|end|><|assistant|>")
    parsed = templates.parse_response(reloaded, ids_of(reloaded, text + "<|end|>"), prefix=prefix)
    functions = [call["function"] for call in parsed.get("tool_calls") or []]
    expected = [
        {"name": "search", "arguments": {"query": " Mira Kovel"}},
        {"name": "python", "arguments": {"code": " 345 + 278"}},
    ]
    assert functions == expected[:calls]
    assert parsed["content"] == "I think so. Let me check."


def test_a_broken_call_becomes_text(reloaded: Any) -> None:
    templates = pytest.importorskip("trl.chat_template_utils")
    parsed = templates.parse_response(reloaded, ids_of(reloaded, ' So<tool_call>{"name": <|end|>'), prefix=[])
    assert "tool_calls" not in parsed


def test_parsed_messages_render_to_the_sampled_tokens(tokenizer: Any, conversations: list[list[Message]]) -> None:
    """What the policy writes, parsed and rendered again, is the same tokens: no drift between turns."""
    for messages in conversations[:50]:
        prompt = ids_of(tokenizer, str(tokenizer.apply_chat_template(messages[:1], tokenize=False)))
        for message in messages:
            if message["role"] == "assistant":
                text = str(tokenizer.apply_chat_template([message], tokenize=False)).removeprefix("<|assistant|>")
                parsed = tokenizer.parse_response(ids_of(tokenizer, text), prefix=prompt)
                assert parsed == message | {"role": "assistant"}


def test_messages_of_a_system_are_accepted_and_an_unknown_role_is_not(tokenizer: Any) -> None:
    from jinja2.exceptions import TemplateError

    user = {"role": "user", "content": "Where was Mira Kovel born?"}
    system = {"role": "system", "content": "Answer."}
    plain, with_system = (tokenizer.apply_chat_template(m, tokenize=False) for m in ([user], [system, user]))
    assert plain == with_system
    with pytest.raises(TemplateError, match="unknown role"):
        tokenizer.apply_chat_template([{"role": "critic", "content": "x"}], tokenize=False)


def test_assistant_mask_covers_the_turn_and_its_end(tokenizer: Any, conversations: list[list[Message]]) -> None:
    from coldstart.sequences import trace_example

    for messages in conversations[:20]:
        rendered = tokenizer.apply_chat_template(
            messages, return_dict=True, return_assistant_tokens_mask=True, tokenize=True
        )
        example = trace_example(messages, tokenizer)
        assert rendered["input_ids"] == example.ids.tolist()
        assert rendered["assistant_masks"] == example.policy.astype(int).tolist()
