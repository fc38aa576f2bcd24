"""Typed shape of an OpenAI-style chat log line.

Only what the importer reads is declared, so that decoding skips the rest; every field is optional, as servers leave out
different ones. Token entries do not take part in garbage collection: a line holds tens of thousands of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar

import msgspec

from deltah.core.types import UNKNOWN_ARGUMENTS

T = TypeVar("T")
UNKNOWN: Final = "?"
"""Name under which `to_schema` lists the fields of a block that are not known."""


class TopLogprob(msgspec.Struct, gc=False):
    """One alternative, whose text is not needed."""

    logprob: float | None = None


if TYPE_CHECKING:
    _Alternatives = list[TopLogprob]
else:  # some servers write pairs, or an object: see `alternatives`
    _Alternatives = list[TopLogprob | list[Any]] | dict[str, float | TopLogprob | None]


class TokenLogprob(msgspec.Struct, gc=False):
    """One sampled token."""

    token: str = ""
    id: Any = None
    """llama.cpp's name of its id in the vocabulary."""
    logprob: float | None = None
    bytes: list[int] | None = None
    top_logprobs: _Alternatives | None = None


if TYPE_CHECKING:
    _Tokens = list[TokenLogprob]
else:  # some servers write pairs: see `block_tokens`
    _Tokens = list[TokenLogprob | list[Any]]


class LogprobsBlock(msgspec.Struct, forbid_unknown_fields=True):
    """A choice's `logprobs`: entries of tokens, or the older form of parallel lists.

    What is not declared is an error that `to_schema` turns into `unknown`.
    """

    content: _Tokens | None = None
    reasoning_content: _Tokens | None = None
    """DeepSeek's, of the thinking that precedes the content."""
    reasoning: _Tokens | None = None
    refusal: _Tokens | None = None
    tokens: list[str] | None = None
    token_logprobs: list[float | None] | None = None
    top_logprobs: list[_Alternatives | None] | None = None
    text_offset: Any = None
    token_ids: Any = None
    unknown: list[str] = msgspec.field(default_factory=list, name=UNKNOWN)
    """Names of further fields, which are not read."""


if TYPE_CHECKING:
    Block: TypeAlias = LogprobsBlock | _Tokens | None
else:  # some servers write whether there is one
    Block = LogprobsBlock | _Tokens | bool | float | str | None
_BLOCK_FIELDS: Final = frozenset(LogprobsBlock.__struct_encode_fields__)
IDS: Final = ("tool_call_id", "call_id", "tool_use_id", "toolCallId", "toolUseId", "id")
NAMES: Final = ("name", "tool_name", "toolName", "function_name", "tool")
ARGUMENTS: Final = ("arguments", "input", "args", "parameters", "params", "tool_input", "toolInput", "kwargs")
RESULT_ROLES: Final = frozenset(("tool", "function", "ipython", "observation", "tool_response"))
_CALL_FIELDS: Final = frozenset((*IDS, *NAMES, *ARGUMENTS, "type", "index", "function", "custom"))


class FunctionCall(msgspec.Struct):
    """Name and arguments; `arguments` is text in the protocol, an object in some logs."""

    name: str | None = None
    arguments: Any = ""
    parameters: Any = None
    """Another name of `arguments`."""


if TYPE_CHECKING:
    _WholeCall = FunctionCall
else:  # one without arguments is mended
    _WholeCall = msgspec.defstruct("_WholeCall", [("arguments", Any)], bases=(FunctionCall,), kw_only=True)


class MessageToolCall(msgspec.Struct):
    """One entry of `tool_calls`; one without a `function` is an error that `to_schema` mends."""

    function: _WholeCall
    id: str | None = None
    call_id: str | None = None
    tool_call_id: str | None = None
    name: str | None = None
    """Beside the function, where some writers have it."""


class Message(msgspec.Struct):
    """One message of any role."""

    role: str
    content: Any = None
    reasoning_content: str | None = None
    reasoning: Any = None
    """Newer vLLM's name of `reasoning_content`."""
    tool_calls: list[MessageToolCall] | None = None
    function_call: FunctionCall | None = None
    tool_call_id: str | None = None
    name: Any = None
    """Of the tool whose result it is, as some writers give it instead of an id."""
    refusal: str | None = None
    logprobs: Block = None
    finish_reason: str | None = None
    duration_s: float | None = None
    """Seconds that the tool took, on its result; not of the protocol."""
    parts: Any = None
    """What other protocols call `content`."""
    is_error: Any = None
    """Whether the tool failed; None where only the text can say it."""
    status: Any = None
    """The same as LangChain says it: "error" or "success"; what follows are other names on results."""
    isError: Any = None
    id: Any = None
    call_id: Any = None
    tool_use_id: Any = None
    toolCallId: Any = None
    toolUseId: Any = None
    tool_name: Any = None
    toolName: Any = None

    def __post_init__(self) -> None:
        """Give a result's id, name and failure the protocol's names."""
        if self.role in RESULT_ROLES:
            if not self.tool_call_id:
                given = (id for name in IDS if (id := getattr(self, name)) not in (None, ""))
                self.tool_call_id = next(map(str, given), self.tool_call_id)
            self.name = self.name or self.tool_name or self.toolName
            self.is_error = self.isError if self.is_error is None else self.is_error


