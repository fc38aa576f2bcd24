"""Importers for OpenAI Responses, as API calls of a chat, and for the rollouts of NeMo Gym, which hold their items.

Lost: images and files, summaries of hidden reasoning have no tokens, items of other types (lists of tools, approvals,
compactions); of NeMo Gym `generation_log_probs`, which have neither alternatives nor texts, and token ids. Mapping:
docs/formats/responses.md, docs/formats/nemo-gym.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Final

import msgspec

from deltah.errors import DataError
from deltah.traces.conversation import ApiCall, LoggedMessage
from deltah.traces.importers import openai_chat
from deltah.traces.importing import IMPORTERS, Imported, RecordContext, finite, golden_answers, holds, inside, scalars
from deltah.traces.openai_schema import ChatLine, LogprobsBlock, Message, TokenLogprob, to_schema
from deltah.traces.parts import first_of, objects, to_messages

_ARGUMENTS: Final = ("arguments", "input", "action", "code", "queries", "operation", "prompt")
_RESULTS: Final = ("output", "outputs", "results", "result", "error")
_ENDS: Final = ("response.completed", "response.incomplete", "response.failed")
_EVENT: Final = msgspec.json.Decoder(dict[str, Any])
_EVENT_LINE: Final = re.compile(rb'\s*\{[^{}[\]]*"type"\s*:\s*"response\.')
_HOLDS: Final = holds(
    "response.output", "response.body.output", "response.response", "output.type", "incomplete_details"
)


class Exchange(msgspec.Struct):
    """Where the request and the response of a line stand."""

    request: dict[str, Any] | None = None
    responses_create_params: dict[str, Any] = {}
    response: dict[str, Any] | list[Any] | str | None = None


@IMPORTERS.register(
    "responses",
    meaning="OpenAI Responses, with log-probabilities where they were asked for",
    fields=(("response", "output", "incomplete_details", "sequence_number"),),
    sign=lambda data: _EVENT_LINE.match(data) or _HOLDS(data),
)
def read(record: dict[str, Any], context: RecordContext) -> ApiCall | tuple[()]:
    """Read one exchange; of a stream whose events are lines, the last one, which holds all."""
    kind = str(record.get("type"))
    if kind.startswith("response.") and kind not in _ENDS:
        return ()
    line = msgspec.convert(record, Exchange)
    asked = {"input": record.get("input")} if line.request is None else _body(line.request)
    answered = _whole(record if line.response is None else line.response)
    if answered.get("error") is not None or answered.get("status") == "failed":
        raise DataError("field response: it holds an error; there is no message of the model to measure")
    said = _messages(answered.get("output"))
    last = max((i for i, message in enumerate(said) if message.role == "assistant"), default=None)
    if last is None:
        raise DataError("field response.output: no message, thought or call of the model; there is nothing to measure")
    reason = inside(answered, "incomplete_details", "reason") or answered.get("status")
    choice = {"message": said[last], "finish_reason": "length" if reason == "max_output_tokens" else reason}
    usage = {"completion_tokens": inside(answered, "usage", "output_tokens")}
    kept = _id(answered.get("conversation")) or _id(asked.get("conversation"))
    chat = record | {
        "request": asked | {"messages": [*_history(asked), *said[:last]], "temperature": _temperature(asked, answered)},
        "response": {"choices": [choice], "usage": usage, "id": answered.get("id"), "model": answered.get("model")},
        "conversation_id": record.get("conversation_id") or kept,
    }
    call = openai_chat.read_call(to_schema(chat, ChatLine), context.where)
    named = tuple(filter(None, (_id(answered), kept)))
    facts = replace(call.facts, continues=_id(asked.get("previous_response_id")) or kept, continued_as=named)
    return replace(call, facts=facts, after=tuple(map(LoggedMessage, said[last + 1 :])))


@IMPORTERS.register("nemo-gym", meaning="Rollout of NeMo Gym", fields=("responses_create_params", "response"))
def read_rollout(record: dict[str, Any], context: RecordContext) -> Imported:
    """Read one rollout of NeMo Gym."""
    line = msgspec.convert(record, Exchange)
    asked, answered = line.responses_create_params, _whole(line.response)
    task, rollout = record.get("_ng_task_index"), record.get("_ng_rollout_index")
    answers = first_of(record, ("golden_answers", "expected_answer", "answer"))
    chat = {
        "id": f"{task}/{rollout}" if task is not None and rollout is not None else None,
        "group_id": None if task is None else str(task),
        "messages": [*_history(asked), *_messages(answered.get("output"))],
        "model": answered.get("model") or asked.get("model"),
        "temperature": _temperature(asked, answered),
        "golden_answers": [*golden_answers(answers)] or None,
        "score": finite(record.get("reward")),
        "tools": asked.get("tools"),
        "metadata": scalars(record, leave_out=frozenset({"id", "reward"})),
    }
    return openai_chat.read(to_schema(chat, ChatLine), context)


def _messages(items: Any) -> list[Message]:
    """Messages that the items of an input or an output stand for; a turn of the model is one message."""
    if isinstance(items, str):
        return to_messages(items)
    said = to_messages([*_plain(items)], "assistant")
    for message in said:
        if message.role == "assistant" and (parts := objects(message.content)):
            blocks = msgspec.convert([part.get("logprobs") or () for part in parts], list[list[TokenLogprob]])
            tokens = [token for block in blocks for token in block]
            message.logprobs = LogprobsBlock(content=tokens) if tokens else None
            message.content = "".join(str(part.get("text") or part.get("refusal") or "") for part in parts)
    return said


def _history(asked: Mapping[str, Any]) -> Iterator[Message]:
    """Messages of a request, its instructions first."""
    for message in _messages(asked.get("instructions")):
        yield msgspec.structs.replace(message, role="system")
    yield from _messages(asked.get("input"))


def _plain(items: Any) -> Iterator[Mapping[str, Any]]:
    """Messages, calls and results among items; a call that the server answered has its result after the turn's."""
    served = list[Mapping[str, Any]]()
    for item in objects(items):
        kind = str(item.get("type") or "message")
        if kind.endswith("_call"):
            id = item.get("call_id") or item.get("id")
            name, arguments = item.get("name") or kind.removesuffix("_call"), first_of(item, _ARGUMENTS)
            yield {"type": "function_call", "id": id, "name": name, "arguments": arguments}
            if (found := first_of(item, _RESULTS)) is not None:
                failed = item.get("error") is not None
                served.append({"type": "function_call_output", "call_id": id, "output": found, "is_error": failed})
            continue
        yield from served
        served = []
        if kind.endswith("_output") or kind in ("message", "reasoning"):
            yield item
    yield from served


def _body(given: dict[str, Any]) -> dict[str, Any]:
    body = given.get("body")
    return body if isinstance(body, dict) else given


def _whole(given: dict[str, Any] | list[Any] | str | None) -> dict[str, Any]:
    """A response; of a stream the one of its last event."""
    if isinstance(given, str):
        given = openai_chat.events(given, _EVENT)
    if not isinstance(given, list):
        return _body(given or {})
    events = objects(given)
    last: dict[str, Any] = next(
        (body for event in reversed(events) if isinstance(body := event.get("response"), dict)), {}
    )
    items = [event.get("item") for event in events if event.get("type") == "response.output_item.done"]
    return last if last.get("output") else last | {"output": items}


def _temperature(asked: Mapping[str, Any], answered: Mapping[str, Any]) -> Any:
    return answered.get("temperature") if asked.get("temperature") is None else asked["temperature"]


def _id(value: Any) -> str | None:
    found = value.get("id") if isinstance(value, dict) else value
    return found if isinstance(found, str) and found else None
