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
from typing import Any, Final

import msgspec

from deltah.core.types import Scalar
from deltah.errors import DataError
from deltah.traces.conversation import COST, UNCLAIMED, ApiCall, Conversation, Facts, LoggedMessage
from deltah.traces.files import Position
from deltah.traces.importers.openai_chat import read_call
from deltah.traces.openai_schema import ChatLine, FunctionCall, Message, MessageToolCall, Request, Response
from deltah.traces.parts import expand, json_value, result_text, to_messages, to_response, tool_message

SPAN_OF: Final = "span/"
"""Metadata key of a call, before its id: `<trace>/<span>` of its run, or else of the answer that issued it."""
MAX_OPEN_BYTES: Final = 256 * 2**20
_SPAN_BYTES: Final = 500
"""Memory of a span beside its input and output, roughly."""


@dataclass(slots=True, kw_only=True)
class Span:
    """One step of a trace."""

    trace: str
    id: str
    parent: str | None = None
    kind: str = ""
    """"llm", "tool", "said" for a message of a session, or anything else for what only stands around them."""
    name: str = ""
    """Of the tool, where one ran."""
    started_at: float = math.nan
    """Seconds since the epoch."""
    ended_at: float = math.nan
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
    outcome: float | None = None
    """Grade of the trace."""
    metadata: dict[str, Scalar] = field(default_factory=dict)
    """Of the trace."""

    def __post_init__(self) -> None:
        for name in ("call_id", "session", "model"):
            if not isinstance(getattr(self, name), str):
                setattr(self, name, None)


@dataclass(slots=True)
class Trace:
    """Spans of one trace, in the order of the log."""

    where: Position
    """Of the first."""
    spans: list[Span] = field(default_factory=list)
    n_bytes: int = 0


class SpanBuffer:
    """Gathers spans by their trace; gives what traces hold when the log ends, or when they outgrow `max_bytes`.

    A trace that cannot be read is reported with its place and the reason.
    """

    def __init__(self, report: Callable[[Position, str], object], max_bytes: int = MAX_OPEN_BYTES) -> None:
        self._report, self._max_bytes = report, max_bytes
        self._open: OrderedDict[str, Trace] = OrderedDict()
        self._n_bytes = 0

    def add(self, spans: Sequence[Span], where: Position) -> Iterator[ApiCall | Conversation]:
        """Take the spans of a record; yield what the traces hold that waited longest, while memory runs short."""
        for span in spans:
            trace = self._open.setdefault(span.trace, Trace(where))
            trace.spans.append(span)
            size = _SPAN_BYTES + len(str(span.input)) + len(str(span.output))
            trace.n_bytes += size
            self._n_bytes += size
        while self._n_bytes > self._max_bytes and len(self._open) > 1:
            yield from self._close()

    def finish(self) -> Iterator[ApiCall | Conversation]:
        """Yield what the open traces hold, in the order they began."""
        while self._open:
            yield from self._close()

    def _close(self) -> Iterator[ApiCall | Conversation]:
        name, trace = self._open.popitem(last=False)
        self._n_bytes -= trace.n_bytes
        try:
            yield from _conversations(trace)
        except (DataError, msgspec.ValidationError) as error:
            self._report(trace.where, f"trace {name}: {error}")


def _conversations(trace: Trace) -> list[ApiCall] | list[Conversation]:
    """API calls of a trace, in order; or its one conversation, where no answer of a model holds a call."""
    by_id = {span.id: _settled(span) for span in trace.spans}
    ordered = sorted(by_id.values(), key=lambda span: (math.isnan(span.started_at), span.started_at))
    models = _innermost([span for span in ordered if span.kind == "llm"], by_id)
    replies = {span.id: to_response(span.output) for span in models}
    issued = {span.id: [call for m in _said(replies[span.id]) for call in m.tool_calls or []] for span in models}
    called = {call.function.name for calls in issued.values() for call in calls if call.function is not None}
    tools = _outermost([s for s in ordered if s.kind == "tool" or (s.name in called and s.kind != "llm")], by_id)
    whole = _of_trace(ordered)
    if said := [span for span in ordered if span.kind == "said" and isinstance(span.input, Mapping)]:
        return [_session(said, whole, trace.where)]
    if tools and not called:
        return [_timeline(models, tools, whole, trace.where)]
    if models and not any(map(_said, replies.values())) and not any(span.error for span in models):
        raise DataError(
            "requests to a model without messages; let the instrumentation capture contents "
            "(OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT=true), or export inputs and outputs"
        )
    waiting, runs, found = _Runs(tools), dict[str, Span](), list[ApiCall]()
    for span in models:
        if not _said(replies[span.id]):
            continue
        metadata = dict(whole.metadata) | ({} if span.cost is None else {COST: span.cost})
        after = list[Message]()
        for call in issued[span.id]:
            run = waiting.claim(call, span)
            metadata[f"{SPAN_OF}{call.id}"] = f"{span.trace}/{span.id if run is None else run.id}"
            if run is not None and call.id is not None:
                runs[call.id] = run
                after += [_result(run, call.id)] if run.output is not None or run.error is not None else []
        line = ChatLine(
            request=Request(messages=[_timed(m, runs) for m in to_messages(span.input)], temperature=span.temperature),
            response=replies[span.id],
            session_id=whole.session or whole.trace,
            model=span.model,
            started_at=span.started_at,
            duration_s=span.ended_at - span.started_at,
            outcome=whole.outcome,
            metadata=metadata,
        )
        one = read_call(line, trace.where)
        found.append(replace(one, after=(*one.after, *map(LoggedMessage, after))))
    if waiting.n_open and found:
        facts = found[-1].facts
        found[-1] = replace(found[-1], facts=replace(facts, metadata=facts.metadata | {UNCLAIMED: waiting.n_open}))
    return found