class DeltaToolCall(msgspec.Struct):
    """A piece of one tool call: the id and name come once, the arguments in parts."""

    index: int | None = None
    id: str | None = None
    function: FunctionCall | None = None
    name: str | None = None
    arguments: Any = None
    """Beside the id, where some servers write them."""


class Delta(msgspec.Struct):
    """What one chunk adds to the message."""

    role: str | None = None
    content: Any = None
    """Text; Mistral's thinking models send parts."""
    reasoning_content: str | None = None
    reasoning: Any = None
    refusal: str | None = None
    tool_calls: list[DeltaToolCall] | None = None
    function_call: FunctionCall | None = None


class Choice(msgspec.Struct):
    """One of a response's choices; a streamed one carries `delta`, a whole one `message`."""

    index: int | None = 0
    message: Message | None = None
    delta: Delta | None = None
    text: str | None = None
    """Of a text completion, whole or a piece."""
    logprobs: Block = None
    error: Any = None
    content_filter_results: Any = None
    content_filter_offsets: Any = None
    token_ids: Any = None
    """vLLM's: ids of the sampled tokens, where they were asked for."""
    finish_reason: str | None = None


class ToolFunction(msgspec.Struct):
    """Name and annotations of a tool; its schema is not read."""

    name: Any = None
    annotations: Any = None


class ToolDefinition(ToolFunction):
    """One of a request's tools, as OpenAI nests it or as MCP lists it."""

    function: ToolFunction | list[Any] | str | int | float | bool | None = None


ToolList: TypeAlias = list[ToolDefinition | list[Any] | str | int | float | bool | None] | dict[str, Any] | str | None


class Request(msgspec.Struct):
    """Body of the request; the batch API wraps it in `body`."""

    messages: list[Message] = []
    prompt: Any = None
    """Of a text completion."""
    echo: Any = None
    """Whether the completion begins with the prompt."""
    stream: Any = None
    model: str | None = None
    temperature: float | None = None
    top_logprobs: int | None = None
    metadata: Any = None
    tools: ToolList = None
    body: Request | None = None


class Response(msgspec.Struct):
    """Body of a response or of one streamed chunk; the batch API wraps it in `body`."""

    id: str | None = None
    choices: list[Choice] | None = None
    model: str | None = None
    object: str | None = None
    """Kind of the body; "error" is SGLang's refusal, whose other fields stand beside it."""
    error: Any = None
    usage: Any = None
    """`completion_tokens`: tokens drawn, over all choices."""
    prompt_filter_results: Any = None
    body: Response | None = None


class ChatLine(msgspec.Struct):
    """One line: `messages`, or `request` with `response`, or the fields of a bare response or chunk."""

    messages: list[Message] | None = None
    request: Request | None = None
    response: Response | list[Response | str | None] | str | None = None
    """Whole; or its streamed chunks, as a list, also of texts, or as the text of the event stream."""
    chunks: list[Response | str | None] | None = None
    prompt: Any = None
    choices: list[Choice] | None = None
    prompt_filter_results: Any = None
    object: str | None = None
    custom_id: str | None = None
    session_id: str | int | None = None
    conversation_id: str | int | None = None
    thread_id: str | int | None = None
    trace_id: str | int | None = None
    error: Any = None
    usage: Any = None
    started_at: Any = None
    """When the API call began, see `deltah.traces.importing.epoch_seconds`."""
    duration_s: Any = None
    """Seconds the API call took."""
    id: str | int | None = None
    group_id: str | int | None = None
    vocab_size: int | None = None
    model: str | None = None
    temperature: float | None = None
    logprobs_mode: str | None = None
    question: str | None = None
    answer: Any = None
    golden_answers: list[Any] | None = None
    prediction: str | None = None
    score: Any = None
    outcome: Any = None
    correct: Any = None
    is_correct: Any = None
    reward: Any = None
    metadata: dict[str, Any] | None = None
    tools: ToolList = None


def block_tokens(block: Block) -> list[TokenLogprob]:
    """Sampled tokens of a block of log-probabilities, in order, whatever its form."""
    entries: Any = block
    if isinstance(block, LogprobsBlock):
        entries = block.content
        if block.tokens is not None and (any(block.top_logprobs or ()) or not entries):
            return _from_lists(block)
        if block.reasoning_content or block.reasoning or block.refusal:
            parts = (block.reasoning_content, block.reasoning, entries, block.refusal)
            entries = [token for part in parts for token in part or ()]
    if not isinstance(entries, list):
        return []
    if list not in map(type, entries):
        return entries
    return [_from_pair(token) if isinstance(token, list) else token for token in entries]


