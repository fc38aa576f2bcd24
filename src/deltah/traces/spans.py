"""Spans of traces (OpenTelemetry, OpenInference, Langfuse, LangSmith), and the API calls that a trace of them holds.

A span is one step of a program: a request to a model, a run of a tool, or anything around them. Importers map records
to spans; the spans of a trace may be spread over records, so they are gathered until the log ends. Then

* each span of a model is an API call. Its history joins it with the others of its conversation
  (`deltah.traces.joining`); of models that call models, the innermost count.
* spans of tools give the calls their durations and errors, and the results that no later request repeats. A span
  answers the call with its id, else the oldest open one of its name.
* where no model's output holds calls, but tools ran, the spans in order of time are the conversation: what ran between
  two answers of the model are the calls of the first.
"""

from __future__ import annotations

import math
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeAlias

import msgspec

from deltah.errors import DataError
from deltah.traces.conversation import COST, UNCLAIMED, ApiCall, Conversation, Facts, LoggedMessage
from deltah.traces.files import Position
from deltah.traces.importers.openai_chat import read_call
from deltah.traces.importing import epoch_seconds, finite, outcome_of, scalars, seconds
from deltah.traces.openai_schema import ChatLine, FunctionCall, Message, MessageToolCall, Request, Response
from deltah.traces.parts import expand, json_value, result_text, to_messages, to_response, tool_message

SPAN_OF: Final = "span/"
"""Metadata key of a call, before its id: `<trace>/<span>` of its run, or else of the answer that issued it."""
MAX_OPEN_BYTES: Final = 256 * 2**20
_SPAN_BYTES: Final = 500
"""Memory of a span beside its input and output, roughly."""
_KINDS: Final = {"llm": "llm", "generation": "llm", "chat_model": "llm", "tool": "tool"}


@dataclass(slots=True, kw_only=True)
class Span:
    """One step of a trace, made of values as a log has them: texts and numbers of each other, times in any unit."""

    trace: str
    id: str
    parent: str | None = None
    kind: str = ""
    """"llm", "tool", "said" for a message of a session, or anything else for what only stands around them."""
    name: str = ""
    """Of the tool, where one ran."""
    started_at: Any = math.nan
    """Seconds since the epoch."""
    ended_at: Any = math.nan
    input: Any = None
    """Messages in any shape that `deltah.traces.parts` reads; arguments of a tool."""
    output: Any = None
    """The response; a tool's result."""
    error: str | None = None
    """Why it failed; None: it did not, or nobody says."""
    call_id: str | None = None
    session: str | None = None
    """Id of the conversation; None: the trace is one."""
    model: str | None = None
    temperature: float | None = None
    cost: float | None = None
    """In the currency of the log."""
    scores: dict[str, Any] = field(default_factory=dict)
    """Of the trace, by name; the only one in [0, 1] is its outcome."""

    def __post_init__(self) -> None:
        self.parent, self.call_id = _text(self.parent), _text(self.call_id)
        self.session, self.model = _text(self.session), _text(self.model)
        self.error = None if self.error is None else str(self.error)
        self.kind, self.name = _KINDS.get(str(self.kind).lower(), self.kind), str(self.name or "")
        self.started_at, self.ended_at = _moment(self.started_at), _moment(self.ended_at)
        self.temperature, self.cost = _number(self.temperature), _number(self.cost)
        if self.kind == "llm":
            self.input, self.output = json_value(self.input), json_value(self.output)


def _text(value: Any) -> str | None:
    return str(value) if isinstance(value, str | int | float) and value != "" else None


_Answer: TypeAlias = tuple[Span, Response, list[MessageToolCall]]
"""A model's span, its response, and the calls in it."""


def _moment(value: Any) -> float:
    """A time in seconds; OTLP writes nanoseconds as text, JavaScript seconds and nanoseconds as a pair."""
    if isinstance(value, list) and len(value) == 2:
        return seconds(value[0]) + seconds(value[1]) / 1e9
    return epoch_seconds(int(value) if isinstance(value, str) and value.isdecimal() else value)


def _number(value: Any) -> float | None:
    """A finite number, also as a text, as databases export it; None for anything else."""
    try:
        return finite(float(value) if isinstance(value, str) else value)
    except ValueError:
        return None


