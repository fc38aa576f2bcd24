"""Importer for Inspect logs: one EvalSample as JSON, one trajectory. `deltah.traces.files` takes the logs apart.

docs/formats.md states the mapping of every field. Source: inspect_ai 0.3.285, log schema 2: `log/_log.py`,
`model/_chat_message.py`, `model/_model_output.py` and `event/_tool.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import msgspec

from deltah.core.types import Scalar, StopReason, Trajectory
from deltah.errors import DataError
from deltah.traces.conversation import Conversation, Facts, LoggedMessage, message_text, to_trajectory
from deltah.traces.files import Position
from deltah.traces.importing import IMPORTERS, RecordContext, epoch_seconds, finite, golden_answers, outcome_of, scalars
from deltah.traces.logprobs import NO_TOKENS, pack
from deltah.traces.openai_schema import FunctionCall, LogprobsBlock, Message, MessageToolCall, to_schema
from deltah.traces.parts import result_text

_ATTACHMENT = "attachment://"
_GRADES = {"C": 1.0, "P": 0.5, "I": 0.0, "N": 0.0, "yes": 1.0, "true": 1.0, "no": 0.0, "false": 0.0}
_CUT = ("max_tokens", "model_length")


class InspectMessage(msgspec.Struct):
    """ChatMessage of any role; a user message's `tool_call_id` is a list and of no use here."""

    role: str
    id: str | None = None
    content: Any = ""
    tool_calls: list[InspectCall] | None = None
    tool_call_id: Any = None
    error: dict[str, Any] | None = None

    @property
    def answers(self) -> str | None:
        """Id of the call that it is the result of."""
        return self.tool_call_id if isinstance(self.tool_call_id, str) else None


class InspectCall(msgspec.Struct):
    """One entry of `tool_calls`."""

    id: str
    function: str
    arguments: Any = None


class OutputChoice(msgspec.Struct):
    """ChatCompletionChoice."""

    message: InspectMessage
    stop_reason: str = "unknown"
    logprobs: LogprobsBlock | None = None


class Output(msgspec.Struct):
    """ModelOutput."""

    choices: list[OutputChoice] = []
    model: str | None = None


class Event(msgspec.Struct):
    """Any event; what model and tool events share names for with others is read only once the kind is known."""

    event: str = ""
    output: Any = None
    config: Any = None
    model: Any = None
    id: Any = None
    timestamp: Any = None
    completed: Any = None
    working_time: Any = None


class Score(msgspec.Struct):
    """One scorer's verdict."""

    value: Any = None
    answer: str | None = None


class EvalSample(msgspec.Struct):
    """One sample of one epoch."""

    id: int | str
    epoch: int
    input: str | list[InspectMessage]
    target: str | list[str]
    messages: list[InspectMessage]
    output: Output | None = None
    scores: dict[str, Score] | None = None
    metadata: dict[str, Any] = {}
    events: list[Event] = []
    attachments: dict[str, str] = {}
    limit: Any = None
    error: Any = None
    uuid: str | None = None


@IMPORTERS.register(
    "inspect", meaning="Sample of an Inspect log", fields=("epoch", "target", "messages"), schema=EvalSample
)
def read(sample: EvalSample, context: RecordContext) -> Trajectory:
    """Read one sample."""
    if not any(message.role == "assistant" for message in sample.messages):
        raise DataError("field messages: no message of role 'assistant'; there is nothing to measure")
    trajectory = to_trajectory(_conversation(sample, context.where), context.vocab_size)
    stop_reason = StopReason.UNKNOWN if sample.error is not None else trajectory.stop_reason
    return replace(trajectory, stop_reason=stop_reason if sample.limit is None else StopReason.LENGTH)


def _conversation(sample: EvalSample, where: Position) -> Conversation:
    """The sample as a conversation whose assistant messages carry their tokens."""
    outputs = _outputs(sample)
    seconds = {e.id: _seconds(e) for e in sample.events if e.event == "tool" and isinstance(e.id, str)}
    messages = list[LoggedMessage]()
    for message, (choice, _) in zip(sample.messages, outputs, strict=True):
        content = _resolved(message.content, sample.attachments)
        parts: list[Any] = content if isinstance(content, list) else [message_text(content)]
        if message.role == "assistant":
            tokens = NO_TOKENS if choice is None else pack(choice.logprobs)
            messages.append(LoggedMessage(_turn(message, parts, sample.attachments), tokens))
            for part in (part for part in parts if _is(part, "tool_use")):
                served = part.get("result") or part.get("error") or ""
                messages.append(LoggedMessage(Message("tool", content=served, tool_call_id=str(part.get("id")))))
        else:
            shown = result_text(parts) if message.role == "tool" else _visible(parts)
            text = shown or _resolved((message.error or {}).get("message", ""), sample.attachments)
            took, failed = seconds.get(message.answers or ""), message.error is not None
            said = Message(message.role, content=text, tool_call_id=message.answers, duration_s=took, is_error=failed)
            messages.append(LoggedMessage(said))
    event = next((event for _, event in outputs if event is not None), None)
    return Conversation(messages, _facts(sample, event, outputs[-1][0]), where)


