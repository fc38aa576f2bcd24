"""The server backend against a server on this machine that answers in the shapes of vLLM 0.32, llama-cpp-python and
SGLang: each dialect, retries, refusals, and servers that ignore the request."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from probe_fixtures import Answer, FakeServer

from deltah.core.entropy import SERVER_PRECISION_NATS, entropy_bounds
from deltah.core.types import Estimator
from deltah.errors import InvalidValueError, ServerError
from deltah.probe.queries import ChatContext, ContextTooLongError, Query, QueryError, TextContinuation
from deltah.probe.server import ServerBackend, ServerOptions, connect
from deltah.probe.server_api import RETRIED, ChatTemplate, JsonClient, base_url, tail_start

PIECE = re.compile(r"<[^>]*>|\s?\w+|\W")
TEMPLATE = ChatTemplate(
    "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
PROBABILITIES = (0.5, 0.25, 0.125)


def pieces(text: str) -> list[str]:
    return PIECE.findall(text)


def render(body: dict[str, Any]) -> str:
    """What the server makes of messages: an open last message stays open, its ends are stripped."""
    *before, last = body["messages"]
    if body.get("continue_final_message"):
        return TEMPLATE.render(before) + last["content"].strip()
    return TEMPLATE.render(body["messages"])


def top_of(token: str, k: int) -> dict[str, float]:
    """The prompt's token is the second best, unless it is rare: then it stands outside the k best."""
    others = [f"{token}~{i}" for i in range(3)]
    if token.strip() == "rare":
        return {token: math.log(0.01), **{o: math.log(p) for o, p in zip(others, PROBABILITIES, strict=True)}}
    named = [others[0], token, others[1]][:k]
    found = {text: math.log(p) for text, p in zip(named, PROBABILITIES, strict=False)}
    return {token: found.pop(token, math.log(0.25)), **found}


def positions(tokens: list[str], k: int) -> list[dict[str, Any] | None]:
    """vLLM's `prompt_logprobs`."""
    rows: list[dict[str, Any] | None] = [None]
    for token in tokens[1:]:
        found = top_of(token, k).items()
        rows.append({str(i): {"logprob": p, "rank": i, "decoded_token": t} for i, (t, p) in enumerate(found)})
    return rows


def models() -> Answer:
    return 200, {"object": "list", "data": [{"id": "m", "object": "model", "max_model_len": 1024}]}


def vllm(path: str, body: dict[str, Any] | None) -> Answer:
    if body is None:
        return models()
    k = body.get("prompt_logprobs")
    tokens = pieces(render(body) if "chat" in path else body["prompt"])
    rows = None if k is None else positions(tokens, k)
    usage = {"prompt_tokens": len(tokens), "completion_tokens": 1, "total_tokens": len(tokens) + 1}
    if "chat" in path:
        return 200, {"choices": [{"message": {"content": "x"}}], "usage": usage, "prompt_logprobs": rows}
    return 200, {"choices": [{"text": "x", "logprobs": None, "prompt_logprobs": rows}], "usage": usage}


def echoing(*, shifted: bool = False, offsets: bool = True) -> Callable[[str, dict[str, Any] | None], Answer]:
    """llama-cpp-python (with text offsets) and SGLang (with -1); `shifted` as the first does without BOS."""

    def handle(path: str, body: dict[str, Any] | None) -> Answer:
        if body is None:
            return models()
        if "logprobs" not in body:
            return 200, {"choices": [{"text": " next", "logprobs": None}], "usage": {}}
        tokens, k = pieces(body["prompt"]), body["logprobs"]
        shown = [*tokens, " next"] if body.get("echo") else [" next"]
        values: list[float | None] = [top_of(t, k)[t] for t in shown]
        top: list[dict[str, float] | None] = [top_of(t, k) for t in shown]
        if body.get("echo"):
            values[0] = top[0] = None
            if shifted:
                values, top, shown = [v if v is None else v - 1 for v in values[:-1]], top[:-1], shown[:-1]
        block = {"tokens": shown, "token_logprobs": values, "top_logprobs": top}
        block["text_offset"] = [0 if offsets else -1] * len(shown)
        usage = {"prompt_tokens": len(tokens), "completion_tokens": 1}
        return 200, {"choices": [{"text": "".join(shown), "logprobs": block}], "usage": usage}

    return handle


