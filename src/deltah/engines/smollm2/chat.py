"""How SmolLM2 is prompted with tools, and how its text is read back: two inverse templates.

`chat_template` renders messages to text; `RESPONSE_TEMPLATE` is what transformers' `parse_response` follows to turn
sampled text into one message, `{"role", "content", "tool_calls": [{"type": "function", "function": {"name",
"arguments"}}]}` with `arguments` an object. Rendering preserves prefixes: no turn depends on what follows it.

What happens to a malformed call:

- text between the tags that is not JSON, a call cut off in its JSON, or ended without its closing tag:
  `tokenizer.parse_response` raises ValueError. TRL catches it and takes the *whole turn*, well-formed calls included,
  as plain text without calls, so the rollout ends there as an answer.
- JSON that is not an object, or has no `name`: it parses here; TRL refuses it and again takes the turn as plain text.
- a call without `arguments`: TRL fills in `{}` and calls the tool; an unknown tool, unknown or missing argument, or
  `arguments` that is no object: the tool loop answers with an error text and the rollout goes on.
- whole JSON at the token limit, before its closing tag: it counts as a call.
"""

from __future__ import annotations

from importlib.resources import files
from typing import Any, Final

RESPONSE_TEMPLATE: Final[dict[str, Any]] = {
    "defaults": {"role": "assistant"},
    "start_anchor": "<|im_start|>assistant\n",
    "fields": {
        "content": {"content": "text", "close_pattern": r"<\|im_end\|>\s*"},
        "tool_calls": {
            "open": "<tool_call>",
            "close_pattern": r"</tool_call>\s*",
            "repeats": True,
            "content": "json",
            "transform": {"type": "function", "function": "{content}"},
        },
    },
}
"""The `response_template` saved with the tokenizer (transformers >= 5.13)."""


def chat_template() -> str:
    """Read the Jinja source of the chat template; it needs transformers' `{% generation %}` tag."""
    return files(__package__).joinpath("chat_template.jinja").read_text(encoding="utf-8")
