"""Spans of OpenTelemetry and OpenInference, exports of Langfuse and LangSmith: one conversation in each spelling."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import deltah
from deltah.core.types import CallStatus, SegmentKind, StopReason, Trajectory
from deltah.traces.conversation import UNCLAIMED
from deltah.traces.spans import SPAN_OF

Records = list[dict[str, Any]]
START = 1_760_000_000
"""Seconds since 1970 at which the trace begins; steps follow one after another, a second each."""
ASK, ANSWER = "High water at Quill Bay?", "At 06:14."
CALLS = (("call_a", "tide_table", {"harbour": "Quill Bay"}), ("call_b", "moon", {"day": 9}))
RESULTS = ("06:14", "no moon")
"""The second run fails."""


def records(path: Path, given: Records) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in given), encoding="utf-8")
    return path


def read(path: Path, given: Records) -> list[Trajectory]:
    reader = deltah.read_traces(records(path, given))
    found = list(reader)
    assert not reader.problems, reader.problems[0]
    return found


def iso(second: float) -> str:
    return f"2025-10-09T08:53:{20 + second:06.3f}Z"  # START is 2025-10-09T08:53:20Z


# -- OpenTelemetry ----------------------------------------------------------------------------------------------------


def otel_span(number: int, name: str, attributes: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """A span as the console exporter of Python writes it."""
    return {
        "name": name,
        "context": {"trace_id": "0x" + "ab" * 16, "span_id": f"0x{number:016x}", "trace_state": "[]"},
        "parent_id": None if number == 1 else "0x" + "0" * 15 + "1",
        "start_time": iso(number),
        "end_time": iso(number + 0.5),
        "status": {"status_code": "UNSET"},
        "attributes": attributes,
        "events": [],
    } | fields


def part(role: str, *parts: dict[str, Any]) -> dict[str, Any]:
    return {"role": role, "parts": list(parts)}


def failed(number: int) -> dict[str, Any]:
    return {"status": {"status_code": "ERROR", "description": "no such day"}} if number == 1 else {}


def tool_spans() -> Records:
    return [
        otel_span(
            3 + i,
            f"execute_tool {name}",
            {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": name, "gen_ai.tool.call.id": id},
            **failed(i),
        )
        for i, (id, name, _) in enumerate(CALLS)
    ]


def generative(value: Callable[[Any], Any]) -> Records:
    asked = part("user", {"type": "text", "content": ASK})
    calls = [{"type": "tool_call", "id": id, "name": name, "arguments": given} for id, name, given in CALLS]
    called = part("assistant", {"type": "text", "content": "I look."}, *calls)
    told = [
        part("tool", {"type": "tool_call_response", "id": id, "response": text})
        for (id, _, _), text in zip(CALLS, RESULTS, strict=True)
    ]
    final = part("assistant", {"type": "text", "content": ANSWER}) | {"finish_reason": "stop"}
    chat = {"gen_ai.operation.name": "chat", "gen_ai.request.model": "m-1"}

    def said(given: list[Any], answer: dict[str, Any]) -> dict[str, Any]:
        return chat | {"gen_ai.input.messages": value(given), "gen_ai.output.messages": value([answer])}

    return [
        otel_span(1, "invoke_agent", {"gen_ai.operation.name": "invoke_agent"}),
        otel_span(2, "chat m-1", said([asked], called)),
        *tool_spans(),
        otel_span(5, "chat m-1", said([asked, called, *told], final)),
    ]


def older_events() -> Records:
    def event(name: str, **fields: Any) -> dict[str, Any]:
        return {"name": f"gen_ai.{name}", "attributes": fields}

    calls = [
        {"id": id, "type": "function", "function": {"name": name, "arguments": json.dumps(given)}}
        for id, name, given in CALLS
    ]
    answer = {"role": "assistant", "content": "I look.", "tool_calls": calls}
    asked = event("user.message", content=ASK)
    told = [event("tool.message", id=c[0], content=r) for c, r in zip(CALLS, RESULTS, strict=True)]
    said = event("assistant.message", content="I look.", tool_calls=json.dumps(calls))
    chat = {"gen_ai.operation.name": "chat", "gen_ai.response.model": "m-1"}
    final = {"role": "assistant", "content": ANSWER}
    return [
        otel_span(2, "chat", chat, events=[asked, event("choice", index=0, message=json.dumps(answer))]),
        *tool_spans(),
        otel_span(5, "chat", chat, events=[asked, said, *told, event("choice", index=0, message=final)]),
    ]


def strands() -> Records:
    """Events whose contents are Bedrock's parts as JSON text."""

    def event(name: str, **fields: Any) -> dict[str, Any]:
        return {"name": f"gen_ai.{name}", "attributes": {k: json.dumps(v) for k, v in fields.items()}}

    calls = [{"toolUse": {"toolUseId": id, "name": name, "input": given}} for id, name, given in CALLS]
    told = [
        {"toolResult": {"toolUseId": c[0], "status": "success", "content": [{"text": r}]}}
        for c, r in zip(CALLS, RESULTS, strict=True)
    ]
    chat = {"gen_ai.operation.name": "chat", "gen_ai.request.model": "m-1"}
    asked = event("user.message", content=[{"text": ASK}])
    said = event("assistant.message", content=[{"text": "I look."}, *calls])
    return [
        otel_span(2, "chat", chat, events=[asked, event("choice", message=[{"text": "I look."}, *calls])]),
        *tool_spans(),
        otel_span(
            5,
            "chat",
            chat,
            events=[asked, said, event("tool.message", content=told), event("choice", message=[{"text": ANSWER}])],
        ),
    ]


