"""The lab's tokenizer: one token for every word and every number up to 999, stock classes, lossless for ASCII.

A token is an optional leading space plus a word, a number or a punctuation mark; decoding is concatenation, so
`decode(encode(text)) == text`. Numbers are single tokens because a small model that spells them in digits never
learns to copy them. Words outside the vocabulary fall back to single characters, so nothing in ASCII is unknown.

The chat format is ChatML-like with one token for each role header and one for the end of a turn. Tool calls are
Hermes-style JSON whose fixed pieces are single tokens: a call costs four tokens beside its argument and is still JSON.
Files on disk are those of any fast tokenizer; no class of ours is needed to load them.
"""

from __future__ import annotations

import string
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

from deltah.errors import missing_dependency
from deltah.lab.questions import FAMILIES, OPERATORS
from deltah.lab.world import DOCUMENTS, PARTS

from .teacher import PHRASES, STATEMENTS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD: Final = "<pad>"
UNKNOWN: Final = "<unk>"
USER: Final = "<|user|>"
ASSISTANT: Final = "<|assistant|>"
TOOL: Final = "<|tool|>"
END: Final = "<|end|>"
CONTROL_TOKENS: Final = (PAD, UNKNOWN, USER, ASSISTANT, TOOL, END)
"""Special tokens: dropped by `skip_special_tokens`."""

TEXT_TOKENS: Final = (
    "<tool_call>",
    "</tool_call>",
    "<answer>",
    "</answer>",
    '{"name": "search", "arguments": {"query": "',
    '{"name": "python", "arguments": {"code": "',
    '"}}',
)
"""Added tokens that are part of the text of a message."""

# Roles are rendered with one leading space and results are indented by one, so that a word is the same token wherever
# it stands. Tool schemas are not rendered: this agent was taught its two tools. A system message is accepted and not
# rendered: the agent has never seen one, and instructions cannot change what a million parameters learned.
CHAT_TEMPLATE: Final = """\
{%- for message in messages %}
{%- if message.role == 'assistant' %}
{{- '<|assistant|>' }}
{%- generation %}
{%- if message.content %}{{ ' ' + message.content.strip() }}{% endif %}
{%- for call in message.tool_calls or [] %}
{%- set function = call.function if call.function is defined else call %}
{{- '<tool_call>{"name": "' + function.name + '", "arguments": ' }}
{{- function.arguments if function.arguments is string else function.arguments | tojson }}
{{- '}</tool_call>' }}
{%- endfor %}
{{- '<|end|>' }}
{%- endgeneration %}
{%- elif message.role in ('user', 'tool') %}
{{- '<|' + message.role + '|> ' + message.content.strip() | replace('\\n', '\\n ') + '<|end|>' }}
{%- elif message.role != 'system' %}
{{- raise_exception('unknown role ' + message.role + '; expected system, user, assistant or tool') }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"""

RESPONSE_TEMPLATE: Final[dict[str, Any]] = {
    "defaults": {"role": "assistant"},
    "start_anchor": ASSISTANT,
    "fields": {
        "tool_calls": {
            "open": "<tool_call>",
            "close": "</tool_call>",
            "repeats": True,
            "content": "json",
            "transform": {"type": "function", "function": "{content}"},
        },
        "content": {"close_pattern": r"<\|end\|>|$", "content": "text"},
    },
}
"""How transformers turns sampled text into a message with `content` and `tool_calls`."""

TOOL_TEXTS: Final = (
    "No results.",
    "error: query is empty",
    "error: code is empty",
    "SyntaxError: invalid syntax at line",
    "NameError: name is not defined",
    "TypeError ZeroDivisionError",
)
"""What tools say beside documents and numbers, so that a failed call costs few tokens."""

MAX_NUMBER: Final = 999
WORD_PATTERN: Final = r" ?[A-Za-z]+| ?[0-9]+| ?[^\sA-Za-z0-9]|\s"


def _texts() -> Iterable[str]:
    """Every text of the lab with its placeholders."""
    yield from (f"{first} {second}" for parts in PARTS.values() for first, second in _zip_cycle(*parts))
    yield from STATEMENTS.values()
    yield from DOCUMENTS.values()
    yield from (family.text for family in FAMILIES.values())
    yield from (*OPERATORS, *OPERATORS.values(), *PHRASES)
    yield from TOOL_TEXTS


def _zip_cycle(first: tuple[str, ...], second: tuple[str, ...]) -> Iterable[tuple[str, str]]:
    """Pairs in which every part of either tuple occurs."""
    for i in range(max(len(first), len(second))):
        yield first[i % len(first)], second[i % len(second)]


def vocabulary() -> list[str]:
    """Every piece of text that is one token, in the order of its id: words, numbers, characters."""
    import re

    cleaned = (re.sub(r"\{[a-z]+\}", "", text) for text in _texts())
    words = dict.fromkeys(f" {word}" for text in cleaned for word in re.findall(r"[A-Za-z]+|[^\sA-Za-z0-9]", text))
    numbers = (f" {number}" for number in range(MAX_NUMBER + 1))
    characters = (*string.digits, *string.ascii_letters, *string.punctuation, " ", "\n", "\t")
    return [*words, *numbers, *characters]


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Build the tokenizer; the same package version always gives the same one.

    Raises:
        MissingDependencyError: if transformers is not installed.
    """
    try:
        from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast
    except ImportError as error:
        raise missing_dependency("transformers", extra="train", purpose="The lab's tokenizer") from error

    # A whole word costs 1, a single character 10: the cheapest path takes the word wherever it is in the vocabulary.
    pieces = [(token, 0.0) for token in CONTROL_TOKENS]
    pieces += [(piece, -1.0 if len(piece) > 1 else -10.0) for piece in vocabulary()]
    core = Tokenizer(models.Unigram(pieces, unk_id=CONTROL_TOKENS.index(UNKNOWN), byte_fallback=False))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(WORD_PATTERN), behavior="isolated")
    core.decoder = decoders.Fuse()
    core.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in CONTROL_TOKENS])
    core.add_tokens([AddedToken(token, normalized=False, special=False) for token in TEXT_TOKENS])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        unk_token=UNKNOWN,
        eos_token=END,
        padding_side="left",
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.response_template = RESPONSE_TEMPLATE
    return tokenizer