class SpanBuffer:
    """Gathers spans by their trace; gives what traces hold when the log ends, or when they outgrow `max_bytes`.

    A trace that cannot be read is reported with the place of its first record and the reason.
    """

    def __init__(self, report: Callable[[Position, str], object], max_bytes: int = MAX_OPEN_BYTES) -> None:
        self._report, self._max_bytes = report, max_bytes
        self._open: OrderedDict[str, tuple[Position, list[Span]]] = OrderedDict()
        self._n_bytes = 0

    def add(self, spans: Sequence[Span], where: Position) -> Iterator[ApiCall | Conversation]:
        """Take the spans of a record; yield what the traces hold that waited longest, while memory runs short."""
        for span in spans:
            self._open.setdefault(span.trace, (where, []))[1].append(span)
        self._n_bytes += sum(map(_size, spans))
        while self._n_bytes > self._max_bytes and len(self._open) > 1:
            _, oldest = next(iter(self._open.values()))
            self._n_bytes -= sum(map(_size, oldest))
            yield from self._close()

    def finish(self) -> Iterator[ApiCall | Conversation]:
        """Yield what the open traces hold, in the order they began."""
        while self._open:
            yield from self._close()

    def _close(self) -> Iterator[ApiCall | Conversation]:
        name, (where, spans) = self._open.popitem(last=False)
        try:
            yield from _conversations(spans, where)
        except (DataError, msgspec.ValidationError) as error:
            self._report(where, f"trace {name}: {error}")


def _size(span: Span) -> int:
    return _SPAN_BYTES + len(str(span.input)) + len(str(span.output))


def _conversations(spans: Sequence[Span], where: Position) -> Sequence[ApiCall | Conversation]:
    """API calls of a trace, in order; or its one conversation, where no answer of a model holds a call."""
    by_id = {span.id: _settled(span) for span in spans}
    ordered = sorted(by_id.values(), key=_began)
    whole = _facts(ordered)
    if said := [span for span in ordered if span.kind == "said" and isinstance(span.input, Mapping)]:
        return [_session(said, whole, where)]
    models = [span for span in ordered if span.kind == "llm"]
    around = {outer.id for span in models for outer in _ancestors(span, by_id)}
    models = [span for span in models if span.id not in around]
    answers = list[_Answer]()
    for span in models:
        reply = to_response(span.output)
        if turns := _said(reply):
            answers.append((span, reply, [call for turn in turns for call in turn.tool_calls or ()]))
    called = {call.function.name for _, _, calls in answers for call in calls if call.function}
    tools = {s.id: s for s in ordered if s.kind == "tool" or (s.name in called and s.kind != "llm")}
    # A client's call of a tool holds the server's part of it.
    outer = [s for s in tools.values() if not any(o.id in tools and o.name == s.name for o in _ancestors(s, by_id))]
    if tools and not called:
        return [_timeline(models, outer, whole, where)]
    if models and not answers and not any(span.error for span in models):
        raise DataError(
            "requests to a model without messages; let the instrumentation capture contents "
            "(OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT=true), or export inputs and outputs"
        )
    return [*_api_calls(answers, outer, whole, where)]


def _ancestors(span: Span, by_id: Mapping[str, Span]) -> Iterator[Span]:
    seen = {span.id}
    while span.parent is not None and span.parent in by_id and span.parent not in seen:
        seen.add(span.parent)
        span = by_id[span.parent]
        yield span


def _api_calls(answers: Sequence[_Answer], tools: Sequence[Span], whole: Facts, where: Position) -> Iterator[ApiCall]:
    """Each answer of a model as an API call, with the results that the runs of its tools gave."""
    waiting, runs, n_open = defaultdict[tuple[str | None, str], deque[Span]](deque), dict[str, Span](), len(tools)
    for run in tools:
        waiting[run.call_id, "" if run.call_id else run.name].append(run)
    for n, (span, response, calls) in enumerate(answers, start=1):
        metadata, after = dict(whole.metadata), list[LoggedMessage]()
        if span.cost is not None:
            metadata[COST] = span.cost
        for call in calls:
            claimed = _claimed(call, span, waiting)
            n_open -= claimed is not None
            metadata[f"{SPAN_OF}{call.id}"] = f"{span.trace}/{(claimed or span).id}"
            if claimed is not None and call.id is not None:
                runs[call.id] = claimed
                if claimed.output is not None or claimed.error is not None:
                    after.append(LoggedMessage(_result(claimed, call.id)))
        if n_open and n == len(answers):
            metadata[UNCLAIMED] = n_open
        asked = [_timed(message, runs) for message in to_messages(span.input)]
        line = ChatLine(
            request=Request(messages=asked, temperature=span.temperature),
            response=response,
            session_id=whole.id,
            model=span.model,
            started_at=span.started_at,
            duration_s=span.ended_at - span.started_at,
            outcome=whole.outcome,
            metadata=metadata,
        )
        one = read_call(line, where)
        yield replace(one, after=(*one.after, *after))


