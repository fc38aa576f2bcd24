"""Messages of other protocols in the shape of OpenAI's: calls, results and thoughts that are parts of a content.

Anthropic, Bedrock, Gemini, the Vercel AI SDK, LangChain and the conventions of OpenTelemetry and OpenInference write a
call as a part of the assistant's message and a result as a part of the user's. One table tells these parts by their
types; what they hold is read from the first of several field names. Nothing here depends on a format of logs.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from deltah.traces.openai_schema import (
    ARGUMENTS,
    IDS,
    NAMES,
    Choice,
    FunctionCall,
    LogprobsBlock,
    Message,
    MessageToolCall,
    Response,
    to_schema,
)

_KINDS: Final = (
    (
        "result",
        re.compile(r".*tool.?result|.*(?:tool|function|_call).*(?:response|output)|.*_call_output", re.IGNORECASE),
    ),
    ("call", re.compile(r".*tool.?use|.*(?:tool|function).?call|.*_call", re.IGNORECASE)),
    ("thought", re.compile(r"(?:redacted_)?thinking|reasoning(?:Content)?")),
)
"""What a part holds, by its type. Bedrock's and Gemini's parts have no type: their one key is the name, over fields."""
_ARGUMENTS: Final = (*ARGUMENTS, "action", "server_tool_call")
_RESULT: Final = ("content", "output", "response", "result", "server_tool_call_response")
_THOUGHT: Final = ("thinking", "reasoning", "reasoningText", "text", "content", "summary")
_TEXTS: Final = frozenset(("text", "output_text", "input_text"))
_MEDIA: Final = frozenset((
    "image", "image_url", "input_image", "image-data", "audio", "input_audio", "video", "media", "document", "file",
    "file-data", "blob", "uri", "resource", "resource_link",
))  # fmt: skip
_CUT: Final = ("max_tokens", "model_context_window_exceeded")
_HOLDERS: Final = ("messages", "message", "input", "output", "candidates", "contents", "prompts", "prompt")
"""Names under which an object holds messages."""
_ROLES: Final = {role: role for role in ("user", "assistant", "system", "tool")} | {
    "human": "user", "ai": "assistant", "model": "assistant", "function": "tool", "developer": "system",
}  # fmt: skip


def expand(message: Message) -> list[Message]:
    """A message as OpenAI's protocol has it: thoughts and calls beside the text, each result a message of its own.

    What follows a result inside one message (a tool that the server ran) begins a new message of the same role.
    """
    if not isinstance(message.content, list):
        return [message]
    parts = [(*_opened(half), half) for part in message.content for half in _halves(part)]
    if not any(kind for kind, _, _ in parts):
        return [replace(message, content=[part for _, _, part in parts])]
    said, held = list[Message](), defaultdict[str, list[Any]](list)
    for kind, fields, part in parts:
        if kind != "result":
            held[kind].append(fields if kind else part)
            continue
        said += [*_without_parts(message, held, first=not said), _result(fields)]
        held.clear()
    return said + _without_parts(message, held, first=not said)


def to_messages(given: Any, role: str = "user") -> list[Message]:
    """Messages in any shape that clients log: a list, also nested, one message, an object that holds some, or a text.

    `role` is that of what names none itself.
    """
    return [message for raw in _raw_messages(given, role) for message in expand(raw)]


def to_response(given: Any) -> Response:
    """The response in a logged output: OpenAI's, Anthropic's, LangChain's generations, messages, or a text."""
    if isinstance(given, Mapping) and isinstance(given.get("choices"), list):
        return to_schema(given, Response, strict=False)
    facts, said = given if isinstance(given, Mapping) else {}, given
    if (generation := facts.get("generations")) is not None:
        while isinstance(generation, list) and generation:
            generation = generation[0]
        facts = generation if isinstance(generation, Mapping) else {}
        said = facts.get("message") or facts.get("text")
    answers = [message for message in _raw_messages(said, "assistant") if message.role == "assistant"]
    id, model = (value if isinstance(value, str) else None for value in (facts.get("id"), facts.get("model")))
    finish = first_of(facts, ("finish_reason", "stop_reason", "finishReason"))
    finish = "length" if finish in _CUT else finish if isinstance(finish, str) else None
    message = answers[-1] if answers else None
    choice = Choice(message=message, logprobs=_logprobs(facts, said), finish_reason=finish)
    return Response(id=id, choices=[choice], model=model)


def is_message(given: Any) -> bool:
    """Whether an object says who speaks."""
    return isinstance(given, Mapping) and _fields(given)[1] is not None


def tool_message(given: Any) -> Message | None:
    """The message of a tool that a framework logged as its output; None for any other value."""
    fields, role = _fields(mapping(given))
    return _message(fields, role) if role == "tool" and "content" in fields else None


