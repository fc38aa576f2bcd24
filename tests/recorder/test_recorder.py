"""The recorder between the real `openai` client and a server that answers by script."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("uvicorn")
openai = pytest.importorskip("openai")
from recorder.stand_in import AFTER, ANSWER, BEFORE, CALLS, QUESTION, THOUGHT, StandIn, serving  # noqa: E402

import deltah  # noqa: E402
from deltah.recorder.logfile import LogFile  # noqa: E402
from deltah.recorder.passthrough import Recorder, Upstream  # noqa: E402

KEY = "sk-a-key-of-nobody"
TOOLS = [{"type": "function", "function": {"name": name, "parameters": {}}} for _, name, _ in CALLS]
ASKED = {"role": "user", "content": QUESTION}
RESULTS = [{"role": "tool", "tool_call_id": id, "content": f"Tarn lies west, says {name}."} for id, name, _ in CALLS]
# H(.4,.3,.2,.1) = .4 ln 2.5 + .3 ln 3.3333 + .2 ln 5 + .1 ln 10 = .36652 + .36119 + .32189 + .23026 = 1.27985
# H(.97,.01,.01,.01) = .97 * .030459 + 3 * .01 * 4.605170 = .02955 + .13816 = .16770
DELTA_H = 0.16770 - 1.27985


def probabilities_say_the_same() -> float:
    before, after = (-sum(p * math.log(p) for p in ps) for ps in (BEFORE, AFTER))
    return after - before


@dataclass
class Setup:
    """A server, a recorder before it, and where it writes."""

    server: StandIn
    direct: str
    url: str
    path: Path
    log: LogFile
    recorder: Recorder
    said: list[str]
    stack: ExitStack
    """What serves the recorder."""

    def client(self, **options: Any) -> Any:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=KEY, max_retries=0, **options)

    def lines(self) -> list[dict[str, Any]]:
        """What was written, once all is."""
        self.stack.close()
        self.log.close()
        return [json.loads(line) for line in self.path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def setup(tmp_path: Path) -> Iterator[Setup]:
    server, said, path = StandIn(), list[str](), tmp_path / "log.jsonl"
    with serving(server) as direct:
        log = LogFile(path, said.append)
        recorder = Recorder(Upstream(direct, 20, said.append), log)
        with ExitStack() as stack:
            url = stack.enter_context(serving(recorder))
            yield Setup(server, direct, url, path, log, recorder, said, stack)
        log.close()


def reply_of(chunks: Any) -> dict[str, Any]:
    """The message that a client makes of a stream."""
    text, calls = "", dict[int, dict[str, Any]]()
    for chunk in chunks:
        delta = chunk.choices[0].delta
        assert chunk.choices[0].logprobs is None
        text += delta.content or ""
        for piece in delta.tool_calls or []:
            call = calls.setdefault(piece.index, {"type": "function", "function": {"name": "", "arguments": ""}})
            call["id"] = piece.id or call["id"]
            call["function"]["name"] += piece.function.name or ""
            call["function"]["arguments"] += piece.function.arguments or ""
    return {"role": "assistant", "content": text, **({"tool_calls": list(calls.values())} if calls else {})}


def talk(client: Any, *, stream: bool, model: str = "plain", **more: Any) -> str:
    """One conversation of two requests; returns the answer."""
    messages: list[Any] = [ASKED]
    for _ in range(2):
        made = client.chat.completions.create(model=model, messages=messages, tools=TOOLS, stream=stream, **more)
        said = reply_of(made) if stream else made.choices[0].message.model_dump(exclude_none=True)
        assert stream or made.choices[0].logprobs is None
        messages += [said, *RESULTS]
    return str(messages[-3]["content"])


def check_measured(path: Path, n: int) -> None:
    """Every conversation of a log is whole and has the entropies that the server's probabilities say."""
    assert pytest.approx(probabilities_say_the_same(), abs=1e-4) == DELTA_H
    reader = deltah.read_traces(path, vocab_size=1000)
    trajectories = list(reader)
    assert (len(trajectories), reader.problems, reader.n_unjoined) == (n, [], 0)
    for t in trajectories:
        assert [(c.name, c.arguments, c.result) for c in t.calls] == [
            (name, arguments, result["content"]) for (_, name, arguments), result in zip(CALLS, RESULTS, strict=True)
        ]
        signal = deltah.score(t)
        assert signal.value[0] == pytest.approx(DELTA_H, abs=1e-4)
        assert {v.value for v in signal.call_verdicts} == {"reduced"}


