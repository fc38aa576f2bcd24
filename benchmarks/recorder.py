"""Latency that `deltah record` adds to each token of a stream, against the same server without it.

    python benchmarks/recorder.py --repetitions 9

A stand-in server, the recorder and the clients are processes of their own. Each token carries the time at which the
server sent it; its latency is the time at which the client has it, less that. Rounds of the cases take turns: straight
to the server without log-probabilities (what the client has today), straight with 20 of them a token, and through the
recorder. Times are those of one clock (CLOCK_MONOTONIC).
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import harness
import numpy as np

TOP = [{"token": f" word{i}", "logprob": -1.2345678 - i / 7, "bytes": list(f" word{i}".encode())} for i in range(20)]
CHUNK = {"id": "chatcmpl-0", "object": "chat.completion.chunk", "created": 1, "model": "stand-in"}
DONE = b"data: [DONE]\n\n"
SENT = b', "sent": '
CASES = ("server", "server, logprobs", "recorder")


def chunk(logprobs: bool) -> bytes:
    """A chunk of one token but for the time at its end."""
    block = {"content": [{**TOP[0], "top_logprobs": TOP}]} if logprobs else None
    choice = {"index": 0, "delta": {"content": " word0"}, "logprobs": block, "finish_reason": None}
    return b"data: " + json.dumps({**CHUNK, "choices": [choice]}).encode()[:-1] + SENT


async def application(scope: Any, receive: Any, send: Any) -> None:
    """The stand-in server: `max_tokens` tokens, `gap_s` apart."""
    if scope["type"] != "http":
        return
    asked = json.loads((await receive())["body"] or b"{}")
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
    began, head = time.monotonic(), chunk(bool(asked.get("logprobs")))
    for i in range(asked.get("max_tokens", 0)):
        await asyncio.sleep(max(0.0, began + (i + 1) * asked["gap_s"] - time.monotonic()))
        body = head + f"{time.monotonic():.7f}}}\n\n".encode()
        await send({"type": "http.response.body", "body": body, "more_body": True})
    await send({"type": "http.response.body", "body": DONE})


async def stream(port: int, body: dict[str, Any], wait_s: float) -> list[float]:
    """Latencies of the tokens of one stream, in seconds."""
    await asyncio.sleep(wait_s)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    sent = json.dumps(body).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(sent)}\r\n\r\n"
    writer.write(head.encode() + sent)
    found, rest = [], b""
    while DONE not in rest:
        part = await reader.read(1 << 16)
        now = time.monotonic()
        *events, rest = (rest + part).split(b"\n\n") if part else (DONE,)
        rest = DONE if any(b"[DONE]" in event for event in events) else rest
        found += [now - float(event[event.rindex(SENT) + len(SENT) : -1]) for event in events if SENT in event]
    writer.close()
    return found


async def round_of(port: int, streams: int, body: dict[str, Any]) -> list[float]:
    """All latencies of streams at the same time, begun evenly over one gap."""
    waits = [i * body["gap_s"] / streams for i in range(streams)]
    return [s for found in await asyncio.gather(*(stream(port, body, wait) for wait in waits)) for s in found]


@contextmanager
def process(*command: str) -> Iterator[tuple[int, subprocess.Popen[str]]]:
    """A server and its port, which it names in its first line on standard error."""
    running = subprocess.Popen([sys.executable, *command], stderr=subprocess.PIPE, text=True)
    assert running.stderr is not None
    try:
        first = running.stderr.readline()
        port = re.findall(r"127\.0\.0\.1:(\d+)", first)
        if not port:
            raise SystemExit(first + running.stderr.read())
        yield int(port[-1]), running
    finally:
        running.terminate()
        running.wait()


def serve() -> None:
    """Run the stand-in server."""
    import socket

    import uvicorn

    with socket.create_server(("127.0.0.1", 0)) as listening:
        print(f"127.0.0.1:{listening.getsockname()[1]}", file=sys.stderr, flush=True)
        config = uvicorn.Config(application, http="h11", lifespan="off", log_level="critical")
        uvicorn.Server(config).run(sockets=[listening])


def cpu_s(pid: int) -> float:
    """Processor time of a process."""
    with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def line(name: str, values: list[float], unit: str = "ms", scale: float = 1e3) -> None:
    middle, low, high = harness.median_interval([value * scale for value in values])
    print(f"{name:52} {middle:8.3f}   [{low:.3f}, {high:.3f}] {unit}")


def body() -> None:
    arguments = harness.parser(__doc__)
    arguments.add_argument("--streams", type=int, default=16)
    arguments.add_argument("--tokens", type=int, default=200)
    arguments.add_argument("--gap", type=float, default=0.02, help="Seconds between the tokens of a stream.")
    given = arguments.parse_args()
    harness.print_machine(["uvicorn", "httpx", "h11", "msgspec"])
    print(f"{given.streams} streams of {given.tokens} tokens, one every {given.gap * 1e3:g} ms, 20 log-probabilities")
    found: dict[str, list[list[float]]] = {case: [] for case in CASES}
    spent = []
    with tempfile.TemporaryDirectory() as folder, process(__file__, "--serve") as (server, _):
        url, out = f"http://127.0.0.1:{server}", os.path.join(folder, "log.jsonl")
        recorder = ("-m", "deltah", "record", "--upstream", url, "--out", out, "--port", "0")
        with process(*recorder) as (port, running):
            for repetition in range(given.repetitions + 1):
                first = repetition % len(CASES)
                for case in (*CASES[first:], *CASES[:first]):
                    asked: dict[str, Any] = {"model": "m", "messages": [], "stream": True, "gap_s": given.gap}
                    asked |= {"max_tokens": given.tokens} | ({"logprobs": True} if case == CASES[1] else {})
                    before = cpu_s(running.pid)
                    latencies = asyncio.run(round_of(port if case == CASES[2] else server, given.streams, asked))
                    assert len(latencies) == given.streams * given.tokens, len(latencies)
                    if repetition:  # the first round warms up
                        found[case].append(latencies)
                        spent += [(cpu_s(running.pid) - before) / len(latencies)] if case == CASES[2] else []
        with open(out, encoding="utf-8") as file:
            assert sum(1 for _ in file) == given.streams * (given.repetitions + 1)
    for name, share in (("median", 0.5), ("95th percentile", 0.95), ("99th percentile", 0.99)):
        quantiles = {case: [float(np.quantile(one, share)) for one in rounds] for case, rounds in found.items()}
        for case, values in quantiles.items():
            line(f"{name} of latency, {case}", values)
        for case in CASES[:2]:
            added = [b - a for a, b in zip(quantiles[case], quantiles[CASES[2]], strict=True)]
            line(f"{name}, recorder less {case}", added)
    for case in CASES[:2]:
        pairs = zip(found[case], found[CASES[2]], strict=True)
        line(f"mean, recorder less {case}", [statistics.mean(b) - statistics.mean(a) for a, b in pairs])
    line("processor time of the recorder, a token", spent, "us", 1e6)


if __name__ == "__main__":
    if sys.argv[1:] == ["--serve"]:
        serve()
    else:
        body()