CONTEXT = ChatContext(messages=({"role": "user", "content": "Where is it"},))
OPEN = ChatContext(messages=CONTEXT.messages, open_text="I think ")


def ask(text: str, context: ChatContext = CONTEXT, **ends: int) -> Query:
    return Query(context=context, continuation=TextContinuation(text=text, **ends))


def reach(url: str, **options: Any) -> ServerBackend:
    """Connect, asking for three alternatives of a vocabulary of 100."""
    return connect(ServerOptions(url=url, **{"top_k": 3, "vocab_size": 100, **options}))


@pytest.mark.parametrize(
    ("handle", "template", "dialect"),
    [
        (vllm, None, "chat"),
        (vllm, TEMPLATE, "completions"),
        (echoing(), TEMPLATE, "echo"),
        (echoing(offsets=False), TEMPLATE, "echo"),
    ],
)
def test_each_dialect_gives_the_same_numbers(handle: Any, template: Any, dialect: str) -> None:
    with FakeServer(handle) as server:
        backend = reach(server.url, template=template)
        assert backend.identity["dialect"] == dialect
        queries = [ask("<answer>far away</answer>", opener=8, closer=9), ask("it is rare", OPEN)]
        tagged, open_turn = backend.score(queries)
    np.testing.assert_allclose(tagged.logprobs, [math.log(0.25)] * 4, atol=1e-9)
    assert tagged.focus.tolist() == [False, True, True, False]
    assert tagged.estimator is Estimator.TOP_K
    known = entropy_bounds(np.log(PROBABILITIES), 100, precision=SERVER_PRECISION_NATS)
    assert (tagged.lower <= known.lower + 1e-9).all()
    assert (tagged.upper >= known.upper - 1e-9).all()
    assert open_turn.n_context == len(pieces("<user>Where is it<assistant>I think"))
    assert open_turn.logprobs[-1] == pytest.approx(math.log(0.01))
    rare = entropy_bounds(np.log(PROBABILITIES), 100, sampled=np.log(0.01), precision=SERVER_PRECISION_NATS)
    assert open_turn.lower[-1] == pytest.approx(rare.lower)
    assert open_turn.upper[-1] == pytest.approx(rare.upper)


def test_what_the_server_is_asked() -> None:
    tools = [{"type": "function", "function": {"name": "search"}}]
    with FakeServer(vllm) as server:
        backend = reach(f"{server.url}/v1/", model="m", api_key="secret", tools=tools)
        list(backend.score([ask("so", OPEN)]))
        path, body, headers = server.requests[-1]
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == "Bearer secret"
    assert body == {
        "model": "m",
        "max_tokens": 1,
        "temperature": 0.0,
        "messages": [{"role": "user", "content": "Where is it"}, {"role": "assistant", "content": "I think so"}],
        "continue_final_message": True,
        "add_generation_prompt": False,
        "prompt_logprobs": 3,
        "tools": tools,
    }
    assert "secret" not in repr(backend._client)
    assert "secret" not in str(backend.identity)


def test_text_of_broken_characters_is_placed_by_counting() -> None:
    def handle(path: str, body: dict[str, Any] | None) -> Answer:
        status, value = vllm(path, body)
        if body is not None:
            tokens = [t for p in pieces(render(body)) for t in (("\ufffd", "\ufffd") if "é" in p else (p,))]
            value["prompt_logprobs"] = positions(tokens, body["prompt_logprobs"])
        return status, value

    with FakeServer(handle) as server:
        backend = reach(server.url)
        [scores] = backend.score([ask("<answer>é</answer>", opener=8, closer=9)])
    assert scores.focus.tolist() == [False, True, True, False]
    assert scores.n_context == len(pieces("<user>Where is it<assistant>"))