def sdk_of_langfuse() -> Records:
    """Spans of Langfuse's client, whose attributes are its own."""
    rows = []
    for number, one in enumerate(observations(), start=2):
        kind = {"GENERATION": "generation", "TOOL": "tool", "SPAN": "tool"}[one["type"]]
        given = {"type": kind, "input": json.dumps(one["input"]), "model.name": one.get("model")}
        given["output"] = one["output"] if isinstance(one["output"], str) else json.dumps(one["output"])
        attributes = {f"langfuse.observation.{key}": value for key, value in given.items() if value is not None}
        rows.append(otel_span(number, one["name"], attributes, **failed(number - 3)))
    outer = {"langfuse.observation.type": "span", "langfuse.observation.output": "not an answer"}
    return [*rows, otel_span(1, "agent", outer)]


def mlflow() -> Records:
    """A trace as MLflow exports it: attributes are JSON."""
    spans = []
    for number, one in enumerate(observations(), start=2):
        kind = "CHAT_MODEL" if one["type"] == "GENERATION" else "TOOL"
        given = {"spanType": kind, "spanInputs": one["input"], "spanOutputs": one["output"]}
        attributes = {f"mlflow.{key}": json.dumps(value) for key, value in given.items()}
        span = otel_span(number, one["name"], attributes | {"gen_ai.request.model": "m-1"}, **failed(number - 3))
        spans.append(span | span.pop("context"))
    return [{"info": {"trace_id": "tr-1", "state": "OK"}, "data": {"spans": spans}}]


