"""`check_chat_template`: TRL's own templates pass, and each fault gives one message with its remedy."""

from __future__ import annotations

import pickle

import pytest

pytest.importorskip("trl")
import trl.chat_template_utils as trl_templates
from examples.smollm2_convert import convert
from tokenizer_fixtures import byte_tokenizer

from deltah.engines.models import check_chat_template
from deltah.errors import ModelError

NO_TOOLS = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
CHAT_TEMPLATE, RESPONSE_TEMPLATE = convert.CHAT_TEMPLATE, convert.RESPONSE_TEMPLATE
REFUSING = "{% for m in messages if m.role == 'tool' %}{{ raise_exception('tools are not allowed') }}{% endfor %}"
# A turn is marked while it is the last, as thinking templates do: what follows it changes it.
UNSTABLE = CHAT_TEMPLATE.replace("{%- generation -%}", "{{- '<think></think>' if loop.last -}}{%- generation -%}")
WITH_THOUGHT = RESPONSE_TEMPLATE | {
    "fields": {**RESPONSE_TEMPLATE["fields"], "reasoning_content": {"open": "<think>", "close": "</think>"}}
}
KNOWN = [
    "glm4moe",
    "gptoss",
    "lfm2_2_5",
    "llama3_1",
    "nemotron_3_nano",
    "qwen2_5",
    "qwen3",
    "qwen3_instruct_2507",
    "qwen3_5_think",
    "qwen3_8",
]


@pytest.mark.parametrize("family", KNOWN)
def test_templates_that_trl_knows_pass(family: str) -> None:
    check_chat_template(byte_tokenizer(getattr(trl_templates, f"{family}_chat_template")), family)


def test_our_template_passes_and_the_tokenizer_is_left_as_it_was() -> None:
    check_chat_template(byte_tokenizer(CHAT_TEMPLATE, RESPONSE_TEMPLATE), "smollm2")
    tokenizer = byte_tokenizer(trl_templates.qwen3_chat_template)
    before = pickle.dumps(sorted(vars(tokenizer), key=str))
    check_chat_template(tokenizer, "qwen3")
    assert getattr(tokenizer, "response_template", None) is None
    assert pickle.dumps(sorted(vars(tokenizer), key=str)) == before


@pytest.mark.parametrize(
    ("template", "response_template", "message"),
    [
        (None, None, "has no chat template"),
        (NO_TOOLS, None, "does not render a tool exchange"),
        (REFUSING, None, "does not render a tool exchange"),
        ("{% if %}", None, r"does not render a plain question .*TemplateSyntaxError"),
        (CHAT_TEMPLATE, None, "has no response_template, and TRL knows none"),
        (CHAT_TEMPLATE, trl_templates.glm4moe_template, "does not read back a tool call"),
        (CHAT_TEMPLATE, {"fields": {}}, r"does not read back a tool call .*ValueError"),
        (UNSTABLE, WITH_THOUGHT, "renders an earlier turn differently"),
    ],
    ids=["none", "no-tools", "refusing", "syntax", "unknown", "mismatch", "broken-parser", "unstable"],
)
def test_each_fault_has_one_message(
    template: str | None, response_template: dict[str, object] | None, message: str
) -> None:
    with pytest.raises(ModelError, match=f"'my-model'.*{message}") as caught:
        check_chat_template(byte_tokenizer(template, response_template), "my-model")
    assert "\n" not in str(caught.value)


def test_an_unstable_template_passes_when_trl_can_replace_it() -> None:
    tokenizer = byte_tokenizer(trl_templates.qwen3_chat_template)
    assert not trl_templates.is_chat_template_prefix_preserving(tokenizer)
    check_chat_template(tokenizer, "qwen3")