@pytest.mark.parametrize("stream", [False, True])
def test_a_conversation_reads_back_with_its_entropies(setup: Setup, stream: bool) -> None:
    assert talk(setup.client(), stream=stream) == "".join(ANSWER)
    lines = setup.lines()
    assert len({line["session_id"] for line in lines}) == 1
    assert [line["http_status"] for line in lines] == [200, 200]
    assert all(line["duration_s"] > 0 and line["started_at"] > 1.7e9 for line in lines)
    assert [line["request"]["top_logprobs"] for line in lines] == [20, 20]
    check_measured(setup.path, 1)
    assert setup.said == []


def test_conversations_of_one_question_at_the_same_time_are_kept_apart(setup: Setup) -> None:
    """The script gives all of them the same ids and texts."""
    setup.server.gap_s = 0.002

    async def one(client: Any) -> None:
        messages: list[Any] = [ASKED]
        for _ in range(2):
            parts = [c async for c in await client.chat.completions.create(
                model="plain", messages=messages, tools=TOOLS, stream=True)]  # fmt: skip
            messages += [reply_of(parts), *RESULTS]

    async def all_at_once() -> None:
        async with openai.AsyncOpenAI(base_url=f"{setup.url}/v1", api_key=KEY, max_retries=0) as client:
            await asyncio.gather(*(one(client) for _ in range(8)))

    asyncio.run(all_at_once())
    assert len(setup.lines()) == 16
    check_measured(setup.path, 8)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/responses"])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("asks", [False, True])
def test_the_client_gets_the_bytes_of_the_server(setup: Setup, path: str, stream: bool, asks: bool) -> None:
    """Those that it would get without a recorder, whether it asks for log-probabilities itself or not."""
    body: dict[str, Any] = {"model": "plain", "stream": stream, "messages": [ASKED], "tools": TOOLS, "prompt": "Tarn"}
    wish: dict[str, dict[str, Any]] = {
        "/v1/chat/completions": {"logprobs": True, "top_logprobs": 2},
        "/v1/completions": {"logprobs": 1},
        "/v1/responses": {"top_logprobs": 3, "include": ["message.output_text.logprobs"]},
    }
    sent = json.dumps(body | (wish[path] if asks else {}), indent=1).encode()
    answers = []
    for url in (setup.direct, setup.url):
        setup.server.seen.clear()
        answers.append(httpx.post(url + path, content=sent, headers={"content-type": "application/json"}))
    assert answers[0].content == answers[1].content
    assert answers[0].headers.raw == answers[1].headers.raw
    assert (setup.server.seen[0]["raw"] == sent) == asks
    response = json.dumps(setup.lines()[0]["response"])
    assert ("top_logprobs" in response) == (path != "/v1/responses" or asks or "token" in response)
    assert json.dumps(AFTER[0])[:2] not in response or '"logprob": -' in response or "token_logprobs" in response


@pytest.mark.parametrize("wrong", [3, True, {"a": 1}])
def test_a_wrong_include_is_the_servers_to_refuse(setup: Setup, wrong: object) -> None:
    body = {"model": "plain", "input": "Tarn", "include": wrong}
    answers = []
    for url in (setup.direct, setup.url):
        setup.server.seen.clear()
        answers.append(httpx.post(f"{url}/v1/responses", json=body))
    assert [a.status_code for a in answers] == [answers[0].status_code] * 2
    assert answers[0].content == answers[1].content