def test_alternatives_that_may_hide_one_another_are_not_measured() -> None:
    def handle(path: str, body: dict[str, Any] | None) -> Answer:
        status, value = echoing()(path, body)
        if body is not None and body.get("echo"):
            top = value["choices"][0]["logprobs"]["top_logprobs"]
            top[-2] = {"": -1.0, **dict(list(top[-2].items())[:2])}
            top[-3] = dict(list(top[-3].items())[:2])
        return status, value

    with FakeServer(handle) as server:
        [scores] = reach(server.url, template=TEMPLATE).score([ask("it is far")])
    assert np.isnan(scores.entropy).tolist() == [False, True, True]
    assert np.isfinite(scores.logprobs).all()


# Servers that cannot.


def test_a_server_that_ignores_prompt_logprobs() -> None:
    """llama.cpp's own server and hosted APIs: 200 with an answer and nothing else."""

    def handle(path: str, body: dict[str, Any] | None) -> Answer:
        return models() if body is None else (200, {"choices": [{"message": {"content": "x"}, "text": "x"}]})

    with FakeServer(handle) as server:
        with pytest.raises(ServerError, match=r"ignores the request .* \(chat\).*vLLM.*--chat-template"):
            reach(server.url)
        with pytest.raises(ServerError, match="can be verified"):
            reach(server.url, template=TEMPLATE)


@pytest.mark.parametrize(
    "answer",
    [
        {"prompt_logprobs": None},
        {"prompt_logprobs": [None, None]},
        {"prompt_logprobs": [None, {"1": {}}]},
        {"prompt_logprobs": "x"},
        {"prompt_logprobs": [3]},
        {},
        {"prompt_logprobs": {}},
    ],
)
def test_broken_answers_are_one_sentence(answer: dict[str, Any]) -> None:
    with (
        FakeServer(lambda path, body: models() if body is None else (200, answer)) as server,
        pytest.raises(ServerError, match="ignores the request"),
    ):
        reach(server.url)


def test_log_probabilities_of_the_neighbouring_token_are_refused() -> None:
    with FakeServer(echoing(shifted=True)) as server, pytest.raises(ServerError, match="do not belong to their tokens"):
        reach(server.url, template=TEMPLATE)


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (401, "refuses access (HTTP 401), no API key was given; name a variable with --api-key-env"),
        (404, "does not exist (HTTP 404: no such model); check --server and --served-model"),
        (418, "answered HTTP 418: no such model"),
    ],
)
def test_refusals_are_not_retried(status: int, message: str) -> None:
    with FakeServer(lambda path, body: (status, {"error": {"message": "no such model"}})) as server:
        with pytest.raises(ServerError, match=re.escape(message)):
            reach(server.url)
        assert len(server.requests) == 1


@pytest.mark.parametrize("said", ["<html>", "[1]"])
def test_something_that_is_not_the_api(said: str) -> None:
    with FakeServer(lambda path, body: (200, said)) as server, pytest.raises(ServerError, match="answered with"):
        reach(server.url)


def test_several_models_must_be_named() -> None:
    with (
        FakeServer(lambda path, body: (200, {"data": [{"id": "a"}, {"id": "b"}, 3]})) as server,
        pytest.raises(ServerError, match="serves these models: a, b; name one with --served-model"),
    ):
        reach(server.url)


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://x", ""])
def test_a_url_is_checked(url: str) -> None:
    with pytest.raises(InvalidValueError, match="expected a URL"):
        base_url(url)


# Failures that pass.


def flaky(failures: list[Answer]) -> Callable[[str, dict[str, Any] | None], Answer]:
    return lambda path, body: failures.pop(0) if failures else (200, {"ok": True})