def flattened(prefix: str, tree: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(tree, dict | list):
        for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from flattened(f"{prefix}.{key}", value)
    else:
        yield prefix, tree


def openllmetry() -> Records:
    calls = [{"id": id, "name": name, "arguments": json.dumps(given)} for id, name, given in CALLS]
    said = {"role": "assistant", "content": "I look.", "tool_calls": calls}
    told = [{"role": "tool", "tool_call_id": c[0], "content": r} for c, r in zip(CALLS, RESULTS, strict=True)]
    user = {"role": "user", "content": ASK}

    def attributes(prompt: list[Any], answer: dict[str, Any]) -> dict[str, Any]:
        chat = {"llm.request.type": "chat", "gen_ai.request.model": "m-1"}
        return chat | dict([*flattened("gen_ai.prompt", prompt), *flattened("gen_ai.completion", [answer])])

    return [
        otel_span(2, "openai.chat", attributes([user], said)),
        *tool_spans(),
        otel_span(5, "openai.chat", attributes([user, said, *told], {"role": "assistant", "content": ANSWER})),
    ]


def openinference_messages() -> tuple[list[Any], list[Any]]:
    def message(**fields: Any) -> dict[str, Any]:
        return {f"message.{key}": value for key, value in fields.items()}

    calls = [
        {"tool_call.id": id, "tool_call.function.name": name, "tool_call.function.arguments": json.dumps(given)}
        for id, name, given in CALLS
    ]
    said = message(role="assistant", content="I look.", tool_calls=calls)
    told = [message(role="tool", tool_call_id=c[0], content=r) for c, r in zip(CALLS, RESULTS, strict=True)]
    return [message(role="user", content=ASK), said, *told], [said, message(role="assistant", content=ANSWER)]


def openinference(place: Callable[[str, Any], dict[str, Any]]) -> Records:
    asked, (said, final) = openinference_messages()
    model = {"openinference.span.kind": "LLM", "llm.model_name": "m-1"}

    def llm(history: list[Any], answer: Any) -> dict[str, Any]:
        return model | place("llm.input_messages", history) | place("llm.output_messages", [answer])

    runs = [
        otel_span(
            3 + i,
            name,
            {"openinference.span.kind": "TOOL", "tool.name": name, "input.value": json.dumps(given)}
            | {"output.value": RESULTS[i]},
            **failed(i),
        )
        for i, (_, name, given) in enumerate(CALLS)
    ]
    agent = otel_span(1, "agent", {"openinference.span.kind": "AGENT"})
    return [agent, otel_span(2, "llm", llm(asked[:1], said)), *runs, otel_span(5, "llm", llm(asked, final))]


def otlp_value(value: Any) -> dict[str, Any]:
    if isinstance(value, list):
        return {"arrayValue": {"values": [otlp_value(item) for item in value]}}
    if isinstance(value, dict):
        return {"kvlistValue": {"values": [{"key": k, "value": otlp_value(v)} for k, v in value.items()]}}
    return {"intValue": str(value)} if isinstance(value, int) else {"stringValue": value}


def otlp(given: Records) -> Records:
    """The same spans as a collector writes them, half of them in each of two batches."""

    def span(one: dict[str, Any]) -> dict[str, Any]:
        number = int(one["context"]["span_id"], 16)
        return {
            "traceId": one["context"]["trace_id"][2:],
            "spanId": one["context"]["span_id"][2:],
            "parentSpanId": (one["parent_id"] or "")[2:],
            "name": one["name"],
            "startTimeUnixNano": str((START + number) * 10**9),
            "endTimeUnixNano": str((START + number) * 10**9 + 5 * 10**8),
            "status": {"code": 2, "message": "no"} if one["status"]["status_code"] == "ERROR" else {},
            "attributes": [{"key": k, "value": otlp_value(v)} for k, v in one["attributes"].items()],
        }

    spans, half = list(map(span, given)), len(given) // 2
    return [{"resourceSpans": [{"scopeSpans": [{"spans": part}]}]} for part in (spans[half:], spans[:half])]


def phoenix_rows() -> Records:
    """Rows of a data frame of spans: a column for each attribute."""
    return [
        {
            "name": one["name"],
            "parent_id": one["parent_id"],
            "start_time": one["start_time"],
            "end_time": one["end_time"],
            "status_code": one["status"]["status_code"],
            "context.span_id": one["context"]["span_id"][2:],
            "context.trace_id": one["context"]["trace_id"][2:],
        }
        | {f"attributes.{key}": value for key, value in one["attributes"].items()}
        for one in openinference(lambda name, messages: {name: messages})
    ]


def phoenix_api() -> Records:
    """The answer of Phoenix's REST API, which takes the kind of a span out of its attributes."""
    spans = openinference(lambda name, messages: dict(flattened(name, messages)))
    for span in spans:
        span["id"], span["span_kind"] = "U3Bhbjo0", span["attributes"].pop("openinference.span.kind")
        span["context"] = {name: value.removeprefix("0x") for name, value in span["context"].items()}
        span["status_code"] = span.pop("status")["status_code"]
    return [{"data": spans, "next_cursor": None}]


# -- Langfuse, LangSmith ----------------------------------------------------------------------------------------------


def chat_messages() -> tuple[list[Any], list[Any]]:
    calls = [
        {"id": id, "type": "function", "function": {"name": name, "arguments": json.dumps(given)}}
        for id, name, given in CALLS
    ]
    said = {"role": "assistant", "content": "I look.", "tool_calls": calls}
    told = [{"role": "tool", "tool_call_id": c[0], "content": r} for c, r in zip(CALLS, RESULTS, strict=True)]
    return [{"role": "user", "content": ASK}, said, *told], [said, {"role": "assistant", "content": ANSWER}]


def observations() -> Records:
    asked, (said, final) = chat_messages()

    def seen(number: int, kind: str, name: str, given: Any, output: Any, **fields: Any) -> dict[str, Any]:
        return {
            "id": f"o{number}",
            "traceId": "t-1",
            "type": kind,
            "name": name,
            "parentObservationId": None,
            "startTime": iso(number),
            "endTime": iso(number + 0.5),
            "input": given,
            "output": output,
            "level": "DEFAULT",
        } | fields

    bad = {"level": "ERROR", "statusMessage": "no such day"}
    return [
        seen(2, "GENERATION", "chat", {"messages": asked[:1]}, said, model="m-1", calculatedTotalCost=0.25),
        seen(3, "TOOL", "tide_table", CALLS[0][2], RESULTS[0]),
        seen(4, "SPAN", "moon", CALLS[1][2], RESULTS[1], **bad),  # older clients have no type for tools
        seen(5, "GENERATION", "chat", asked, final, model="m-1", calculatedTotalCost=0.5),
    ]


def langfuse_trace() -> Records:
    return [{"id": "t-1", "name": "agent", "sessionId": None, "scores": [], "observations": observations()}]


def langfuse_rows() -> Records:
    """Rows of the storage export: snake case, inputs and outputs as text, in any order."""
    names = {"traceId": "trace_id", "parentObservationId": "parent_observation_id", "calculatedTotalCost": "total_cost"}
    names |= {"startTime": "start_time", "endTime": "end_time", "model": "provided_model_name"}
    rows = [{names.get(key, key): value for key, value in one.items()} for one in observations()]
    for row in rows:
        row["input"] = json.dumps(row["input"])
        row["output"] = row["output"] if isinstance(row["output"], str) else json.dumps(row["output"])
    random.Random(3).shuffle(rows)
    return rows


def run(number: int, kind: str, name: str, inputs: Any, outputs: Any, **fields: Any) -> dict[str, Any]:
    return {
        "id": f"r{number}",
        "trace_id": "r1",
        "parent_run_id": None if number == 1 else "r1",
        "session_id": "the project, not the conversation",
        "run_type": kind,
        "name": name,
        "start_time": iso(number),
        "end_time": iso(number + 0.5),
        "inputs": inputs,
        "outputs": outputs,
        "error": None,
    } | fields


def langchain_runs() -> Records:
    def constructed(name: str, /, **fields: Any) -> dict[str, Any]:
        return {"lc": 1, "type": "constructor", "id": ["langchain", "schema", "messages", name], "kwargs": fields}

    def answered(message: dict[str, Any]) -> dict[str, Any]:
        return {"generations": [[{"text": "", "message": message}]], "llm_output": {}}

    calls = [{"id": id, "name": name, "args": given, "type": "tool_call"} for id, name, given in CALLS]
    said = constructed("AIMessage", content="I look.", tool_calls=calls)
    told = [
        constructed("ToolMessage", content=r, tool_call_id=c[0], name=c[1]) for c, r in zip(CALLS, RESULTS, strict=True)
    ]
    user, final = constructed("HumanMessage", content=ASK), constructed("AIMessageChunk", content=ANSWER)
    known = {"extra": {"metadata": {"ls_model_name": "m-1"}}}
    return [
        run(1, "chain", "agent", {}, {}),
        run(2, "llm", "ChatX", {"messages": [[user]]}, answered(said), **known),
        run(3, "tool", "tide_table", {"input": "{}"}, {"output": told[0]}),
        run(4, "tool", "moon", {"input": "{}"}, {"output": told[1]}, error="no such day"),
        run(5, "llm", "ChatX", {"messages": [[user, said, *told]]}, answered(final), **known),
    ]


def responses_observations() -> Records:
    """A client of OpenAI's Responses: items instead of messages."""
    calls = [
        {"type": "function_call", "call_id": id, "name": name, "arguments": json.dumps(given)}
        for id, name, given in CALLS
    ]
    told = [{"type": "function_call_output", "call_id": c[0], "output": r} for c, r in zip(CALLS, RESULTS, strict=True)]
    say = {"type": "message", "role": "assistant"}
    said = say | {"content": [{"type": "output_text", "text": "I look."}]}
    final = say | {"content": [{"type": "output_text", "text": ANSWER}]}
    user = {"role": "user", "content": ASK}
    rows = observations()
    rows[0] |= {"input": [user], "output": [{"type": "reasoning", "summary": []}, said, *calls]}
    rows[3] |= {"input": [user, said, *calls, *told], "output": [final]}
    return rows


def nested_runs() -> Records:
    root, *children = langchain_runs()
    return [root | {"child_runs": children}]


FORMS: dict[str, Callable[[], Records]] = {
    "otel as text": lambda: generative(json.dumps),
    "otel structured": lambda: generative(lambda value: value),
    "otlp": lambda: otlp(generative(json.dumps)),
    "otlp structured": lambda: otlp(generative(lambda value: value)),
    "otel events": older_events,
    "openllmetry": openllmetry,
    "strands": strands,
    "langfuse sdk": sdk_of_langfuse,
    "mlflow": mlflow,
    "openinference": lambda: openinference(lambda name, messages: dict(flattened(name, messages))),
    "openinference otlp": lambda: otlp(openinference(lambda name, messages: dict(flattened(name, messages)))),
    "phoenix rows": phoenix_rows,
    "phoenix api": phoenix_api,
    "langfuse trace": langfuse_trace,
    "langfuse download": lambda: [{"trace": {"id": "t-1"}, "observations": observations()}],
    "langfuse rows": langfuse_rows,
    "langfuse responses": responses_observations,
    "langsmith": langchain_runs,
    "langsmith nested": nested_runs,
}


@pytest.mark.parametrize("form", FORMS)
def test_a_report_is_made_of_every_spelling(tmp_path: Path, form: str) -> None:
    from typer.testing import CliRunner

    from deltah.cli.app import app

    log, page = records(tmp_path / "log.jsonl", FORMS[form]()), tmp_path / "report.html"
    done = CliRunner().invoke(app, ["report", str(log), "--out", str(page)])
    assert done.exit_code == 0, done.output
    assert "tide_table" in page.read_text("utf-8")


@pytest.mark.parametrize("form", FORMS)
def test_one_conversation_is_the_same_in_every_spelling(tmp_path: Path, form: str) -> None:
    (found,) = read(tmp_path / "log.jsonl", FORMS[form]())
    assert (found.question, found.prediction, found.model) == (ASK, ANSWER, "m-1")
    assert [(call.id, call.name, call.result) for call in found.calls] == [
        (id, name, text) for (id, name, _), text in zip(CALLS, RESULTS, strict=True)
    ]
    assert [json.loads(call.arguments) for call in found.calls] == [given for _, _, given in CALLS]
    assert [call.status for call in found.calls] == [CallStatus.OK, CallStatus.ERROR]
    assert [call.duration_s for call in found.calls] == pytest.approx([0.5, 0.5], abs=1e-3)
    assert [s.text for s in found.segments if s.kind is SegmentKind.REASONING] == ["I look.", ANSWER]
    assert found.stop_reason is StopReason.ANSWERED
    spans = [str(found.metadata[f"{SPAN_OF}{call.id}"]) for call in found.calls]
    assert [span[-1] for span in spans] == ["3", "4"]  # the ids of the runs end in their number
    assert UNCLAIMED not in found.metadata


def cut_off(given: Records) -> Records:
    """Records without the last request of the model, whose number is 5."""
    for record in given:
        for name in ("observations", "child_runs"):
            record |= {name: cut_off(record[name])} if name in record else {}
    ids = [str(r.get("id") or r.get("context.span_id") or r.get("context", {}).get("span_id")) for r in given]
    return [record for record, id in zip(given, ids, strict=True) if not id.endswith("5")]


@pytest.mark.parametrize("form", ["openinference", "phoenix rows", *(f for f in FORMS if f.startswith("lang"))])
def test_the_last_results_come_from_the_runs_of_the_tools(tmp_path: Path, form: str) -> None:
    """Where no later request repeats them."""
    (found,) = read(tmp_path / "log.jsonl", cut_off(FORMS[form]()))
    assert [call.result for call in found.calls] == list(RESULTS)
    assert [call.status for call in found.calls] == [CallStatus.OK, CallStatus.ERROR]


@pytest.mark.parametrize("form", ["langsmith", "langfuse rows", "phoenix rows"])
def test_tables_hold_the_same_records(tmp_path: Path, form: str) -> None:
    """Exports to storage are Parquet, with objects as text and times as times."""
    import duckdb

    given = FORMS[form]()
    for record in given:
        objects = {key: json.dumps(value) for key, value in record.items() if isinstance(value, dict)}
        record |= objects if form == "langsmith" else {}
    source, table = records(tmp_path / "log.jsonl", given), tmp_path / "log.parquet"
    duckdb.execute(f"COPY (SELECT * FROM read_json('{source}')) TO '{table}' (FORMAT parquet)")
    (found,) = deltah.read_traces(table)
    assert [(call.id, call.result, call.duration_s) for call in found.calls] == [
        (id, text, pytest.approx(0.5, abs=1e-3)) for (id, _, _), text in zip(CALLS, RESULTS, strict=True)
    ]


def test_costs_of_requests_are_added(tmp_path: Path) -> None:
    (found,) = read(tmp_path / "log.jsonl", langfuse_trace())
    assert found.metadata["cost"] == 0.75  # 0.25 + 0.5


def test_scores_of_a_trace_are_its_outcome(tmp_path: Path) -> None:
    (trace,) = langfuse_trace()
    trace["scores"] = [{"name": "correct", "value": 0.0}, {"name": "tone", "value": "dry"}]
    (found,) = read(tmp_path / "log.jsonl", [trace])
    assert (found.outcome, found.metadata["score/correct"], found.metadata["score/tone"]) == (0.0, 0.0, "dry")
    first, *rest = langchain_runs()
    first["feedback_stats"] = {"correct": {"n": 1, "avg": 1.0}, "length": {"n": 1, "avg": 17}}
    (found,) = read(tmp_path / "log.jsonl", [first, *rest])
    assert found.outcome == 1.0


def test_entropies_are_measured_where_the_file_has_log_probabilities(tmp_path: Path) -> None:
    """LangSmith keeps a response of OpenAI's as it came.

    Three tokens of a vocabulary of four: p = 1/2, 1/4, 1/8, 1/8 has H = 1/2 ln 2 + 1/4 ln 4 + 2/8 ln 8 = 7/4 ln 2, and
    p = 1/4 each has H = 2 ln 2. So ΔH = (2 - 7/4) ln 2 = 0.25 ln 2, and it is exact.
    """

    def token(text: str, *p: float) -> dict[str, Any]:
        top = [{"token": f"{text}{i or ''}", "logprob": math.log(q)} for i, q in enumerate(p)]
        return {"token": text, "logprob": math.log(p[0]), "bytes": list(text.encode()), "top_logprobs": top}

    def choice(content: str, tokens: list[dict[str, Any]], **fields: Any) -> dict[str, Any]:
        message = {"role": "assistant", "content": content} | fields
        return {"choices": [{"index": 0, "message": message, "logprobs": {"content": tokens}}]}

    skewed, even = (0.5, 0.25, 0.125, 0.125), (0.25,) * 4
    call = {"id": "c", "type": "function", "function": {"name": "tide_table", "arguments": "{}"}}
    user = {"role": "user", "content": ASK}
    history = [user, {"role": "assistant", "content": "Hm", "tool_calls": [call]}]
    history.append({"role": "tool", "tool_call_id": "c", "content": "06:14"})
    path = records(
        tmp_path / "log.jsonl",
        [
            run(2, "llm", "ChatX", {"messages": [user]}, choice("Hm", [token("Hm", *skewed)], tool_calls=[call])),
            run(5, "llm", "ChatX", {"messages": history}, choice("Ten", [token("Ten", *even)])),
        ],
    )
    ((value, estimator),) = deltah.read_calls(path, vocab_size=4).sql("SELECT value, estimator FROM calls").fetchall()
    assert value == pytest.approx(0.25 * math.log(2), abs=1e-12)
    assert estimator == "exact"


def test_spans_of_tools_alone_are_the_calls(tmp_path: Path) -> None:
    """No content was captured of the models: what ran between two answers are the calls of the first."""
    spans = [s for s in generative(json.dumps) if "invoke" not in s["name"]]
    for span in spans:
        for name in ("gen_ai.input.messages", "gen_ai.output.messages"):
            span["attributes"].pop(name, None)
    (found,) = read(tmp_path / "log.jsonl", spans)
    assert [(call.id, call.name, call.turn) for call in found.calls] == [
        ("call_a", "tide_table", 0),
        ("call_b", "moon", 0),
    ]
    assert [call.status for call in found.calls] == [CallStatus.OK, CallStatus.ERROR]
    (rows,) = (
        deltah.read_calls(tmp_path / "log.jsonl").sql("SELECT count(*) FROM calls WHERE len(waste) > 0").fetchall()
    )
    assert rows == (0,)  # calls without arguments and results repeat nothing


def test_models_without_messages_are_named(tmp_path: Path) -> None:
    span = otel_span(2, "chat", {"gen_ai.operation.name": "chat"})
    reader = deltah.read_traces(records(tmp_path / "log.jsonl", [span]))
    assert not list(reader)
    assert "without messages" in reader.problems[0].reason


def test_messages_that_were_cut_off_are_named(tmp_path: Path) -> None:
    spans = generative(json.dumps)
    spans[1]["attributes"]["gen_ai.output.messages"] = spans[1]["attributes"]["gen_ai.output.messages"][:60]
    reader = deltah.read_traces(records(tmp_path / "log.jsonl", spans))
    assert len(list(reader)) == 1
    assert "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT" in reader.problems[0].reason


def test_runs_that_no_call_accounts_for_are_counted(tmp_path: Path) -> None:
    extra = otel_span(6, "execute_tool log", {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "log"})
    (found,) = read(tmp_path / "log.jsonl", [*generative(json.dumps), extra])
    assert found.metadata[UNCLAIMED] == 1
    assert len(found.calls) == 2


def test_one_conversation_over_two_traces_is_joined_by_its_session(tmp_path: Path) -> None:
    asked, answers = chat_messages()
    first, second = ({"id": t, "sessionId": "s-1", "observations": []} for t in ("t-1", "t-2"))
    first["observations"] = observations()
    later = observations()[:1]
    later[0] |= {"id": "o9", "input": [*asked, answers[1], {"role": "user", "content": "And low water?"}]}
    later[0] |= {"output": {"role": "assistant", "content": "At noon."}, "startTime": iso(9), "endTime": iso(9.5)}
    second["observations"] = later
    (found,) = read(tmp_path / "log.jsonl", [first, second])
    assert (found.id, found.prediction, len(found.calls)) == ("s-1", "At noon.", 2)


def test_traces_outgrow_the_memory_that_is_allowed() -> None:
    from deltah.traces.files import Position
    from deltah.traces.spans import Span, SpanBuffer

    buffer = SpanBuffer(lambda where, reason: pytest.fail(reason), max_bytes=3000)
    given = [Span(trace=f"t{i // 2}", id=str(i), kind="tool", name="x", input="x" * 400) for i in range(10)]
    out = [one.facts.id for span in given for one in buffer.add([span], Position("f", 1))]
    assert out[:2] == ["t0", "t1"]
    assert [*out, *(one.facts.id for one in buffer.finish())] == ["t0", "t1", "t2", "t3", "t4"]


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"name": "x", "context": {"trace_id": "1", "span_id": ""}}, "without trace id or span id"),
        ({"id": "t", "observations": ["o1", "o2"], "name": "x"}, "export traces with their observations"),
        ({"run_type": "llm", "inputs": {}}, "fields trace_id and id: missing"),
    ],
)
def test_what_does_not_fit_is_a_problem(tmp_path: Path, record: dict[str, Any], reason: str) -> None:
    reader = deltah.read_traces(records(tmp_path / "log.jsonl", [record]))
    assert not list(reader)
    assert reason in reader.problems[0].reason