def test_responses_are_logged_whole_and_joined_by_their_ids(setup: Setup) -> None:
    client = setup.client()
    first = client.responses.create(model="plain", input=QUESTION)
    assert first.output[0].content[0].logprobs == []
    second = client.responses.create(model="plain", input="Sure?", previous_response_id=first.id, stream=True)
    assert [event.logprobs for event in second if event.type.endswith("delta")] == [[], [], []]
    client.responses.create(model="plain", input=[ASKED])
    lines = setup.lines()
    assert [line["response"]["object"] for line in lines] == ["response"] * 3
    listed = [line["response"]["output"][0]["content"][0]["logprobs"] for line in lines]
    assert [[entry["token"] for entry in block] for block in listed] == [list(ANSWER)] * 3
    sessions = [line["session_id"] for line in lines]
    assert sessions[0] == sessions[1] != sessions[2]
    entropies = [list(t.entropy) for t in deltah.read_traces(setup.path, vocab_size=1000)]
    assert entropies == [pytest.approx([0.16770] * n, abs=1e-4) for n in (6, 3)]  # two replies, one reply


@pytest.mark.parametrize("stream", [False, True])
def test_text_completions_read_back(setup: Setup, stream: bool) -> None:
    made = setup.client().completions.create(model="plain", prompt="Where is Tarn?", stream=stream)
    said = [part.choices[0].text for part in made] if stream else [made.choices[0].text]
    assert "".join(said) == "".join(ANSWER)
    setup.lines()
    (trajectory,) = deltah.read_traces(setup.path, vocab_size=1000)
    assert list(trajectory.entropy) == pytest.approx([0.16770] * 3, abs=1e-4)


@pytest.mark.parametrize(
    ("model", "given", "said"),
    [
        ("limit-5", 5, "gives at most 5"),
        ("refuses", 0, "refuses"),
        ("forbids", 0, "refuses"),
        ("crashes", 0, "refuses"),
    ],
)
def test_what_a_server_refuses_is_asked_once(setup: Setup, model: str, given: int, said: str) -> None:
    for _ in range(3):
        assert talk(setup.client(), stream=False, model=model)
    assert len(setup.said) == 1
    assert said in setup.said[0]
    talk(setup.client(), stream=True, model=model)  # a stream is another kind of request
    wishes = [seen["body"].get("top_logprobs", 0) for seen in setup.server.seen]
    assert wishes == [20, *[given] * 6, 20, given, given]
    assert [line["request"].get("top_logprobs", 0) for line in setup.lines()] == [given] * 8


def test_a_server_that_gives_none_is_named_once(setup: Setup) -> None:
    talk(setup.client(), stream=False, model="silent")
    talk(setup.client(), stream=False, model="silent")
    assert len(setup.said) == 1
    assert "sends no log-probabilities for /v1/chat/completions, model silent, with tools" in setup.said[0]


def test_errors_pass_and_are_logged(setup: Setup) -> None:
    client = setup.client()
    with pytest.raises(openai.RateLimitError, match="too many requests") as busy:
        client.chat.completions.create(model="busy", messages=[ASKED])
    assert busy.value.response.headers["x-request-id"] == "r-1"
    with pytest.raises(openai.BadRequestError, match="max_tokens must be positive"):
        client.chat.completions.create(model="plain", messages=[ASKED], max_tokens=0)
    with pytest.raises(openai.InternalServerError):
        client.chat.completions.create(model="html", messages=[ASKED])
    client.chat.completions.create(model="plain", messages=[ASKED])  # their own mistakes say nothing of it
    lines = setup.lines()
    assert [line["http_status"] for line in lines] == [429, 400, 503, 200]
    assert [line["response"]["error"]["message"] for line in lines[:3]] == [
        "too many requests", "max_tokens must be positive", "<html>no</html>"
    ]  # fmt: skip
    assert lines[3]["request"]["top_logprobs"] == 20
    assert setup.recorder.counts["failed"] == 3
    assert deltah.read_traces(setup.path).n_problems == 0
    reader = deltah.read_traces(setup.path)
    assert (len(list(reader)), reader.n_problems) == (1, 3)


