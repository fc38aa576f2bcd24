"""A small OpenAI-compatible server for tests: it answers by script, and behaves as the name of the model says.

| model | behaviour |
| --- | --- |
| plain | log-probabilities where they are asked for, 20 a token at most |
| limit-5 | refuses more than 5 |
| refuses, forbids, crashes | refuses any, with status 400, 403 or 500 |
| silent | takes the wish and gives none |
| busy, html | answers 429 in JSON, 503 in HTML |
| slow | a token every 50 ms, without end; a whole answer never |
| breaks | closes the connection inside the stream |
| packed | compresses its answer unasked |
"""

from __future__ import annotations

import asyncio
import gzip
import json
import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

BEFORE, AFTER, CALLING = (0.4, 0.3, 0.2, 0.1), (0.97, 0.01, 0.01, 0.01), (0.5, 0.5)
"""Probabilities of each token before a call, of the last answer, and inside a call."""
CALLS = (("call_a", "search", '{"query": "Tarn"}'), ("call_b", "lookup", '{"id": 7}'))
QUESTION = "Where is Tarn?"
THOUGHT, ANSWER = ("Let ", "me ", "see."), ("In ", "the ", "west.")


def token(text: str, probabilities: tuple[float, ...], k: int) -> dict[str, Any]:
    """A token, the first of its alternatives."""
    top = [{"token": text if i == 0 else f"other {i}", "logprob": math.log(p)} for i, p in enumerate(probabilities)]
    for entry in top:
        entry["bytes"] = list(str(entry["token"]).encode())
    return {**top[0], "top_logprobs": top[:k]}