def result_text(value: Any) -> str:
    """Text of a tool's result; a picture or other media by a digest, so that different ones stay different."""
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, list) and value and all(_is_shown(item) for item in value):
        return "".join(map(result_text, value))
    if isinstance(value, Mapping) and _is_shown(value):
        if str(value.get("type")) in _MEDIA:
            digest = hashlib.blake2b(msgspec.json.encode(value), digest_size=6).hexdigest()
            return f"[{value['type']} {digest}]"
        return result_text(first_of(value, ("text", "value", "json", "content")))
    return msgspec.json.encode(value).decode()


def _is_shown(value: Any) -> bool:
    """Whether a value is a part that shows something, and no object of a tool's own."""
    if not isinstance(value, Mapping):
        return isinstance(value, str)
    kind = str(value.get("type"))
    typed = kind in ("json", "error-text", "error-json", "content") and set(value) == {"type", "value"}
    return kind in _TEXTS | _MEDIA or typed or set(value) in ({"text"}, {"json"})


def _opened(part: Any) -> tuple[str, Mapping[str, Any]]:
    """What a part holds beside text and media ("" for nothing), and the fields that say it."""
    if not isinstance(part, Mapping):
        return "", {}
    kind = part.get("type")
    named = [(kind, part)] if isinstance(kind, str) else [(k, v) for k, v in part.items() if isinstance(v, Mapping)]
    return next(((held, fields) for name, fields in named if (held := _held(name))), ("", {}))


def _kind(part: Any) -> str:
    return _opened(part)[0]


@lru_cache(maxsize=1024)
def _held(name: str) -> str:
    return next((held for held, sign in _KINDS if sign.fullmatch(name)), "")


def _without_parts(message: Message, held: defaultdict[str, list[Any]], *, first: bool) -> list[Message]:
    """A message with the calls and thoughts of its parts beside its text; none where nothing was said."""
    calls = list(message.tool_calls or ()) if first else []
    known = {call.id for call in calls if call.id}
    calls += [call for call in map(to_call, held["call"]) if call.id not in known]
    thought = "".join([(first and message.reasoning_content) or "", *map(_thought, held["thought"])])
    if not (held[""] or calls or thought):
        return []
    return [replace(message, content=held[""], tool_calls=calls or None, reasoning_content=thought or None)]


def _halves(part: Any) -> list[Any]:
    """A part as other protocols have it: text as `text`; of a call with its result, as the Vercel AI SDK's, both."""
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text" and "text" not in part:  # OpenTelemetry's
        return [{"type": "text", "text": part.get("content")}]
    whole = isinstance(kind, str) and "toolCallId" in part and ("output" in part or "errorText" in part)
    if not whole or _kind(part) == "result":
        return [part]
    name = first_of(part, NAMES) or str(kind).removeprefix("tool-")
    call = {"type": "tool_call", "id": part["toolCallId"], "name": name, "input": part.get("input")}
    output, failed = first_of(part, ("errorText", "output")), part.get("errorText") is not None
    return [call, {"type": "tool_result", "id": call["id"], "output": output, "is_error": failed}]


def _thought(fields: Mapping[str, Any]) -> str:
    text = first_of(fields, _THOUGHT)
    if isinstance(text, list):
        return "".join(map(_thought, objects(text)))
    return _thought(text) if isinstance(text, Mapping) else text if isinstance(text, str) else ""


def to_call(given: Mapping[str, Any]) -> MessageToolCall:
    """One call, whatever its protocol; its name and arguments may stand in a `function`."""
    fields = mapping(given.get("tool_call")) or given
    function = mapping(fields.get("function")) or fields
    name = first_of(function, NAMES)
    if name is None and str(fields.get("type")).endswith("_call"):  # a tool of the server's own: web_search_call
        name = fields["type"].removesuffix("_call")
    named = FunctionCall(name=name if isinstance(name, str) else None, arguments=first_of(function, _ARGUMENTS))
    return MessageToolCall(id=text_of(fields, IDS), function=named)


def _result(fields: Mapping[str, Any]) -> Message:
    """The message of a result part."""
    value, id = first_of(fields, _RESULT), text_of(fields, IDS)
    inner = value if isinstance(value, Mapping) else {}
    failed = str(inner.get("type")).startswith("error-")
    for place in (fields, inner):
        failed |= place.get("is_error") is True or place.get("isError") is True or place.get("status") == "error"
    if isinstance(inner.get("content"), list) and set(inner) <= {"content", "isError", "_meta", "structuredContent"}:
        value = inner["content"]  # as an MCP server gives it
    text, name = result_text(value), first_of(fields, NAMES)
    return Message("tool", text, tool_call_id=id, name=name, is_error=failed or None)