def test_a_client_that_leaves_ends_the_request_to_the_server(setup: Setup) -> None:
    stream = setup.client().chat.completions.create(model="slow", messages=[ASKED], stream=True)
    for _, _chunk in zip(range(5), stream, strict=False):
        pass
    stream.close()
    assert setup.server.left.wait(5)
    lines = setup.lines()
    assert lines[0]["ended"] == "the client closed the connection"
    assert setup.recorder.counts["cut"] == 1
    assert len(next(iter(deltah.read_traces(setup.path))).entropy) >= 3


def test_a_client_that_does_not_wait_ends_the_request_too(setup: Setup) -> None:
    with pytest.raises(openai.APITimeoutError):
        setup.client(timeout=0.3).chat.completions.create(model="slow", messages=[ASKED])
    assert setup.server.left.wait(5)
    (line,) = setup.lines()
    assert (line["http_status"], line["ended"]) == (None, "the client closed the connection")
    assert line["response"]["error"]["type"] == "recorder"


def test_a_stream_that_the_server_breaks_off_is_broken_off(setup: Setup) -> None:
    for url in (setup.direct, setup.url):
        with pytest.raises(httpx.RemoteProtocolError):
            httpx.post(f"{url}/v1/chat/completions", json={"model": "breaks", "stream": True, "messages": [ASKED]})
    (line,) = setup.lines()
    assert "no answer from" in line["ended"]
    assert len(line["response"]) == 2


def test_a_server_that_is_down_is_a_502(tmp_path: Path) -> None:
    said: list[str] = []
    log = LogFile(tmp_path / "log.jsonl", said.append)
    with serving(Recorder(Upstream("http://127.0.0.1:9/v1", 20, said.append), log)) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0)
        for _ in range(2):
            with pytest.raises(openai.InternalServerError, match="no answer from http://127"):
                client.chat.completions.create(model="plain", messages=[ASKED])
        assert httpx.get(f"{url}/health").status_code == 502
    log.close()
    assert len(said) == 1
    line = json.loads(log.path.read_text().splitlines()[0])
    assert (line["http_status"], line["response"]["error"]["type"]) == (502, "recorder")


def test_other_paths_pass_as_they_are(setup: Setup) -> None:
    for method, path in (
        ("GET", "/v1/models?limit=2"),
        ("POST", "/v1/embeddings"),
        ("HEAD", "/health"),
        ("DELETE", "/v1/x%20y"),
    ):
        direct, passed = (
            httpx.request(method, url + path, headers={"x-mine": "1"}) for url in (setup.direct, setup.url)
        )
        assert (direct.content, direct.headers.raw) == (passed.content, passed.headers.raw)
        assert setup.server.seen[-1]["query"] == setup.server.seen[-2]["query"]
        assert setup.server.seen[-1]["headers"]["x-mine"] == "1"
    assert passed.headers.get_list("x-kept") == ["1", "2"]
    assert setup.lines() == []


def test_an_answer_that_comes_compressed_is_read(setup: Setup) -> None:
    assert talk(setup.client(), stream=False, model="packed") == "".join(ANSWER)
    setup.lines()
    check_measured(setup.path, 1)


def test_what_cannot_be_read_passes_and_is_named(setup: Setup) -> None:
    for _ in range(2):
        assert httpx.post(f"{setup.url}/v1/chat/completions", content=b"no json").status_code == 200
    assert [seen["raw"] for seen in setup.server.seen] == [b"no json"] * 2
    assert (setup.lines(), len(setup.said)) == ([], 1)
    assert "holds no JSON object; it is not recorded" in setup.said[0]


