"""The recorded log and the script that records: what they say of themselves holds, and a replayed server gets the
requests that the real one got."""

from __future__ import annotations

import importlib.util
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from deltah import read_traces
from deltah.core.types import Estimator, SpanQuality
from deltah.jsonlines import read_json_objects

ROOT = Path(__file__).parents[1]
LAB, DATA = ROOT / "examples" / "lab", ROOT / "tests" / "traces" / "data"


def objects(path: Path) -> list[dict[str, Any]]:
    return [record for _, record in read_json_objects(path)]


@pytest.fixture
def record_log() -> ModuleType:
    spec = importlib.util.spec_from_file_location("record_log", ROOT / "examples" / "record_log.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Replay(BaseHTTPRequestHandler):
    """Answers each request with the next recorded response."""

    entries: Iterator[dict[str, Any]]
    received: list[dict[str, Any]]

    def do_POST(self) -> None:
        self.received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        response = next(self.entries)["response"]
        self.send_response(400 if isinstance(response, dict) and "choices" not in response else 200)
        self.end_headers()
        if isinstance(response, list):
            text = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in response) + "data: [DONE]\n\n"
        else:
            text = json.dumps(response)
        self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None:
        """Keep the test's output clean."""


@pytest.fixture
def replay() -> Iterator[HTTPServer]:
    server = HTTPServer(("127.0.0.1", 0), Replay)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def run(record_log: ModuleType, server: HTTPServer, entries: list[dict[str, Any]], out: Path, *more: str) -> None:
    Replay.entries, Replay.received = iter(entries), []
    fixed = {"--model": "lab", "--tasks": str(LAB / "tasks.jsonl"), "--corpus": str(LAB / "corpus.jsonl")}
    arguments = [text for pair in fixed.items() for text in pair]
    arguments += ["--base-url", f"http://127.0.0.1:{server.server_port}/v1", "--out", str(out), *more]
    record_log.main(arguments)


@pytest.mark.parametrize(
    ("name", "flag"),
    [
        ("vllm-tools", ()),
        ("vllm-tools-stream", ("--stream",)),
        ("sglang-two-choices-stream", ("--stream", "--top-logprobs", "5", "--extra", '{"n": 2}')),
        ("sglang-error", ("--top-logprobs", "5", "--max-tokens", "5000")),
    ],
)
def test_the_script_sends_what_was_recorded(
    record_log: ModuleType, replay: HTTPServer, tmp_path: Path, name: str, flag: tuple[str, ...]
) -> None:
    [path] = DATA.glob(f"{name}.jsonl*")
    entries = objects(path)
    run(record_log, replay, entries, tmp_path / "log.jsonl", "--limit", "1", *flag)
    assert Replay.received == [entry["request"] for entry in entries]
    written = objects(tmp_path / "log.jsonl")
    for key in ("session_id", "request", "response"):
        assert [entry[key] for entry in written] == [entry[key] for entry in entries]


def test_a_refused_request_is_logged_and_ends_the_conversation(
    record_log: ModuleType, replay: HTTPServer, tmp_path: Path
) -> None:
    run(record_log, replay, [{"response": {"error": {"message": "no"}}}], tmp_path / "log.jsonl", "--limit", "1")
    (entry,) = objects(tmp_path / "log.jsonl")
    assert entry["response"] == {"error": {"message": "no"}}


def test_tasks_corpus_and_log_belong_together() -> None:
    tasks, corpus, log = (objects(LAB / name) for name in ("tasks.jsonl", "corpus.jsonl", "vllm.jsonl.zst"))
    assert {task["id"] for task in tasks} == {entry["session_id"] for entry in log}
    assert {name for task in tasks for name in task["supporting"]} <= {document["id"] for document in corpus}
    answered = {entry["session_id"] for entry in log if entry["response"]["choices"][0]["finish_reason"] == "stop"}
    assert len(answered) == len(tasks)
    assert (LAB / "vllm.jsonl.zst").stat().st_size < 500_000


def test_every_line_of_the_log_is_read_exactly() -> None:
    traces = read_traces(LAB / "vllm.jsonl.zst", vocab_size=1394)
    trajectories = list(traces)
    assert not traces.problems
    assert all(t.estimator is Estimator.TOP_K and t.spans is SpanQuality.EXACT for t in trajectories)
    assert sum(t.entropy is not None for t in trajectories) == len(trajectories) > 0