def _raw_messages(given: Any, role: str) -> list[Message]:
    if given is None or given == "":
        return []
    if isinstance(given, list) and not are_parts(given):
        said = [message for item in given for message in _raw_messages(item, role)]
        return _by_turn(said) if any(map(_kind, given)) else said
    if kind := _kind(given):  # an item of OpenAI's Responses
        return [Message(role="tool" if kind == "result" else "assistant", content=[given])]
    if not isinstance(given, Mapping):
        return [Message(role=role, content=given)]
    fields, said_role = _fields(given)
    if said_role is None and isinstance(fields.get("content"), Mapping):
        return _raw_messages(fields["content"], role)
    inner = [fields[name] for name in _HOLDERS if isinstance(fields.get(name), list | dict | str)]
    return _raw_messages(inner[0], role) if said_role is None and inner else [_message(fields, said_role or role)]


def are_parts(given: list[Any]) -> bool:
    """Whether a list is the content of one message."""
    return any(_kind(item) or _is_shown(item) for item in given) and not any(map(is_message, given))


def _by_turn(said: Sequence[Message]) -> list[Message]:
    """Messages of which those of one turn, which Responses keep as separate items, are one."""
    turns = list[Message]()
    for message in said:
        if turns and message.role == turns[-1].role == "assistant":
            as_parts = [c if isinstance(c, list) else [{"text": c}] for c in (turns[-1].content, message.content) if c]
            turns[-1] = replace(turns[-1], content=[part for parts in as_parts for part in parts])
        else:
            turns.append(message)
    return turns


def _fields(given: Mapping[str, Any]) -> tuple[Mapping[str, Any], str | None]:
    """Fields of a message and its role; LangChain's and OpenInference's stand one level deeper."""
    kind = given.get("type")
    if given.get("lc") == 1 and isinstance(given.get("kwargs"), Mapping):
        path = given.get("id")
        return given["kwargs"], _speaker(path[-1] if isinstance(path, list) and path else None)
    if isinstance(given.get("data"), Mapping) and _speaker(kind) is not None:
        return given["data"], _speaker(kind)
    if isinstance(given.get("message"), Mapping) and "role" in given["message"]:
        return _fields(given["message"])
    return given, _speaker(given.get("role")) or _speaker(kind)


def _speaker(name: Any) -> str | None:
    """Role of a name, which may be that of LangChain's class: "AIMessageChunk"."""
    return _ROLES.get(str(name).removesuffix("Chunk").removesuffix("Message").lower())


def _message(fields: Mapping[str, Any], role: str) -> Message:
    content = next((fields[name] for name in ("content", "parts", "contents", "text") if fields.get(name)), None)
    written = json_value(content)
    if isinstance(written, list) and written and all(_kind(part) or _is_shown(part) for part in written):
        content = written  # parts as text
    if isinstance(content, list):
        content = [part.get("message_content", part) if isinstance(part, Mapping) else part for part in content]
    both = (fields, mapping(fields.get("additional_kwargs")))
    listed = next((place[n] for place in both for n in ("tool_calls", "toolCalls") if place.get(n)), None)
    thought = next((place[n] for place in both for n in ("reasoning_content", "reasoning") if place.get(n)), None)
    calls = [to_call(call) for call in objects(listed)]
    if content is None and not (calls or thought or "content" in fields or "role" in fields):
        content = msgspec.json.encode(fields).decode()
    if role == "tool" and not (isinstance(content, list) and any(map(_kind, content))):
        return _result({**fields, "content": content})
    thought = thought if isinstance(thought, str) else None
    return Message(role=role, content=content, reasoning_content=thought, tool_calls=calls or None)


def _logprobs(facts: Mapping[str, Any], said: Any) -> LogprobsBlock | None:
    """The block that LangChain keeps beside a generation, or in its message's `response_metadata`."""
    message = _fields(said)[0] if isinstance(said, Mapping) else {}
    places = (facts, mapping(facts.get("generation_info")), mapping(message.get("response_metadata")))
    found = next((place["logprobs"] for place in places if isinstance(place.get("logprobs"), Mapping)), None)
    return None if found is None else to_schema(found, LogprobsBlock, strict=False)


def json_value(value: Any) -> Any:
    """The object or list that a text holds as JSON, or the objects of its lines; any other value as it is."""
    if not isinstance(value, str) or value.lstrip()[:1] not in ("{", "["):
        return value
    try:
        return msgspec.json.Decoder().decode_lines(value) if "}\n{" in value else msgspec.json.decode(value)
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
        return value


def objects(given: Any) -> list[Mapping[str, Any]]:
    """The objects of a list; none of anything else."""
    return [item for item in given if isinstance(item, Mapping)] if isinstance(given, list) else []


def mapping(given: Any) -> Mapping[str, Any]:
    """The object that a value is, or holds as JSON; an empty one for anything else."""
    found = json_value(given)
    return found if isinstance(found, Mapping) else {}


def first_of(fields: Mapping[str, Any], names: Sequence[str]) -> Any:
    """Value of the first of these names that has one; None where none has."""
    return next((fields[name] for name in names if fields.get(name) is not None), None)


def text_of(fields: Mapping[str, Any], names: Sequence[str]) -> str | None:
    """The same as a text; None also for an empty one."""
    value = first_of(fields, names)
    return None if value in (None, "") else str(value)