def test_a_busy_server_is_asked_again() -> None:
    waited: list[float] = []
    failures: list[Answer] = [
        (429, "slow down", {"Retry-After": "7"}),
        (503, {"detail": "loading"}),
        (500, "", {"Retry-After": "soon"}),
        (502, "x", {"Retry-After": "9999"}),
    ]
    with FakeServer(flaky(failures)) as server:
        client = JsonClient(base=base_url(server.url), sleep=waited.append)
        assert client.ask("/completions", {"a": 1}) == {"ok": True}
        assert len(server.requests) == 5
    assert waited == [7.0, 1.0, 2.0, 60.0]


def test_a_server_on_this_machine_is_reached_without_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with FakeServer(flaky([])) as server:
        assert JsonClient(base=base_url(server.url), tries=1).ask("/models") == {"ok": True}


def test_a_server_that_stays_away_is_given_up_with_a_reason() -> None:
    waited: list[float] = []
    with FakeServer(flaky([(503, {"error": {"message": "loading"}})] * 9)) as server:
        url = server.url
        client = JsonClient(base=base_url(url), sleep=waited.append, tries=3)
        with pytest.raises(ServerError, match=r"did not answer after 3 tries \(HTTP 503: loading\).*continues"):
            client.ask("/models")
    with pytest.raises(ServerError, match="did not answer after 3 tries"):
        client.ask("/models")
    assert waited == [0.5, 1.0] * 2


def test_a_server_that_hangs_is_given_up() -> None:
    import threading

    release = threading.Event()

    def handle(path: str, body: dict[str, Any] | None) -> Answer:
        release.wait(5)
        return 200, {}

    with FakeServer(handle) as server:
        client = JsonClient(base=base_url(server.url), timeout_s=0.05, tries=2, sleep=lambda s: None)
        with pytest.raises(ServerError, match="timed out"):
            client.ask("/models")
        release.set()


# Queries that fail alone.

TOO_LONG = "This model's maximum context length is 1024 tokens. However, your prompt contains 1100 tokens."


@pytest.mark.parametrize(
    ("said", "error"),
    [(TOO_LONG, ContextTooLongError), ("Conversation roles must alternate", QueryError)],
)
def test_a_rejected_query_is_that_queries_fault(said: str, error: type[Exception]) -> None:
    def handle(path: str, body: dict[str, Any] | None) -> Answer:
        if body is not None and "boom" in str(body):
            return 400, {"error": {"message": said, "code": 400}}
        return vllm(path, body)

    with FakeServer(handle) as server:
        backend = reach(server.url)
        with pytest.raises(error, match=re.escape(said)):
            list(backend.score([ask("fine"), ask("boom")]))


def test_too_many_alternatives_are_refused_before_anything_is_asked() -> None:
    message = "Requested prompt logprobs of 50, which is greater than max allowed: 20"

    def handle(path: str, body: dict[str, Any] | None) -> Answer:
        return models() if body is None else (400, {"error": {"message": message}})

    with FakeServer(handle) as server, pytest.raises(ServerError, match=message):
        reach(server.url, top_k=50)


def test_the_cost_is_estimated_from_characters() -> None:
    with FakeServer(vllm) as server:
        backend = reach(server.url)
        n = len(server.requests)
        assert backend.count(ask("x" * 29)) == 5 + (11 + 29) // 4  # the default, four characters a token
        assert len(server.requests) == n


def test_the_tail_of_tokens() -> None:
    assert tail_start(["a", "b", " c", "d"], "cd") == 2
    assert tail_start(["a", "b"], "ab") == 0
    assert tail_start(["a", "b"], "xb") is None
    assert tail_start(["b"], "ab") is None


def test_retried_codes_are_those_that_pass() -> None:
    assert {429, 500, 503} <= RETRIED
    assert not {400, 401, 404} & RETRIED
