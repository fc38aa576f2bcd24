"""Chat templates without transformers: for servers whose completions endpoint takes text and not messages.

Follows what transformers does with a template: a sandboxed Jinja environment with trimmed blocks, `raise_exception`,
`strftime_now`, a plain `tojson`, loop controls, and the `{% generation %}` tag, which only marks text. `bos_token` is
empty, because the server adds it where the model wants one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from deltah.errors import ConfigError
from deltah.probe.queries import QueryError
from deltah.traces.messages import Message, with_object_arguments

RENDER_ERRORS = (TemplateError, TypeError, ValueError, KeyError, AttributeError, IndexError)


class ChatTemplate:
    """One compiled chat template."""

    def __init__(self, source: str, *, eos_token: str = "", tools: Sequence[Mapping[str, Any]] = ()) -> None:
        """Compile a template.

        Args:
            source: Jinja text.
            eos_token: Text that the template may write at the end of a turn.
            tools: Tool schemas that it writes into the prompt.

        Raises:
            ConfigError: if the text is not a Jinja template.
        """
        self.source = source
        self._eos_token = eos_token
        self._tools = [dict(tool) for tool in tools] or None
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals |= {"raise_exception": _raise, "strftime_now": lambda form: datetime.now().strftime(form)}
        try:
            self._template = environment.from_string(source)
        except TemplateError as error:
            raise ConfigError(f"the chat template is not valid Jinja: {error}") from error

    def render(self, messages: Sequence[Message]) -> str:
        """Text of messages up to where the next assistant message begins.

        Raises:
            QueryError: if the template does not take them.
        """
        try:
            return self._template.render(
                messages=with_object_arguments(messages),
                tools=self._tools,
                add_generation_prompt=True,
                bos_token="",
                eos_token=self._eos_token,
            )
        except RENDER_ERRORS as error:
            raise QueryError(f"the chat template cannot render the messages: {error}") from error


def load_template(path: Path, tools: Sequence[Mapping[str, Any]] = ()) -> ChatTemplate:
    """Read a template: a Jinja file, a tokenizer_config.json, or a folder that holds either.

    Raises:
        ConfigError: if there is none.
    """
    folder = path if path.is_dir() else path.parent
    is_config = path.suffix == ".json"
    jinja = path if path.is_file() and not is_config else folder / "chat_template.jinja"
    settings = _settings(path if is_config else folder / "tokenizer_config.json", required=is_config)
    source = _named(settings.get("chat_template")) if is_config or not jinja.exists() else _read(jinja)
    if not source:
        raise ConfigError(
            f"{path} holds no chat template; expected a Jinja file, a tokenizer_config.json with 'chat_template', or a "
            "model folder"
        )
    return ChatTemplate(source, eos_token=_token_text(settings.get("eos_token")), tools=tools)


def _settings(path: Path, *, required: bool) -> dict[str, Any]:
    if not required and not path.exists():
        return {}
    try:
        value = json.loads(_read(path))
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON: {error}") from error
    return value if isinstance(value, dict) else {}


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the chat template {path}: {error}") from error


def _named(value: Any) -> str | None:
    """A template, or the one called "tool_use", else "default", of a list of named ones."""
    if isinstance(value, list):
        by_name = {entry.get("name"): entry.get("template") for entry in value if isinstance(entry, dict)}
        value = by_name.get("tool_use") or by_name.get("default")
    return value if isinstance(value, str) else None


def _token_text(value: Any) -> str:
    """Text of a special token, which may be an object with its settings."""
    value = value.get("content") if isinstance(value, dict) else value
    return value if isinstance(value, str) else ""


def _to_json(value: Any, indent: int | None = None, **options: Any) -> str:
    del options
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)


class _Generation(Extension):
    """`{% generation %}...{% endgeneration %}`: passes its content through."""

    tags = {"generation"}  # noqa: RUF012 - the attribute's name and type are Jinja's

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Read the block's body."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)