def _from_lists(block: LogprobsBlock) -> list[TokenLogprob]:
    """The older form; a list that ends early says nothing of the other tokens."""
    texts, drawn, top = block.tokens or [], block.token_logprobs or [], block.top_logprobs or []
    return [
        TokenLogprob(
            token=text,
            logprob=drawn[t] if t < len(drawn) else None,
            top_logprobs=alternatives(top[t]) if t < len(top) else None,
        )
        for t, text in enumerate(texts)
    ]


def _from_pair(pair: list[Any]) -> TokenLogprob:
    """`[token, logprob]`, in any order, and the alternatives where there are any."""
    text = next((part for part in pair if isinstance(part, str)), "")
    numbers = sorted((part for part in pair if isinstance(part, int | float)), key=lambda part: type(part) is int)
    logprob = float(numbers[0]) if numbers else None  # an integer beside a float is the token's id
    top = next((part for part in pair if isinstance(part, dict | list)), None)
    return TokenLogprob(token=text, logprob=logprob, top_logprobs=alternatives(top))


def alternatives(given: Any) -> list[TopLogprob] | None:
    """Alternatives by text, as entries, or as pairs."""
    if isinstance(given, dict):
        given = list(given.values())
    if not isinstance(given, list):
        return None
    entries = [_from_pair(one).logprob if isinstance(one, list) else one for one in given]
    return [
        one if isinstance(one, TopLogprob) else TopLogprob(one if isinstance(one, int | float) else None)
        for one in entries
    ]


def message_text(content: Any) -> str:
    """Text of a message's content: a string, a list of typed parts (other media as `[type]`), or nothing."""
    if isinstance(content, list):
        return "".join(_part_text(part) if isinstance(part, dict) else as_text(part) for part in content)
    return "" if content is None else as_text(content)


def as_text(value: Any) -> str:
    """A text as it is, any other value as JSON."""
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _part_text(part: dict[str, Any]) -> str:
    text = part.get("text")
    return text if isinstance(text, str) else f"[{part.get('type', 'part')}]"


def to_schema(value: Any, kind: type[T], *, strict: bool = True) -> T:
    """A JSON value as a type, after its messages were mended where they are not of the protocol."""
    try:
        return msgspec.convert(value, kind, strict=strict)
    except msgspec.ValidationError:
        _mend(value)
        return msgspec.convert(value, kind, strict=strict)


def _mend(value: Any) -> None:
    """Give messages, calls and blocks of log-probabilities the protocol's shape, in place."""
    if isinstance(value, list):
        for item in value:
            _mend(item)
    if not isinstance(value, dict):
        return
    if value.get("tool_calls"):
        value["tool_calls"] = _listed_calls(value["tool_calls"], whole="role" in value)
    if isinstance(value.get("tool_call_id"), int):
        value["tool_call_id"] = str(value["tool_call_id"])
    block = value.get("logprobs")
    if isinstance(block, dict) and (unknown := sorted(block.keys() - _BLOCK_FIELDS)):
        value["logprobs"] = {key: item for key, item in block.items() if key in _BLOCK_FIELDS} | {UNKNOWN: unknown}
    for name, item in value.items():
        if name not in ("logprobs", "tool_calls"):
            _mend(item)


def _listed_calls(given: Any, *, whole: bool) -> list[Any]:
    """Calls as a list of objects with a function; those of a stream's pieces may lack it."""
    if isinstance(given, str):
        try:
            given = msgspec.json.decode(given)
        except msgspec.DecodeError:
            return []
    listed = given if isinstance(given, list) else [given]
    return [_with_function(call) if whole else call for call in listed if isinstance(call, dict)]


def _with_function(call: dict[str, Any]) -> dict[str, Any]:
    """A call whose name and arguments stand in `function`, of one that has them beside its id, or elsewhere."""
    id = next((call[name] for name in ("id", *IDS) if call.get(name) is not None), None)
    function, beside = call.get("function"), call.get("custom")
    fields = [one for one in (function, call, beside) if isinstance(one, dict)]
    found = (one[key] for one in fields for key in NAMES if isinstance(one.get(key), str))
    name = function if isinstance(function, str) else next(found, None)
    unknown = UNKNOWN_ARGUMENTS if any(one.keys() - _CALL_FIELDS for one in fields) else ""
    arguments = next((one[key] for one in fields for key in ARGUMENTS if one.get(key) is not None), unknown)
    return {"id": None if id is None else str(id), "function": {"name": name, "arguments": arguments}}