def _began(span: Span) -> tuple[bool, float]:
    """Key of a span in order of time."""
    return math.isnan(span.started_at), span.started_at


def _settled(span: Span) -> Span:
    """A run of a tool with what its output, where that is a framework's message, says of the call."""
    message = tool_message(span.output) if span.kind != "llm" else None
    if message is None:
        return span
    error = "error" if span.error is None and message.is_error else span.error
    call_id = span.call_id if message.tool_call_id is None else message.tool_call_id
    name = message.name if isinstance(message.name, str) else span.name
    return replace(span, output=message.content, call_id=call_id, error=error, name=name, kind="tool")


def _said(response: Response) -> list[Message]:
    return [m for choice in (response.choices or ())[:1] if choice.message for m in expand(choice.message)]


def _facts(spans: Sequence[Span]) -> Facts:
    """What the spans of a trace say of it as a whole."""
    fitting = [[x for value in span.scores.values() if (x := outcome_of(value)) is not None] for span in spans]
    scores = {f"score/{name}": value for span in reversed(spans) for name, value in span.scores.items()}
    return Facts(
        id=next((span.session for span in spans if span.session), spans[0].trace),
        model=next((span.model for span in spans if span.model), None),
        outcome=next((grades[0] for grades in fitting if len(grades) == 1), None),
        metadata=scalars(scores),
    )


def _claimed(call: MessageToolCall, issuer: Span, waiting: Mapping[tuple[str | None, str], deque[Span]]) -> Span | None:
    """The run of a call: the one with its id, else the first of its name that has none and began later."""
    if call.id is not None and waiting[call.id, ""]:
        return waiting[call.id, ""].pop()
    named = waiting[None, (call.function and call.function.name) or ""]
    while named and named[0].started_at < issuer.started_at:
        named.popleft()
    return named.popleft() if named else None


def _result(run: Span, call_id: str) -> Message:
    text = run.error if run.output is None and run.error is not None else result_text(run.output)
    return _timed(Message(role="tool", content=text, tool_call_id=call_id, name=run.name), {call_id: run})


def _timed(message: Message, runs: Mapping[str, Span]) -> Message:
    """A result with what the run of its tool says of it."""
    run = runs.get(message.tool_call_id or "") if message.role == "tool" else None
    if run is None:
        return message
    took = run.ended_at - run.started_at
    failed = True if run.error is not None else message.is_error
    return msgspec.structs.replace(message, duration_s=took if took >= 0 else None, is_error=failed)


def _session(spans: Sequence[Span], whole: Facts, where: Position) -> Conversation:
    """The conversation of messages; the pieces of one answer, which have its id, are one message."""
    said, answers = list[dict[str, Any]](), dict[str, dict[str, Any]]()
    for span in spans:
        message = dict(span.input)
        earlier = answers.setdefault(span.call_id, message) if span.call_id is not None else message
        pieces = earlier.get("content"), message.get("content")
        if earlier is message or not (isinstance(pieces[0], list) and isinstance(pieces[1], list)):
            said.append(message)
        else:
            earlier["content"] = [*pieces[0], *pieces[1]]
    return Conversation(list(map(LoggedMessage, to_messages(said))), whole, where)


def _timeline(models: Sequence[Span], tools: Sequence[Span], whole: Facts, where: Position) -> Conversation:
    """The conversation of spans in order of time."""
    turns = list[tuple[Message, list[Span]]]()
    end = math.nan
    for span in sorted([*models, *tools], key=_began):
        if span.kind == "llm":
            turns.append((next(iter(_said(to_response(span.output))), Message("assistant")), []))
            continue
        if not turns or (not models and span.started_at >= end):
            turns.append((Message("assistant"), []))
        turns[-1][1].append(span)
        end = span.ended_at
    said, metadata = to_messages(models[0].input) if models else [], dict(whole.metadata)
    for message, runs in turns:
        by_id = [(run.call_id or run.id, run) for run in runs]
        calls = [MessageToolCall(FunctionCall(run.name, run.input), id) for id, run in by_id]
        said.append(msgspec.structs.replace(message, tool_calls=calls or None))
        said += [_result(run, id) for id, run in by_id]
        metadata |= {f"{SPAN_OF}{id}": f"{run.trace}/{run.id}" for id, run in by_id}
    if any(run.input is None and run.output is None and run.error is None for run in tools):
        metadata["has_text"] = False  # calls that nobody can read repeat nothing
    if costs := [span.cost for span in models if span.cost is not None]:
        metadata[COST] = math.fsum(costs)
    return Conversation(list(map(LoggedMessage, said)), replace(whole, metadata=metadata), where)
