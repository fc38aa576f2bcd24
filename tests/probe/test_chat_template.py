"""Chat templates of the probe: rendered as transformers does, found where models keep them, never trusted."""

from __future__ import annotations

from pathlib import Path

import pytest

from deltah.errors import ConfigError
from deltah.probe.queries import QueryError
from deltah.probe.server_api import ChatTemplate, load_template


def test_templates_render_as_in_transformers(tmp_path: Path) -> None:
    source = (
        "{{ bos_token }}{%- for m in messages %}\n"
        "  {%- if m.role == 'assistant' %}{% generation %}\n{{ m.content }}{% for c in m.tool_calls or [] %}"
        "{{ c.function.arguments | tojson }}{% endfor %}{{ eos_token }}{% endgeneration %}\n"
        "  {%- else %}[{{ m.role }}:{{ m.content }}]{% endif %}\n{%- endfor %}"
        "{%- if tools %}{{ tools | tojson }}{% endif %}{% if add_generation_prompt %}>{% endif %}"
    )
    messages = [
        {"role": "user", "content": "<é>"},
        {
            "role": "assistant",
            "content": "a",
            "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": "é"}'}}],
        },
    ]
    tools = [{"type": "function", "function": {"name": "f", "description": "d", "parameters": {}}}]
    ours = ChatTemplate(source, eos_token="</s>", tools=tools).render(messages)
    pytest.importorskip("transformers")
    from tokenizer_fixtures import byte_tokenizer

    from deltah.traces.messages import with_object_arguments

    tokenizer = byte_tokenizer(source)
    tokenizer.bos_token, tokenizer.eos_token = "", "</s>"
    theirs = tokenizer.apply_chat_template(
        with_object_arguments(messages), tools=tools, add_generation_prompt=True, tokenize=False
    )
    assert ours == theirs


def test_templates_are_found_where_models_keep_them(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text(
        '{"eos_token": {"content": "</s>"}, "chat_template": [{"name": "default", "template": "D{{ eos_token }}"},'
        '{"name": "tool_use", "template": "T{{ eos_token }}"}]}'
    )
    assert load_template(tmp_path).render([]) == "T</s>"
    assert load_template(tmp_path / "tokenizer_config.json").render([]) == "T</s>"
    (tmp_path / "chat_template.jinja").write_text("J{{ eos_token }}")
    assert load_template(tmp_path).render([]) == "J</s>"
    assert load_template(tmp_path / "chat_template.jinja").render([]) == "J</s>"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jinja", "{% if %}", "not valid Jinja"),
        ("a.json", "{", "is not JSON"),
        ("a.json", "{}", "holds no chat template"),
        ("a.jinja", None, "holds no chat template"),
        ("a.json", None, "cannot read the chat template"),
    ],
)
def test_a_broken_template_is_one_sentence(tmp_path: Path, name: str, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError, match=message):
        load_template(tmp_path / name)


def test_a_template_is_not_a_program() -> None:
    hostile = ChatTemplate("{{ ''.__class__.__mro__[1].__subclasses__() }}")
    with pytest.raises(QueryError, match="cannot render"):
        hostile.render([])
    with pytest.raises(QueryError, match="no tools here"):
        ChatTemplate("{{ raise_exception('no tools here') }}").render([])