def _facts(sample: EvalSample, event: Event | None, last: OutputChoice | None) -> Facts:
    score, event = next(iter((sample.scores or {}).values()), Score()), event or Event()
    temperature = finite(event.config.get("temperature")) if isinstance(event.config, dict) else None
    return Facts(
        id=f"{sample.id}/{sample.epoch}",
        group_id=str(sample.id),
        model=event.model if isinstance(event.model, str) else (sample.output or Output()).model or None,
        sampling_temperature=temperature,
        question=_question(sample),
        golden_answers=golden_answers(sample.target),
        prediction=None if score.answer is None else _resolved(score.answer, sample.attachments),
        outcome=_grade(score.value),
        finish_reason="length" if last is not None and last.stop_reason in _CUT else None,
        metadata=_metadata(sample) | ({} if temperature is None else {"sampling_temperature": temperature}),
    )


def _outputs(sample: EvalSample) -> list[tuple[OutputChoice | None, Event | None]]:
    """Of each message, the first choice and the event of the model call that gave it."""
    known: dict[str, tuple[OutputChoice | None, Event | None]] = {}
    for number, event in enumerate(sample.events):
        if event.event != "model" or event.output is None:
            continue
        try:
            output = to_schema(event.output, Output)
        except msgspec.ValidationError as error:
            raise DataError(f"field events[{number}].output: {error}") from error
        if output.choices and output.choices[0].message.id:
            known[output.choices[0].message.id] = output.choices[0], event
    paired = [known.get(m.id or "", (None, None)) for m in sample.messages]
    last = max(i for i, m in enumerate(sample.messages) if m.role == "assistant")
    if paired[last][0] is None and sample.output is not None and sample.output.choices:
        final = sample.output.choices[0]
        if final.message.id == sample.messages[last].id:
            paired[last] = final, None
    return paired


def _turn(message: InspectMessage, parts: Sequence[Any], attachments: Mapping[str, str]) -> Message:
    """An assistant message; tools that the provider ran inside it are calls too."""
    served = [part for part in parts if _is(part, "tool_use")]
    called = [(str(p.get("id")), str(p.get("name") or ""), p.get("arguments")) for p in served]
    called += [(call.id, call.function, _resolved(call.arguments, attachments)) for call in message.tool_calls or []]
    return Message(
        role="assistant",
        content=_visible(parts),
        reasoning_content="".join(_reasoning(part) for part in parts if _is(part, "reasoning")) or None,
        tool_calls=[MessageToolCall(id=id, function=FunctionCall(name=n, arguments=a)) for id, n, a in called] or None,
    )


def _is(part: Any, *kinds: str) -> bool:
    return isinstance(part, dict) and part.get("type") in kinds


def _visible(parts: Sequence[Any]) -> str:
    return message_text([part for part in parts if not _is(part, "reasoning", "tool_use")])


def _reasoning(part: dict[str, Any]) -> str:
    """Visible thinking: a redacted part has only its summary."""
    text = part.get("summary") if part.get("redacted") else part.get("reasoning")
    return text if isinstance(text, str) else ""


def _resolved(value: Any, attachments: Mapping[str, str]) -> Any:
    """Copy of a JSON value with the texts that its attachment references stand for."""
    if isinstance(value, str):
        return attachments.get(value.removeprefix(_ATTACHMENT), value) if value.startswith(_ATTACHMENT) else value
    if isinstance(value, list):
        return [_resolved(item, attachments) for item in value]
    if isinstance(value, dict):
        return {key: _resolved(item, attachments) for key, item in value.items()}
    return value


def _seconds(event: Event) -> float | None:
    took = epoch_seconds(event.completed) - epoch_seconds(event.timestamp)
    return round(took, 6) if took >= 0 else finite(event.working_time)  # Inspect's clock counts microseconds


def _question(sample: EvalSample) -> str | None:
    asked: Any = sample.input
    if isinstance(asked, list):
        asked = next((message.content for message in reversed(asked) if message.role == "user"), None)
    return None if asked is None else message_text(_resolved(asked, sample.attachments))


def _grade(value: Any) -> float | None:
    """Score as a number in [0, 1]; None where it is none."""
    word = _GRADES.get(value, _GRADES.get(value.lower())) if isinstance(value, str) else None
    return outcome_of(value) if word is None else word


def _metadata(sample: EvalSample) -> dict[str, Scalar]:
    known: dict[str, Any] = {f"score/{name}": score.value for name, score in (sample.scores or {}).items()}
    known |= {"epoch": sample.epoch} | ({} if sample.uuid is None else {"uuid": sample.uuid})
    if isinstance(sample.limit, dict):
        known["limit"] = sample.limit.get("type")
    if isinstance(sample.error, dict):
        known["error"] = sample.error.get("message")
    return scalars(sample.metadata) | scalars(known)
