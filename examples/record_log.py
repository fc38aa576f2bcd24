"""Run a tool-calling agent against an OpenAI-compatible server and log every API call, as a logging proxy would.

    python examples/record_log.py --base-url http://127.0.0.1:8000/v1 --model lab --tasks tasks.jsonl \
        --corpus corpus.jsonl --out log.jsonl

One JSON object a line: `session_id` (the task's id), `started_at` (Unix time) and `duration_s` of the call, `request`
(the body sent) and `response` (the body received; with `--stream` the list of its chunks). Each request repeats the
conversation so far. The tools are deltah's own: `search` over the corpus, and `python`.

A server without a tool-call parser leaves a call in the text, as `<tool_call>{"name": ..., "arguments": ...}
</tool_call>`. Such a call is run all the same, and the text goes back to the server as it came.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from deltah.tools import ToolConfig, build_tools, call_tool
from deltah.traces.dialects import written_calls

SCHEMAS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": description,
            "parameters": {
                "type": "object",
                "properties": {argument: {"type": "string"}},
                "required": [argument],
            },
        },
    }
    for name, argument, description in (
        ("search", "query", "Search a corpus of short documents."),
        ("python", "code", "Run Python code and return what it prints and the value of its last expression."),
    )
]

HISTORY_FIELDS = ("role", "content", "reasoning", "reasoning_content", "tool_calls")
"""What goes back to the server of a message that it sent."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the agent on every task and write the log."""
    options = parse_arguments(arguments)
    tools = build_tools(["search", "python"], ToolConfig(corpus=options.corpus))
    tasks = [json.loads(line) for line in Path(options.tasks).read_text(encoding="utf-8").splitlines()]
    with open(options.out, "w", encoding="utf-8") as log:
        for i, task in enumerate(tasks[options.skip : options.skip + options.limit]):
            body = {**request_body(options), "seed": options.seed + 1000 * i}
            for entry in converse(options, body, task["question"], tools):
                log.write(json.dumps({"session_id": task["id"], **entry}, ensure_ascii=False) + "\n")
            sys.stderr.write(f"{task['id']}: {len(entry['request']['messages'])} messages\n")


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base-url", required=True, help="up to and including /v1")
    parser.add_argument("--model", required=True)
    parser.add_argument("--tasks", required=True, help='JSONL with "id" and "question"')
    parser.add_argument("--corpus", required=True, help='JSONL with "id" and "contents"')
    parser.add_argument("--out", required=True)
    parser.add_argument("--skip", type=int, default=0, help="tasks to leave out at the start")
    parser.add_argument("--limit", type=int, default=30, help="tasks at most")
    parser.add_argument("--stream", action="store_true")
    parser.add_argument("--top-logprobs", type=int, default=20, help="0: no logprobs at all")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--max-tokens", type=int, default=64, help="of one assistant message")
    parser.add_argument("--max-rounds", type=int, default=8, help="of tool calls in one conversation")
    parser.add_argument("--seed", type=int, default=0, help="of the first call; each later one adds 1")
    parser.add_argument("--extra", type=json.loads, default={}, help="JSON object added to every request")
    return parser.parse_args(arguments)


def request_body(options: argparse.Namespace) -> dict[str, Any]:
    """What every request of a run has in common."""
    body = {
        "model": options.model,
        "tools": SCHEMAS,
        "temperature": options.temperature,
        "max_tokens": options.max_tokens,
        "stream": options.stream,
    }
    if options.top_logprobs:
        body |= {"logprobs": True, "top_logprobs": options.top_logprobs}
    return body | options.extra


def converse(
    options: argparse.Namespace, body: dict[str, Any], question: str, tools: Sequence[Any]
) -> Iterator[dict[str, Any]]:
    """Yield the log entry of each API call of one conversation."""
    messages: list[dict[str, Any]] = [{"role": "user", "content": question}]
    for turn in range(options.max_rounds + 1):
        request = {**body, "seed": body["seed"] + turn, "messages": list(messages)}
        started, clock = time.time(), time.perf_counter()
        response = post(f"{options.base_url}/chat/completions", request)
        duration = time.perf_counter() - clock
        yield {
            "started_at": round(started, 3),
            "duration_s": round(duration, 4),
            "request": request,
            "response": response,
        }
        if isinstance(response, dict) and "choices" not in response:  # a refusal, whose form differs by server
            return
        message = assembled(response) if options.stream else response["choices"][0]["message"]
        calls = requested_calls(message)
        if not calls:
            return
        # Some servers answer with a null content, which they refuse to read back.
        kept = {key: message[key] for key in HISTORY_FIELDS if message.get(key)}
        messages.append({"content": "", **kept})
        for identifier, name, arguments in calls:
            result = call_tool(tools, name, arguments).text
            messages.append({"role": "tool", "tool_call_id": identifier, "content": result})


def post(url: str, body: dict[str, Any]) -> Any:
    """Body of the response; for a stream the list of its chunks, for a failure an object with `error`."""
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request) as response:
            if not body["stream"]:
                return json.load(response)
            events = (line.decode().strip().removeprefix("data: ") for line in response if line.startswith(b"data: "))
            return [json.loads(event) for event in events if event != "[DONE]"]
    except urllib.error.HTTPError as failure:
        text = failure.read().decode()
        return json.loads(text) if '"error"' in text else {"error": {"code": failure.code, "message": text}}


def assembled(chunks: list[dict[str, Any]]) -> dict[str, Any]:
    """Message that the chunks of a stream spell."""
    texts = dict.fromkeys(("content", "reasoning", "reasoning_content"), "")
    calls: dict[int, dict[str, Any]] = {}
    for choice in (choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == 0):
        for key in texts:
            texts[key] += choice["delta"].get(key) or ""
        for piece in choice["delta"].get("tool_calls") or []:
            empty = {"id": "", "type": "function", "function": {"name": "", "arguments": ""}}
            call = calls.setdefault(piece["index"], empty)
            call["id"] = piece.get("id") or call["id"]
            call["function"]["name"] = piece["function"].get("name") or call["function"]["name"]
            call["function"]["arguments"] += piece["function"].get("arguments") or ""
    return {"role": "assistant", **texts, "tool_calls": list(calls.values())}


def requested_calls(message: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Id, name and arguments of each call, from the message's field or else from its text."""
    if message.get("tool_calls"):
        return [(c["id"], c["function"]["name"], c["function"]["arguments"]) for c in message["tool_calls"]]
    written = written_calls(message.get("content") or "")
    return [(f"call-{i}", call.name or "", call.arguments) for i, call in enumerate(written)]


if __name__ == "__main__":
    main()
