"""Traces written without the vocabulary's size give with it, later, what their log gives."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from deltah.calls.logs import LogOptions, ScoredLog
from deltah.cli.app import app
from deltah.core.entropy import EVIDENCE, bounds_from_evidence
from deltah.core.types import Estimator, Trajectory
from deltah.errors import ConfigError, DataError, InvalidValueError
from deltah.traces import read_traces, write_traces
from deltah.traces.record import decode, encode

from .chat import assistant, call, line, result, token, user
from .test_record import assert_same

ROOT = Path(__file__).parents[2]
VLLM = ROOT / "examples" / "lab" / "vllm.jsonl.zst"
DATA = Path(__file__).parent / "data"
SERVERS = sorted([*DATA.glob("vllm*"), *DATA.glob("llama-server*")])
LOGS = [VLLM, DATA / "inspect.eval", *(path for path in SERVERS if "emoji" not in path.name)]
"""Those that name no model of a known family."""
ENDINGS = [".jsonl", ".parquet"]


def assert_measured_alike(found: Iterable[Trajectory], expected: Iterable[Trajectory]) -> int:
    """The same trajectories, to the last bit; returns the number of bounded tokens."""
    n = 0
    for a, b in zip(found, expected, strict=True):
        assert tuple(a.token_texts or ()) == tuple(b.token_texts or ())
        assert_same(*(replace(t, token_texts=None) for t in (a, b)))
        n += 0 if a.entropy_upper is None else int(np.isfinite(a.entropy_upper).sum())
    return n


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("log", LOGS, ids=lambda path: path.name)
def test_traces_are_bounded_as_their_log(tmp_path: Path, log: Path, ending: str) -> None:
    traces = tmp_path / f"t{ending}"
    write_traces(traces, read_traces(log))
    unknown = list(read_traces(traces))
    assert_measured_alike(unknown, read_traces(log))
    for size in (1394, 49_152):
        n = assert_measured_alike(read_traces(traces, vocab_size=size), read_traces(log, vocab_size=size))
        assert n > 0 or all(t.top_k_evidence is None for t in unknown)
    if log == VLLM:
        assert n > 1000


def test_lists_of_any_kind_are_bounded_as_in_their_log(tmp_path: Path) -> None:
    """Of mixed lengths, with the drawn token appended, missing or alone, a stand-in, none at all, few digits."""
    entries = [
        token("a", (0.5, 0.25)),
        token("b", (0.5, 0.25, 0.1)),
        token("c", (0.5, 0.25, 0.0001), drawn=2),
        token("d", (0.02, 0.001)) | {"logprob": math.log(0.9)},
        token("e", (0.3,)),
        token("f", (0.6, 0.0)),
        token("g", None),
        {"token": "h", "logprob": -0.25, "top_logprobs": [{"token": "h", "logprob": -0.25}]},
    ]
    lines = [line([user(), assistant(entries[i : i + n], content="x")]) for n in (1, 3, 8) for i in range(0, 8, n)]
    log, traces = tmp_path / "log.jsonl", tmp_path / "t.parquet"
    log.write_bytes(b"\n".join(lines))
    write_traces(traces, read_traces(log))
    # Over as many tokens as a list holds, the log alone is exact.
    for size in (15, 100, 10**6):
        assert assert_measured_alike(read_traces(traces, vocab_size=size), read_traces(log, vocab_size=size)) == 21
    with pytest.raises(ConfigError, match="--vocab-size: a vocabulary of 1 tokens is too small: a token has 2 log"):
        list(read_traces(traces, vocab_size=1))


@pytest.mark.parametrize("ending", ENDINGS)
def test_score_certifies_traces_as_their_log(tmp_path: Path, ending: str) -> None:
    traces = tmp_path / f"t{ending}"
    write_traces(traces, read_traces(VLLM))

    def scored(path: Path, *options: str) -> dict[str, object]:
        shown = CliRunner().invoke(app, ["score", str(path), "--json", *options])
        assert shown.exit_code == 0, shown.output
        return dict(json.loads(shown.stdout))

    bare = scored(traces)
    assert any("state the vocabulary size with --vocab-size" in note for note in bare["notes"])
    with_size = scored(traces, "--vocab-size", "1394")
    assert not any("vocab" in note for note in with_size["notes"])
    assert with_size["by_tool"] == scored(VLLM, "--vocab-size", "1394")["by_tool"] != bare["by_tool"]
    assert scored(traces, "--vocab-size", "1394", "--no-waste", "--workers", "2")["by_round"] == {
        k: v | {"certified": None, "likely": None} for k, v in with_size["by_round"].items()
    }


@pytest.mark.parametrize("ending", ENDINGS)
def test_traces_without_evidence_need_their_log_and_the_note_says_so(tmp_path: Path, ending: str) -> None:
    traces = tmp_path / f"t{ending}"
    write_traces(traces, (replace(t, top_k_evidence=None) for t in read_traces(VLLM)))
    shown = CliRunner().invoke(app, ["score", str(traces), "--vocab-size", "1394", "--json"])
    notes = json.loads(shown.stdout)["notes"]
    assert any("without what --vocab-size needs; give it when reading the original log" in note for note in notes)
    assert not any("state the vocabulary size" in note for note in notes)


def test_traces_with_a_size_known_from_a_name_keep_it_and_the_note_says_so(tmp_path: Path) -> None:
    messages = [user(), assistant([token("a")], content="a", tool_calls=[call()]), result("found")]
    log, traces = tmp_path / "log.jsonl", tmp_path / "t.jsonl"
    log.write_bytes(line([*messages, assistant([token("b", (0.9, 0.05))], content="b")], model="smollm2"))
    write_traces(traces, read_traces(log))
    for path, options, advice in (
        (log, [], "--vocab-size states it."),
        (traces, [], "--vocab-size states it."),
        (
            traces,
            ["--vocab-size", "100"],
            "give --vocab-size when reading the log that these traces were written from.",
        ),
    ):
        printed = CliRunner().invoke(app, ["score", str(path), "--json", *options]).stdout
        known = f"The vocabulary size was taken from the model's name (smollm2: 49,152); {advice}"
        assert known in json.loads(printed)["notes"]


def test_what_needs_no_size_carries_nothing(tmp_path: Path) -> None:
    assert all(t.top_k_evidence is None for t in read_traces(VLLM, vocab_size=1394))
    assert all(t.top_k_evidence is None for t in read_traces(VLLM, skip=["top_k_evidence"]))
    assert all(t.top_k_evidence is None for t, _ in ScoredLog([str(VLLM)], LogOptions()))
    [first, *_] = read_traces(VLLM)
    assert first.top_k_evidence is not None
    assert first.top_k_evidence.shape == (len(EVIDENCE), len(first))
    assert first.estimator is Estimator.TOP_K


@pytest.mark.parametrize("ending", ENDINGS)
def test_evidence_that_is_none_is_one_record_left_out(tmp_path: Path, ending: str) -> None:
    good, bad, last = list(read_traces(VLLM))[:3]
    assert bad.top_k_evidence is not None
    table = bad.top_k_evidence.copy()
    table[EVIDENCE.index("listed")] = 0.5
    traces = tmp_path / f"t{ending}"
    write_traces(traces, [good, replace(bad, top_k_evidence=table), last])
    reader = read_traces(traces, vocab_size=1394)
    assert [t.id for t in reader] == [good.id, last.id]
    [problem] = reader.problems
    assert (problem.line, problem.reason.split(";")[0]) == (
        2,
        "field top_k_evidence: the evidence speaks of a list of 0.5 log-probabilities",
    )


def test_evidence_of_another_shape_is_refused() -> None:
    [first, *_] = read_traces(VLLM)
    record = json.loads(encode(first))
    record["top_k_evidence"].pop()
    with pytest.raises(DataError, match=r"field top_k_evidence: .* numbers; expected 8 a token"):
        decode(json.dumps(record).encode())
    with pytest.raises(InvalidValueError, match=r"top_k_evidence has shape \(8, 1\); expected one column a token"):
        replace(first, top_k_evidence=np.zeros((8, 1)))
    with pytest.raises(InvalidValueError, match=r"shape \(3, 2\); expected \(8, T\)"):
        bounds_from_evidence(np.zeros((3, 2)), 10)