class StandIn:
    """The ASGI application; remembers what it was asked."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []
        self.left = threading.Event()
        """Set when a client leaves before its answer is whole."""
        self.gap_s = 0.0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        asked = json.loads(body) if body.startswith(b"{") else {"model": "plain", "messages": [{"role": "user"}]}
        self.seen.append(
            {
                "path": scope["path"],
                "query": scope["query_string"].decode(),
                "headers": headers,
                "body": asked,
                "raw": body,
            }
        )
        answer = asyncio.ensure_future(self.answer(scope, asked, send))
        gone = asyncio.ensure_future(receive())
        await asyncio.wait((answer, gone), return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            self.left.set()
        answer.cancel()
        gone.cancel()

    async def answer(self, scope: Any, asked: dict[str, Any], send: Any) -> None:
        path, model = scope["path"], asked.get("model", "")
        if not path.endswith(("/completions", "/responses")) or scope["method"] != "POST":
            await whole(
                send, 200, {"path": path, "method": scope["method"]}, extra=[(b"x-kept", b"1"), (b"x-kept", b"2")]
            )
        elif model == "packed":
            body = gzip.compress(json.dumps(response(path, asked)).encode())
            await whole(send, 200, body, extra=[(b"content-encoding", b"gzip")])
        elif refusal := refused(model, asked):
            await whole(send, *refusal)
        elif path.endswith("/responses"):
            await self.responses(asked, send)
        elif asked.get("stream"):
            await self.stream(asked, send, chunks(path, asked))
        else:
            await asyncio.sleep(60 if model == "slow" else 0)
            await whole(send, 200, response(path, asked))

    async def stream(self, asked: dict[str, Any], send: Any, events: list[dict[str, Any]]) -> None:
        model = asked["model"]
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        await part(send, b": hello\n\n")
        for i, event in enumerate(events):
            if model == "breaks" and i == 2:
                return
            await part(send, b"data: " + json.dumps(event).encode() + b"\n\n")
            await asyncio.sleep(0.05 if model == "slow" else self.gap_s)
            while model == "slow" and i == 2:
                await part(send, b"data: " + json.dumps(events[1]).encode() + b"\n\n")
                await asyncio.sleep(0.05)
        await part(send, b"data: [DONE]\n\n")
        await send({"type": "http.response.body", "body": b""})

    async def responses(self, asked: dict[str, Any], send: Any) -> None:
        k = asked.get("top_logprobs", 0) if "message.output_text.logprobs" in asked.get("include", []) else 0
        logprobs = [token(text, AFTER, k) for text in ANSWER] if k else []
        text = {"type": "output_text", "text": "".join(ANSWER), "annotations": [], "logprobs": logprobs}
        item = {"id": "msg_1", "type": "message", "role": "assistant", "status": "completed", "content": [text]}
        found = {"id": f"resp_{len(self.seen)}", "object": "response", "status": "completed", "model": asked["model"],
                 "output": [item], "created_at": 1, "text": {"format": {"type": "text"}}, "tools": [],
                 "tool_choice": "auto", "parallel_tool_calls": True}  # fmt: skip
        if not asked.get("stream"):
            await whole(send, 200, found)
            return
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        events = [{"type": "response.output_text.delta", "delta": piece, "item_id": "msg_1", "output_index": 0,
                   "content_index": 0, "sequence_number": i, "logprobs": logprobs[i : i + 1]}
                  for i, piece in enumerate(ANSWER)]  # fmt: skip
        for event in [*events, {"type": "response.completed", "sequence_number": 3, "response": found}]:
            await part(send, f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode())
        await send({"type": "http.response.body", "body": b""})


def refused(model: str, asked: dict[str, Any]) -> tuple[int, Any] | None:
    """Status and body of a refusal; None if the model takes the request."""
    wants = asked.get("top_logprobs") or (asked.get("logprobs") if asked.get("logprobs") is not True else 0) or 0
    if model == "busy":
        return 429, {"error": {"message": "too many requests", "type": "rate_limit", "code": None}}
    if model == "html":
        return 503, "<html>no</html>"
    if model == "limit-5" and wants > 5:
        return 400, {"error": {"message": "top_logprobs must be at most 5", "type": "invalid_request_error"}}
    if model == "refuses" and "logprobs" in asked:
        return 400, {"error": {"message": "logprobs is not supported with this model"}}
    if model == "forbids" and asked.get("logprobs"):
        return 403, {"error": {"message": "You are not allowed to request logprobs from this model"}}
    if model == "crashes" and asked.get("logprobs"):
        return 500, {"error": {"message": "logprobs need logits_all"}}
    if asked.get("max_tokens", 1) < 1:
        return 400, {"error": {"message": "max_tokens must be positive", "type": "invalid_request_error"}}
    return None


def script(asked: dict[str, Any]) -> tuple[tuple[str, ...], bool]:
    """Texts of the reply, and whether calls follow: after a question, where tools are given."""
    calls = bool(asked.get("tools")) and asked["messages"][-1]["role"] == "user"
    return (THOUGHT if calls else ANSWER), calls


def block(path: str, asked: dict[str, Any], texts: tuple[str, ...], probabilities: tuple[float, ...]) -> Any:
    """What the reply states as logprobs."""
    if not asked.get("logprobs") or asked["model"] == "silent":
        return None
    if path.endswith("/chat/completions"):
        return {"content": [token(text, probabilities, asked.get("top_logprobs", 0)) for text in texts]}
    tokens = [token(text, probabilities, asked["logprobs"]) for text in texts]
    return {
        "tokens": list(texts),
        "token_logprobs": [entry["logprob"] for entry in tokens],
        "top_logprobs": [{top["token"]: top["logprob"] for top in entry["top_logprobs"]} for entry in tokens],
        "text_offset": [0] * len(tokens),
    }


def spelled(call: tuple[str, str, str]) -> str:
    """A call as the model writes it; one token here."""
    return f'<tool_call>\n{{"name": "{call[1]}", "arguments": {call[2]}}}\n</tool_call>'


def response(path: str, asked: dict[str, Any]) -> dict[str, Any]:
    """A whole answer."""
    kept = {"id": "c-1", "created": 1, "model": asked["model"]}
    if not path.endswith("/chat/completions"):
        choice = {
            "index": 0,
            "text": "".join(ANSWER),
            "logprobs": block(path, asked, ANSWER, AFTER),
            "finish_reason": "stop",
        }
        return {**kept, "object": "text_completion", "choices": [choice]}
    texts, calls = script(asked)
    found = block(path, asked, texts, BEFORE if calls else AFTER)
    if found and calls:
        found["content"] += block(path, asked, tuple(map(spelled, CALLS)), CALLING)["content"]
    listed = [
        {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}
        for id, name, arguments in CALLS
    ]
    message = {"role": "assistant", "content": "".join(texts), **({"tool_calls": listed} if calls else {})}
    finish = "tool_calls" if calls else "stop"
    choice = {"index": 0, "message": message, "logprobs": found, "finish_reason": finish}
    return {**kept, "object": "chat.completion", "choices": [choice]}


def chunks(path: str, asked: dict[str, Any]) -> list[dict[str, Any]]:
    """The chunks of the same answer."""
    kept = {"id": "c-1", "created": 1, "model": asked["model"]}
    if not path.endswith("/chat/completions"):
        pieces = [
            {"index": 0, "text": t, "logprobs": block(path, asked, (t,), AFTER), "finish_reason": None} for t in ANSWER
        ]
        pieces[-1]["finish_reason"] = "stop"
        return [{**kept, "object": "text_completion", "choices": [piece]} for piece in pieces]
    texts, calls = script(asked)
    deltas: list[tuple[dict[str, Any], Any]] = [({"role": "assistant", "content": ""}, None)]
    deltas += [({"content": t}, block(path, asked, (t,), BEFORE if calls else AFTER)) for t in texts]
    for i, call in enumerate(CALLS if calls else ()):
        id, name, arguments = call
        first = {"index": i, "id": id, "type": "function", "function": {"name": name, "arguments": ""}}
        deltas.append(({"tool_calls": [first]}, None))
        written = block(path, asked, (spelled(call),), CALLING)
        deltas.append(({"tool_calls": [{"index": i, "function": {"arguments": arguments}}]}, written))
    found = [
        {**kept, "object": "chat.completion.chunk", "choices": [
            {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": None}]}
        for delta, logprobs in deltas
    ]  # fmt: skip
    end = {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "tool_calls" if calls else "stop"}
    return [*found, {**kept, "object": "chat.completion.chunk", "choices": [end]}]


async def part(send: Any, data: bytes) -> None:
    await send({"type": "http.response.body", "body": data, "more_body": True})


async def whole(send: Any, status: int, body: Any, extra: list[tuple[bytes, bytes]] | None = None) -> None:
    text = body if isinstance(body, str | bytes) else json.dumps(body)
    data = text if isinstance(text, bytes) else text.encode()
    kind = b"text/html" if isinstance(body, str) else b"application/json"
    headers = [
        (b"content-type", kind),
        (b"content-length", str(len(data)).encode()),
        (b"x-request-id", b"r-1"),
        *(extra or []),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": data})


@contextmanager
def serving(app: Any) -> Iterator[str]:
    """Serve an application in a thread; yields its URL."""
    server = uvicorn.Server(
        uvicorn.Config(
            app, port=0, http="h11", lifespan="off", log_level="critical", server_header=False, date_header=False
        )
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.005)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(10)
        assert not thread.is_alive()
