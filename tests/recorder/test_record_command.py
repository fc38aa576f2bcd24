"""`deltah record` as its own process: signals, kills, and what it says."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("uvicorn")
from recorder.stand_in import QUESTION, StandIn, serving

import deltah

ASKED = [{"role": "user", "content": QUESTION}]


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "deltah", "record", *map(str, arguments)]


@contextmanager
def recording(url: str, out: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A recorder and its URL."""
    process = subprocess.Popen(
        command("--upstream", url, "--out", out, "--port", 0),
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "COLUMNS": "300"},
    )
    assert process.stderr is not None
    try:
        first = process.stderr.readline()
        found = re.search(r"point clients at (http://127.0.0.1:\d+)/v1", first)
        assert found, first + process.stderr.read()
        yield process, found[1]
    finally:
        process.kill()
        process.wait()


def ask(url: str, **body: Any) -> httpx.Response:
    return httpx.post(f"{url}/v1/chat/completions", json={"model": "plain", "messages": ASKED, **body}, timeout=30)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    assert process.stderr is not None
    said = process.stderr.read()
    return process.wait(10), said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_streams_end(tmp_path: Path, number: signal.Signals) -> None:
    server = StandIn()
    server.gap_s = 0.1
    with serving(server) as upstream, recording(upstream, tmp_path / "log.jsonl") as (process, url):
        answers: list[httpx.Response] = []
        thread = threading.Thread(target=lambda: answers.append(ask(url, stream=True)))
        thread.start()
        while not server.seen[1:]:  # the first is the recorder's own question
            time.sleep(0.01)
        process.send_signal(number)
        thread.join()
        code, said = ended(process)
    assert answers[0].text.endswith("data: [DONE]\n\n")
    assert code == 0
    assert "1 answer is still under way" in said
    assert "1 exchange written" in said
    assert "1 with log-probabilities, 0 answered with an error, 0 broken off; 0 lost" in said
    assert lines(tmp_path / "log.jsonl")[0]["http_status"] == 200


def test_a_second_signal_cuts_them_off(tmp_path: Path) -> None:
    with serving(StandIn()) as upstream, recording(upstream, tmp_path / "log.jsonl") as (process, url):
        body = {"model": "slow", "messages": ASKED, "stream": True}
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=30) as answer:
            parts = answer.iter_bytes()
            next(parts)
            process.send_signal(signal.SIGINT)
            time.sleep(0.5)
            next(parts)
            process.send_signal(signal.SIGINT)
            with pytest.raises(httpx.RemoteProtocolError):
                for _ in parts:
                    pass
        code, said = ended(process)
    assert (code, "1 broken off" in said) == (0, True)
    assert lines(tmp_path / "log.jsonl")[0]["ended"] == "the recorder was ended"


def test_a_signal_that_is_ignored_ends_nothing(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does, for the processes that it starts
    try:
        with serving(StandIn()) as upstream, recording(upstream, tmp_path / "log.jsonl") as (process, url):
            process.send_signal(signal.SIGHUP)
            time.sleep(0.5)
            assert ask(url).status_code == 200
    finally:
        signal.signal(signal.SIGHUP, before)


def broken_off(url: str) -> None:
    with pytest.raises(httpx.HTTPError):
        ask(url, model="slow", stream=True)


def test_a_kill_leaves_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    for again in range(2):
        with serving(StandIn()) as upstream, recording(upstream, path) as (process, url):
            for _ in range(5):
                ask(url)
            threading.Thread(target=broken_off, args=(url,)).start()
            deadline = time.monotonic() + 10
            while not path.exists() or path.read_bytes().count(b"\n") < 5 * (again + 1):
                assert time.monotonic() < deadline
                time.sleep(0.01)
            process.kill()
            process.wait()
    assert len(lines(path)) == 10
    reader = deltah.read_traces(path)
    assert (len(list(reader)), reader.problems) == (10, [])
    assert len({line["session_id"] for line in lines(path)}) == 10  # a second start begins new conversations


def refused(*arguments: object) -> str:
    done = subprocess.run(command(*arguments), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2, done
    assert "Traceback" not in done.stderr
    return done.stderr


def test_what_cannot_be_started_is_said_in_a_sentence(tmp_path: Path) -> None:
    out = tmp_path / "log.jsonl"
    assert "expected the URL of a server" in refused("--upstream", "localhost:8000", "--out", out)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = refused("--upstream", "http://localhost:1", "--out", out, "--port", port)
        assert f"cannot listen on 127.0.0.1, port {port} (Address already in use)" in said
    said = refused("--upstream", f"http://localhost:{port}", "--out", out, "--port", port)
    assert "the address of the recorder itself" in said
    assert not out.exists()


def test_a_second_recorder_on_the_same_log_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "log.jsonl"
    with serving(StandIn()) as upstream, recording(upstream, out):
        assert f"another recorder writes {out}" in " ".join(
            refused("--upstream", upstream, "--out", out, "--port", 0).split()
        )


def test_a_server_that_is_not_there_yet_is_named(tmp_path: Path) -> None:
    with recording("http://127.0.0.1:9", tmp_path / "log.jsonl") as (process, url):
        assert ask(url).status_code == 502
        assert httpx.get(f"{url}/v1/models").status_code == 502
        process.send_signal(signal.SIGINT)
        code, said = ended(process)
    assert code == 0
    assert "http://127.0.0.1:9 does not answer yet" in said
    assert "1 answered with an error" in said
    assert "1 request of other kinds passed unrecorded" in said


def test_the_extra_is_named_where_its_package_is_absent(tmp_path: Path) -> None:
    program = (
        "import sys\nclass Absent:\n    def find_spec(self, name, *rest):\n"
        "        if name == 'uvicorn': raise ImportError(name)\n"
        "sys.meta_path.insert(0, Absent())\nfrom deltah.__main__ import main\nmain()"
    )
    words = [sys.executable, "-c", program, "record", "--upstream", "http://h", "--out", str(tmp_path / "log.jsonl")]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "pip install 'deltah[record]'" in done.stderr
