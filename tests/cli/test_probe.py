"""`deltah probe` as a user runs it: cost before work, rows, resume, reasons, one-sentence errors, no torch needed."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import typer
from probe_fixtures import Answer, FakeServer
from typer.testing import CliRunner

from deltah.cli import cmd_probe
from deltah.errors import ConfigError, DataError, DeltahError, InvalidValueError, ServerError

app = typer.Typer()
app.command()(cmd_probe.command)


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def conversation(name: str, fact: str, said: str, **fields: Any) -> dict[str, Any]:
    call = {"id": "a", "type": "function", "function": {"name": "search", "arguments": json.dumps({"q": name})}}
    messages = [
        {"role": "user", "content": f"Where is {name}?"},
        {"role": "assistant", "content": "Let me look.", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "a", "content": fact},
        {"role": "assistant", "content": f"It is <answer>{said}</answer>"},
    ]
    return {"id": name, "messages": messages, "answer": said} | fields


@pytest.fixture
def log(tmp_path: Path) -> Path:
    rows = [conversation(f"town{i}", f"town{i} lies by river{i}", f"river{i}") for i in range(4)]
    rows.append(conversation("town9", "town9 lies by river9", "river9", answer=None))
    path = tmp_path / "log.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def knowing(path: str, body: dict[str, Any] | None) -> Answer:
    """One token a character; a river that stands in the messages before is sure, any other is not."""
    if body is None:
        return 200, {"data": [{"id": "m"}]}
    *before, last = body["messages"]
    sure = last["content"].rpartition("<answer>")[2].removesuffix("</answer>") in str(before)
    rows: list[Any] = [None]
    for c in str(before) + last["content"]:
        p = {"1": {"logprob": -0.1 if sure else -1.0, "decoded_token": c}, "2": {"logprob": -2.5, "decoded_token": "~"}}
        rows.append(p)
    return 200, {"prompt_logprobs": rows}


def test_the_whole_way_through_a_server(log: Path, tmp_path: Path) -> None:
    out = tmp_path / "probe.jsonl"
    with FakeServer(knowing) as server:
        dry = run(log, "--server", server.url, "--out", out, "--dry-run")
        assert dry.exit_code == 0, dry.output
        assert "4 calls, 24 queries (0 already answered)" in dry.output
        assert "1 call cannot be probed" in dry.output
        assert server.requests == []
        assert list(tmp_path.iterdir()) == [log]
        done = run(log, "--server", server.url, "--out", out, "--vocab-size", 50)
        n = len(server.requests)
        again = run(log, "--server", server.url, "--out", out, "--vocab-size", 50)
        assert len(server.requests) == n + 2, "finding the server out is all that is asked again"
    # Nobody listens any more: the answers so far say which model it was.
    known = run(log, "--server", server.url, "--out", out, "--vocab-size", 50, "--dry-run")
    assert "24 queries (24 already answered); about 0 model tokens" in known.output
    other = run(log, "--server", server.url, "--out", out, "--dry-run")
    assert "vocab_size: 50 then, 524288 now" in str(other.exception)
    assert done.exit_code == 0, done.output
    assert "useful 4 of 4 (100%)" in done.output
    assert "not probed: 1 call, no_golden_answer" in done.output
    assert "24 queries (24 already answered); about 0 model tokens" in again.output
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["trajectory"] for row in rows] == ["town0", "town1", "town2", "town3", "town9"]
    first = rows[0]
    assert first["gain_placebo"] == pytest.approx(6 * 0.9)
    assert first["gain_none"] == pytest.approx(6 * 0.9)
    assert first["answer_template"] == "<answer>{answer}</answer>"
    assert (first["contexts"], first["estimator"], first["backend"]) == ("messages", "top_k", "server")
    assert first["delta_h_placebo_lower"] <= first["delta_h_placebo"] <= first["delta_h_placebo_upper"]
    assert rows[-1]["reason"] == "no_golden_answer"


def test_a_dry_run_needs_no_server_and_says_what_it_rests_on(log: Path, tmp_path: Path) -> None:
    began = time.monotonic()
    dry = run(log, "--server", "http://127.0.0.1:9", "--out", tmp_path / "p.jsonl", "--dry-run")
    assert dry.exit_code == 0, dry.output
    assert time.monotonic() - began < 5
    first, reason, second = dry.output.splitlines()
    assert re.fullmatch(r"cannot be probed: \d+ calls?, no_golden_answer", reason)
    assert first.startswith("4 calls, 24 queries (0 already answered); about ")
    assert int(first.split("about ")[1].split(" model")[0].replace(",", "")) > 24 * 5
    assert second.startswith("nothing was sent: 4.0 characters per token are assumed")
    assert list(tmp_path.iterdir()) == [log]


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "http://no-such-host.invalid:8000"])
def test_a_server_that_is_not_there_is_said_at_once(log: Path, tmp_path: Path, url: str) -> None:
    began = time.monotonic()
    result = run(log, "--server", url, "--out", tmp_path / "p.jsonl")
    assert isinstance(result.exception, ServerError)
    assert str(result.exception).startswith(f"no server answers at {url}/v1 (")
    assert "check --server, and that it runs" in str(result.exception)
    assert time.monotonic() - began < 10


def test_a_budget_and_a_seed(log: Path, tmp_path: Path) -> None:
    with FakeServer(knowing) as server:
        chosen = []
        for name in ("a", "b"):
            out = tmp_path / f"{name}.jsonl"
            assert run(log, "--server", server.url, "--out", out, "--max-calls", 2, "--seed", 3).exit_code == 0
            rows = map(json.loads, out.read_text().splitlines())
            chosen.append([row["trajectory"] for row in rows if row["reason"] is None])
    assert chosen[0] == chosen[1]
    assert len(chosen[0]) == 2


def test_another_setting_does_not_mix_with_the_answers_so_far(log: Path, tmp_path: Path) -> None:
    out = tmp_path / "probe.jsonl"
    with FakeServer(knowing) as server:
        assert run(log, "--server", server.url, "--out", out).exit_code == 0
        result = run(log, "--server", server.url, "--out", out, "--top-logprobs", 5)
    assert isinstance(result.exception, ConfigError)
    assert "top_logprobs: 20 then, 5 now" in str(result.exception)


def test_records_that_cannot_be_read_are_listed(log: Path, tmp_path: Path) -> None:
    with log.open("a") as file:
        file.write("{broken\n")
    with FakeServer(knowing) as server:
        result = run(log, "--server", server.url, "--out", tmp_path / "p.jsonl")
    assert result.exit_code == 1
    assert "1 record could not be read" in result.output


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ([], ConfigError, "give either --model for a local model or --server"),
        (["--model", "lab", "--server", "http://x"], ConfigError, "give either"),
        (["--server", "x"], InvalidValueError, "expected a URL"),
        (["--server", "http://x", "--api-key-env", "NO_SUCH_KEY_HERE"], InvalidValueError, "NO_SUCH_KEY_HERE"),
        (["--server", "http://x", "--answer-template", "x"], InvalidValueError, "holds {answer} 0 times"),
        (["--server", "http://x", "--chat-template", "nowhere.json"], ConfigError, "nowhere.json"),
        (["--server", "http://x", "--tools", "nowhere.json"], ConfigError, "cannot read the tool schemas"),
        (["--model", "./nowhere"], DeltahError, "no model at './nowhere'"),
    ],
)
def test_a_users_error_is_one_sentence(log: Path, arguments: list[str], error: type[Exception], message: str) -> None:
    result = run(log, *arguments)
    assert isinstance(result.exception, error)
    assert message in str(result.exception)


def test_files_without_trajectories(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    result = run(tmp_path / "empty.jsonl", "--model", "lab")
    assert isinstance(result.exception, DataError)


def test_a_failing_server_keeps_what_was_answered(log: Path, tmp_path: Path) -> None:
    out, answered = tmp_path / "probe.jsonl", 0

    def failing(path: str, body: dict[str, Any] | None) -> Answer:
        nonlocal answered
        answered += body is not None
        return knowing(path, body) if answered <= 8 else (403, "gone")

    with FakeServer(failing) as server:
        result = run(log, "--server", server.url, "--out", out)
    assert isinstance(result.exception, ServerError)
    assert not out.exists()
    with closing(sqlite3.connect(tmp_path / "probe.cache.sqlite")) as cache:
        assert cache.execute("SELECT count(*) FROM answers").fetchone()[0] >= 6


PROGRAM = """
import sys
class Fence:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "transformers", "trl", "requests"}:
            raise ImportError(name)