def _settled(span: Span) -> Span:
    """A run of a tool with what its output, where that is a framework's message, says of the call."""
    message = tool_message(json_value(span.output)) if span.kind != "llm" else None
    if message is None:
        return span
    error = "error" if span.error is None and message.is_error else span.error
    call_id = span.call_id if message.tool_call_id is None else message.tool_call_id
    name = message.name if isinstance(message.name, str) else span.name
    return replace(span, output=message.content, call_id=call_id, error=error, name=name, kind="tool")


def _said(response: Response) -> list[Message]:
    message = response.choices[0].message if response.choices else None
    return [] if message is None else expand(message)


def _of_trace(spans: Sequence[Span]) -> Span:
    """What the spans of a trace say of it as a whole."""
    metadata = {key: value for span in reversed(spans) for key, value in span.metadata.items()}
    return Span(
        trace=spans[0].trace,
        id="",
        session=next((span.session for span in spans if span.session is not None), None),
        model=next((span.model for span in spans if span.model), None),
        outcome=next((span.outcome for span in spans if span.outcome is not None), None),
        metadata=metadata,
    )


def _innermost(spans: Sequence[Span], by_id: Mapping[str, Span]) -> list[Span]:
    """Spans without a span of their kind inside."""
    around = {outer.id for span in spans for outer in _ancestors(span, by_id)}
    return [span for span in spans if span.id not in around]


def _outermost(spans: Sequence[Span], by_id: Mapping[str, Span]) -> list[Span]:
    """Spans inside no other of their name: a client's call of a tool, without the server's part of it."""
    kept = {span.id for span in spans}
    return [s for s in spans if not any(o.id in kept and o.name == s.name for o in _ancestors(s, by_id))]


def _ancestors(span: Span, by_id: Mapping[str, Span]) -> Iterator[Span]:
    seen = {span.id}
    while span.parent is not None and span.parent in by_id and span.parent not in seen:
        seen.add(span.parent)
        span = by_id[span.parent]
        yield span


class _Runs:
    """Runs of tools that no call has claimed yet."""

    def __init__(self, tools: Sequence[Span]) -> None:
        self.n_open = len(tools)
        self._by_id: dict[str | None, Span] = {run.call_id: run for run in tools if run.call_id is not None}
        self._by_name = defaultdict[str, deque[Span]](deque)
        for run in tools:
            if run.call_id is None:
                self._by_name[run.name].append(run)

    def claim(self, call: MessageToolCall, issuer: Span) -> Span | None:
        """The run of a call: the one with its id, else the first of its name that has none and began later."""
        run = self._by_id.pop(call.id, None)
        named = self._by_name[(call.function and call.function.name) or ""]
        while run is None and named:
            first = named.popleft()
            run = None if first.started_at < issuer.started_at else first
        self.n_open -= run is not None
        return run


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


def _session(spans: Sequence[Span], whole: Span, where: Position) -> Conversation:
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
    facts = Facts(id=whole.session or whole.trace, model=whole.model, metadata=whole.metadata)
    return Conversation(list(map(LoggedMessage, to_messages(said))), facts, where)


def _timeline(models: Sequence[Span], tools: Sequence[Span], trace: Span, where: Position) -> Conversation:
    """The conversation of spans in order of time."""
    turns = list[tuple[Message, list[Span]]]()
    end = math.nan
    for span in sorted([*models, *tools], key=lambda span: (math.isnan(span.started_at), span.started_at)):
        if span.kind == "llm":
            turns.append((next(iter(_said(to_response(span.output))), Message("assistant")), []))
            continue
        if not turns or (not models and span.started_at >= end):
            turns.append((Message("assistant"), []))
        turns[-1][1].append(span)
        end = span.ended_at
    said = to_messages(models[0].input) if models else []
    metadata = dict(trace.metadata)
    for message, runs in turns:
        ids = [run.call_id or run.id for run in runs]
        calls = [MessageToolCall(FunctionCall(r.name, r.input), i) for i, r in zip(ids, runs, strict=True)]
        said.append(msgspec.structs.replace(message, tool_calls=calls or None))
        said += [_result(run, id) for id, run in zip(ids, runs, strict=True)]
        metadata |= {f"{SPAN_OF}{id}": f"{run.trace}/{run.id}" for id, run in zip(ids, runs, strict=True)}
    if any(run.input is None and run.output is None and run.error is None for run in tools):
        metadata["has_text"] = False  # calls that nobody can read repeat nothing
    costs = [span.cost for span in models if span.cost is not None]
    facts = Facts(
        id=trace.session or trace.trace,
        model=trace.model,
        outcome=trace.outcome,
        metadata=metadata | ({COST: math.fsum(costs)} if costs else {}),
    )
    return Conversation(list(map(LoggedMessage, said)), facts, where)
