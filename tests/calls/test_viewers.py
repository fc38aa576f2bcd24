"""Scores for viewers, against the types and readers of the real packages where they are installed."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import deltah
from deltah.cli.app import app

DATA = Path(__file__).parents[1] / "traces" / "data"
USER = {"role": "user", "content": "Tide?"}
CALL = {"id": "c", "type": "function", "function": {"name": "tide", "arguments": "{}"}}


def token(text: str, *p: float) -> dict[str, Any]:
    top = [{"token": f"{text}{i or ''}", "logprob": math.log(q)} for i, q in enumerate(p)]
    return {"token": text, "logprob": math.log(p[0]), "bytes": list(text.encode()), "top_logprobs": top}


def run(id: str, history: list[Any], token: dict[str, Any], **fields: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": token["token"]} | fields
    output = {"choices": [{"index": 0, "message": message, "logprobs": {"content": [token]}}]}
    return {
        "id": id,
        "trace_id": "t",
        "run_type": "llm",
        "name": "m",
        "inputs": {"messages": history},
        "outputs": output,
    }


def log_of_spans(path: Path) -> Path:
    """One call between H(1/2, 1/4, 1/8, 1/8) = 7/4 ln 2 and H(1/4 each) = 2 ln 2: ΔH = 0.25 ln 2, exact with V = 4."""
    history = [USER, {"role": "assistant", "content": "Hm", "tool_calls": [CALL]}]
    history.append({"role": "tool", "tool_call_id": "c", "content": "10:00"})
    runs = [
        run("r1", [USER], token("Hm", 0.5, 0.25, 0.125, 0.125), tool_calls=[CALL]),
        {"id": "r2", "trace_id": "t", "run_type": "tool", "name": "tide", "inputs": {}, "outputs": {"output": "10:00"}},
        run("r3", history, token("10:00", 0.25, 0.25, 0.25, 0.25)),
    ]
    path.write_text("".join(json.dumps(one) + "\n" for one in runs), encoding="utf-8")
    return path


def score(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["score", *map(str, arguments)])


def test_annotations_of_spans_hold_value_and_verdict(tmp_path: Path) -> None:
    out = tmp_path / "a.annotations.json"
    for _ in range(2):  # the second time it replaces its own
        done = score(log_of_spans(tmp_path / "a.jsonl"), "--vocab-size", 4, "--out", out)
        assert done.exit_code == 0, done.output
    waste, value = json.loads(out.read_text("utf-8"))["data"]
    assert (waste["span_id"], waste["name"], waste["result"]["label"]) == ("r2", "waste", "none")
    assert (value["span_id"], value["name"], value["result"]["label"]) == ("r2", "delta_h", "not_reduced")
    assert value["result"]["score"] == pytest.approx(0.25 * math.log(2))
    assert value["result"]["explanation"] == "delta_h +0.1733 nats in [+0.1733, +0.1733]: not reduced"
    assert {waste["annotator_kind"], value["identifier"]} == {"CODE", "deltah"}
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_phoenix_takes_the_annotations(tmp_path: Path) -> None:
    types = pytest.importorskip("phoenix.client.__generated__.v1")
    import msgspec

    out = tmp_path / "a.annotations.json"
    assert score(log_of_spans(tmp_path / "a.jsonl"), "--out", out).exit_code == 0
    known = {name for base in types.SpanAnnotationData.__mro__ for name in getattr(base, "__annotations__", {})}
    for note in json.loads(out.read_text("utf-8"))["data"]:
        msgspec.convert(note, types.SpanAnnotationData)
        assert set(note) <= known


def test_logs_without_spans_have_nothing_to_annotate(tmp_path: Path) -> None:
    done = score(DATA / "llama-server-tools.jsonl.zst", "--out", tmp_path / "a.annotations.json")
    assert done.exit_code != 0
    assert "no call comes from a span" in str(done.exception)
    assert list(tmp_path.iterdir()) == []


def test_inspect_shows_a_score_in_each_sample(tmp_path: Path) -> None:
    log = pytest.importorskip("inspect_ai.log")
    out = tmp_path / "scored.eval"
    out.write_bytes((DATA / "inspect.eval").read_bytes())
    assert "which this command did not write" in str(score(DATA / "inspect.eval", "--out", out).exception)
    out.unlink()
    for _ in range(2):  # the second time it replaces its own
        done = score(DATA / "inspect.eval", "--out", out)
        assert done.exit_code == 0, done.output
    rows = deltah.read_calls(DATA / "inspect.eval").sql(
        "SELECT trajectory, count(*), avg(value), count(*) FILTER (verdict = 'reduced') FROM calls GROUP BY ALL"
    )
    expected = {name: values for name, *values in rows.fetchall()}
    read = log.read_eval_log(str(out))
    before = log.read_eval_log(str(DATA / "inspect.eval"))
    for sample, old in zip(read.samples, before.samples, strict=True):
        scores = dict(sample.scores)
        added = scores.pop("deltah")
        n, mean, reduced = expected[f"{sample.id}/{sample.epoch}"]
        assert (added.value["calls"], added.value["reduced"]) == (n, reduced)
        assert added.value["mean delta_h"] == pytest.approx(mean)
        assert len(added.explanation.splitlines()) == n
        assert [edit.provenance.author for edit in added.history] == ["deltah"]
        assert scores == old.scores
        assert sample.messages == old.messages


def test_a_name_for_inspect_needs_one_log_of_its_own(tmp_path: Path) -> None:
    pytest.importorskip("inspect_ai.log")
    done = score(log_of_spans(tmp_path / "a.jsonl"), DATA / "inspect.eval", "--out", tmp_path / "b.eval")
    assert "expected one log of Inspect, got 2 files" in str(done.exception)


def test_an_unknown_ending_lists_the_known_ones(tmp_path: Path) -> None:
    done = score(log_of_spans(tmp_path / "a.jsonl"), "--out", tmp_path / "b.xlsx")
    assert ".jsonl, .csv or .parquet" in str(done.exception)
    assert ".annotations.json" in str(done.exception)