sys.meta_path.insert(0, Fence())
import typer
from deltah.cli import cmd_probe
app = typer.Typer()
app.command()(cmd_probe.command)
app()
"""


def test_a_server_is_probed_without_torch(log: Path, tmp_path: Path) -> None:
    source = str(Path(__file__).parents[2] / "src")
    with FakeServer(knowing) as server:
        command = [sys.executable, "-c", PROGRAM, str(log), "--server", server.url, "--out", str(tmp_path / "p.jsonl")]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": source}
        )
    assert done.returncode == 0, done.stderr
    assert "4 calls probed" in done.stdout


@pytest.mark.slow
def test_the_lab_agent_by_a_local_model(tmp_path: Path) -> None:
    """Real tokens, real template: a fact that only the result holds becomes likely by it."""
    pytest.importorskip("torch")
    from deltah.engines.local_scorer import load_local
    from deltah.engines.models import resolve_model
    from deltah.probe.queries import ChatContext, Query, TextContinuation

    backend = load_local(resolve_model("lab"), device="cpu")
    asked = {"role": "user", "content": "Where was Mira Kovel born?"}
    call = {"id": "a", "type": "function", "function": {"name": "search", "arguments": '{"query": " Mira Kovel"}'}}
    said = {"role": "assistant", "content": "I think so. Let me check.", "tool_calls": [call]}
    totals = []
    for city in ("North Quarry", "East Hollow"):
        fact = {"role": "tool", "tool_call_id": "a", "content": f"Mira Kovel was born in {city}."}
        text = " So Mira Kovel was born in North Quarry"
        query = Query(
            context=ChatContext(messages=(asked, said, fact)),
            continuation=TextContinuation(text=text, opener=len(" So Mira Kovel was born in")),
        )
        [scores] = backend.score([query])
        totals.append(scores.logprobs[scores.focus].sum())
    assert totals[0] - totals[1] > 1