def test_no_key_reaches_the_log(setup: Setup) -> None:
    """Header, query, cookie, body, tools, and an error that repeats them."""
    keys = [KEY, "query-key-5/7", "cookie-value-1", "body-key-abcdef", "tool-key-abcdef", "azure-key-1234"]
    header = {"authorization": f"Bearer {KEY}", "cookie": f"a=1; sid={keys[2]}", "api-key": keys[5]}
    body = {"model": "plain", "messages": [ASKED], "api_key": keys[3],
            "tools": [*TOOLS, {"type": "mcp", "headers": {"Authorization": keys[4]}}]}  # fmt: skip
    url = f"{setup.url}/v1/chat/completions?api-key=query-key-5%2F7&api-version=2026-01-01"
    assert httpx.post(url, headers=header, json=body).status_code == 200
    seen = setup.server.seen[-1]
    assert (seen["headers"]["authorization"], seen["headers"]["cookie"]) == (header["authorization"], header["cookie"])
    assert seen["body"]["api_key"] == keys[3]
    repeated = {"model": "plain", "messages": [{"role": "user", "content": " ".join([KEY, *keys[1:3], keys[5]])}]}
    httpx.post(url, headers=header, json=repeated)
    lines = setup.lines()
    assert lines[1]["request"]["messages"][0]["content"] == " ".join(["[removed]"] * 4)
    text = setup.path.read_text()
    assert not [key for key in (*keys, "query-key-5%2F7") if key in text]
    assert [len(line["request"].get("tools", [])) for line in lines] == [3, 0]


def sessions(setup: Setup, requests: Sequence[dict[str, Any]], headers: Sequence[dict[str, str]] = ()) -> list[str]:
    for i, request in enumerate(requests):
        sent = headers[i] if headers else {}
        httpx.post(f"{setup.url}/v1/chat/completions", json={"model": "plain", **request}, headers=sent)
    return [line["session_id"] for line in setup.lines()]


def test_clients_may_name_their_session(setup: Setup) -> None:
    asked = {"messages": [ASKED]}
    found = sessions(setup, [asked, asked | {"metadata": {"session_id": 7}}, asked], [{"x-session-id": "mine"}, {}, {}])
    assert found[:2] == ["mine", "7"]
    assert len(found[2]) == 12


def test_a_rewritten_history_stays_in_its_session(setup: Setup) -> None:
    """The text is dropped, trimmed, or the calls are the client's own; system prompts change."""
    call = {"id": "call_a", "type": "function", "function": {"name": "search", "arguments": "{}"}}
    other = {**call, "id": "call_b"}
    first = {"messages": [{"role": "system", "content": "09:00"}, ASKED], "tools": TOOLS}

    def then(**reply: Any) -> dict[str, Any]:
        said = {"role": "assistant", **reply}
        return {"messages": [{"role": "system", "content": "09:01"}, ASKED, said, RESULTS[0], RESULTS[1]]}

    text = "".join(THOUGHT)
    found = sessions(
        setup,
        [
            first,
            then(content=None, tool_calls=[call, other]),
            then(content=f" {text}\n"),
            then(content="<think>Hm.</think>" + text, tool_calls=[{**call, "id": "own"}]),
            then(content="Summary."),
            {"messages": [{"role": "user", "content": "Else?"}, {"role": "assistant", "content": text}, ASKED]},
        ],
    )
    assert len(set(found[:5])) == 1
    assert found[5] != found[0]


def test_where_a_request_goes() -> None:
    def at(url: str, path: str) -> str:
        return str(Upstream(url, 20, print).at(path.encode(), b""))

    assert at("http://h:1", "/v1/models") == at("http://h:1/v1", "/v1/models") == "http://h:1/v1/models"
    assert at("http://h:1/v1", "/health") == "http://h:1/health"
    assert at("https://h/api/v1", "/api/v1/models") == at("https://h/api/v1", "/v1/models") == "https://h/api/v1/models"
    assert at("https://h/v1beta/openai/", "/v1beta/openai/chat") == "https://h/v1beta/openai/chat"
    assert str(Upstream("http://me:word@h/v1", 20, print)) == "http://h/v1"


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://h", "http://", "", "http://h/v1?key=1", "http://[::1"])
def test_what_is_no_server_is_refused(url: str) -> None:
    with pytest.raises(deltah.errors.ConfigError, match="--upstream"):
        Upstream(url, 20, print)
