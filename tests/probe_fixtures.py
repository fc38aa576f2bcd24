"""A scripted backend, trajectories in tokens and in messages, and a server on this machine that speaks each dialect."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

from deltah import Segment, SegmentKind, ToolCall, Trajectory
from deltah.core.types import Estimator
from deltah.probe.queries import (
    ChatContext,
    ContextTooLongError,
    Query,
    Scores,
    TextContinuation,
    TokenContext,
    focus_mask,
)

Piece = tuple[str, str]
"""(kind, text): one token each."""


class Words:
    """A tokenizer's view in which every distinct text is one token."""

    def __init__(self) -> None:
        self.ids: dict[str, int] = {}

    def encode(self, texts: Sequence[str]) -> list[int]:
        return [self.ids.setdefault(text, len(self.ids)) for text in texts]

    def texts(self, ids: Sequence[int]) -> list[str]:
        names = {i: text for text, i in self.ids.items()}
        return [names[i] for i in ids]

    def prompt(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        return self.encode([f"<{m['role']}>{m['content']}" for m in messages])


def in_tokens(words: Words, turns: Sequence[Sequence[Piece]], calls: Sequence[ToolCall], **fields: Any) -> Trajectory:
    """A rollout as our engine writes it: turn by turn (kind, token) pieces, the prompt as text alone."""
    segments = [Segment(kind=SegmentKind.PROMPT, start=0, stop=0, turn=0, text=fields.get("question", "?"))]
    texts: list[str] = []
    for turn, pieces in enumerate(turns):
        for kind, text in pieces:
            last = segments[-1]
            if last.kind == kind and last.turn == turn and kind != "call":
                segments[-1] = Segment(kind=last.kind, start=last.start, stop=last.stop + 1, turn=turn)
            else:
                segments.append(Segment(kind=SegmentKind(kind), start=len(texts), stop=len(texts) + 1, turn=turn))
            texts.append(text)
    return Trajectory(
        segments=tuple(segments),
        calls=tuple(calls),
        token_ids=np.array(words.encode(texts), dtype=np.int64),
        token_texts=tuple(texts),
        **fields,
    )


def searched(words: Words, name: str, results: Sequence[str], answer: str, **fields: Any) -> Trajectory:
    """One question with one search a turn, then an answer between tags."""
    turns, calls = [], []
    for k, text in enumerate(results):
        body = [("result", f" {word}") for word in text.split()]
        turns.append([("reasoning", f"think{k}"), ("call", f"<search {name}{k}>"), ("control", "<end>")])
        turns[-1] += [("result", "<tool>"), *body, ("result", "<end>"), ("result", "<assistant>")]
        calls.append(ToolCall(id=f"{k}.0", name="search", arguments=f"{name}{k}", turn=k, result=text))
    turns.append([("reasoning", "So."), ("reasoning", f"<answer> {answer}</answer>"), ("control", "<end>")])
    given = {"id": name, "question": f"{name}?", "golden_answers": (answer,), **fields}
    return in_tokens(words, turns, calls, **given)


class Scripted:
    """A backend of one-character tokens whose answers are a function of the query; it counts what it is asked."""

    def __init__(
        self,
        logprob: Callable[[Query], float] = lambda query: -1.0,
        entropy: Callable[[Query], float] = lambda query: 0.5,
        *,
        view: Words | None = None,
        window: int = 10**6,
        name: str = "scripted",
        stop_after: int | None = None,
    ) -> None:
        self.identity = {"backend": "scripted", "model": name}
        self.view, self.asked, self.window = view, list[Query](), window
        self._logprob, self._entropy, self._stop_after = logprob, entropy, stop_after

    def _lengths(self, query: Query) -> tuple[int, int]:
        context, continuation = query.context, query.continuation
        before = len(context.ids) if isinstance(context, TokenContext) else len(str(context.messages))
        after = len(continuation.text) if isinstance(continuation, TextContinuation) else len(continuation.ids)
        return before, after

    def count(self, query: Query) -> int:
        if sum(self._lengths(query)) > self.window:
            raise ContextTooLongError("too long")
        return sum(self._lengths(query))

    def score(self, queries: Sequence[Query]) -> Iterator[Scores]:
        for query in queries:
            if len(self.asked) == self._stop_after:
                raise KeyboardInterrupt
            self.asked.append(query)
            before, n = self._lengths(query)
            continuation = query.continuation
            if isinstance(continuation, TextContinuation):
                focus = focus_mask(list(continuation.text), continuation.opener, continuation.closer)
            else:
                focus = np.array(continuation.focus)
            entropy = np.full(n, self._entropy(query))
            yield Scores(
                logprobs=np.full(n, self._logprob(query)),
                entropy=entropy,
                lower=entropy,
                upper=entropy,
                focus=focus,
                estimator=Estimator.EXACT,
                n_context=before,
            )


def holds(query: Query, words: Words | None, text: str) -> bool:
    """Whether a text stands in a query's context."""
    context = query.context
    if isinstance(context, ChatContext):
        return text in str(context.messages) + context.open_text
    assert words is not None
    return text in "".join(words.texts(context.ids))


Answer = tuple[int, Any] | tuple[int, Any, dict[str, str]]


class FakeServer:
    """HTTP server on 127.0.0.1; `handle(path, body)` gives status, JSON (or text) and perhaps headers."""

    def __init__(self, handle: Callable[[str, dict[str, Any] | None], Answer]) -> None:
        self.requests: list[tuple[str, dict[str, Any] | None, Mapping[str, str]]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._answer(None)

            def do_POST(self) -> None:
                self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

            def _answer(self, body: dict[str, Any] | None) -> None:
                outer.requests.append((self.path, body, dict(self.headers)))
                status, value, *headers = handle(self.path, body)
                data = value.encode() if isinstance(value, str) else json.dumps(value).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                for name, text in (headers[0] if headers else {}).items():
                    self.send_header(name, text)
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.handle_error = lambda *args: None  # type: ignore[method-assign]  # a client that gave up
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> FakeServer:
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *args: object) -> None:
        self._server.shutdown()
        self._server.server_close()
