"""Vocabulary sizes: stated, known from a model's name, or assumed; one that is too small is an error."""

from __future__ import annotations

import json
import math
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from deltah import DEFAULT_VOCAB_SIZE, Trajectory, read_traces, write_traces
from deltah.cli.app import app
from deltah.errors import ConfigError, DataError, VocabularySizeError
from deltah.traces.vocabularies import _FAMILIES, vocab_size_of

from .chat import assistant, call, line, result, token, user

ROOT = Path(__file__).parents[2]
VLLM = ROOT / "examples" / "lab" / "vllm.jsonl.zst"
HALF = (0.5, 0.25, 0.2)
"""Leaves 0.05 to others."""


def said(*texts: str, **fields: Any) -> bytes:
    return line([user(), assistant([token(text, HALF) for text in texts], content="".join(texts))], **fields)


def write(path: Path, *lines: bytes) -> Path:
    path.write_bytes(b"\n".join(lines))
    return path


def scored(path: Path, *options: str) -> dict[str, Any]:
    shown = CliRunner().invoke(app, ["score", str(path), "--json", *options])
    assert shown.exit_code == 0, shown.output
    return dict(json.loads(shown.stdout))


def upper(trajectory: Trajectory) -> float:
    assert trajectory.entropy_upper is not None
    return float(trajectory.entropy_upper[0])


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("Qwen/Qwen2.5-7B-Instruct", (152_064, "model name")),
        ("qwen3.5_moe", (248_320, "model name")),
        ("meta-llama/Llama-3.1-8B", (128_256, "model name")),
        ("deepseek-r1-distill-llama-8b", (128_256, "model name")),
        ("agent", (524_288, "default")),
        (None, (524_288, "default")),
    ],
)
def test_a_size_that_nobody_states(model: str | None, expected: tuple[int, str]) -> None:
    assert vocab_size_of(model) == expected


def test_the_default_is_above_every_family() -> None:
    assert max(size for _, size in _FAMILIES) < DEFAULT_VOCAB_SIZE


def test_the_record_comes_before_the_caller_and_the_caller_before_the_name(tmp_path: Path) -> None:
    """The 0.05 beyond the list spread over V - 3 tokens."""
    lines = [said("a", vocab_size=13, model="smollm2"), said("a", model="smollm2"), said("a")]
    log = write(tmp_path / "log.jsonl", *lines)
    head = -sum(p * math.log(p) for p in HALF)
    for option, sizes in ((None, (13, 49_152, 524_288)), (103, (13, 103, 103))):
        found = list(read_traces(log, vocab_size=option, strict=True))
        bounds = [head + 0.05 * math.log((size - 3) / 0.05) for size in sizes]
        assert [upper(t) for t in found] == pytest.approx(bounds, abs=1e-3)
        named = [(t.metadata.get("vocab_size"), t.metadata.get("vocab_size_from")) for t in found]
        assert named == [
            (None, None),
            *([(49_152, "model name"), (524_288, "default")] if option is None else [(None, None)] * 2),
        ]


def test_the_assumption_is_no_wider_than_it_must_be_on_a_real_log() -> None:
    """The verdicts that a stated size certifies stay true under the assumption; it leaves more of them open."""
    bare, stated = scored(VLLM), scored(VLLM, "--vocab-size", "1394")
    assert sum(tool["undecided"] for tool in bare["by_tool"].values()) == 14
    assert sum(tool["undecided"] for tool in stated["by_tool"].values()) == 7
    [note] = [note for note in bare["notes"] if "vocabulary" in note]
    assert note.startswith(
        "The model's vocabulary size is not known, so 524,288 tokens are assumed, more than any published model has. "
        "Give the true size with --vocab-size (vocab_size in the model's config.json)"
    )
    assert not any("vocabulary" in note for note in stated["notes"])
    for wide, narrow in zip(read_traces(VLLM), read_traces(VLLM, vocab_size=1394), strict=True):
        for inner, outer, sign in (
            (narrow.entropy_lower, wide.entropy_lower, 1),
            (narrow.entropy_upper, wide.entropy_upper, -1),
        ):
            assert inner is not None
            assert outer is not None
            assert np.nanmin(sign * (inner - outer)) >= -1e-12


@pytest.mark.parametrize("ending", [".jsonl", ".parquet"])
def test_traces_keep_an_assumed_size_and_the_notes_say_what_to_do(tmp_path: Path, ending: str) -> None:
    def talk(**fields: Any) -> bytes:
        messages = [user(), assistant([token("a")], content="a", tool_calls=[call()]), result("found")]
        return line([*messages, assistant([token("b", (0.9, 0.05))], content="b")], **fields)

    log, traces = write(tmp_path / "log.jsonl", talk(model="smollm2"), talk()), tmp_path / f"t{ending}"
    write_traces(traces, read_traces(log))
    later = "--vocab-size where the log of these traces is read"
    for path, options, how in (
        (log, [], "--vocab-size"),
        (traces, [], "--vocab-size"),
        (traces, ["--vocab-size", "100"], later),
    ):
        notes = scored(path, *options)["notes"]
        named = "The vocabulary size was taken from the model's name (smollm2: 49,152). If it is another, give"
        assert f"{named} {how}." in notes
        assert any("524,288 tokens are assumed" in n and f"the true size with {how} (" in n for n in notes)


@pytest.mark.parametrize("ending", [".jsonl", ".parquet"])
def test_traces_of_an_earlier_release_have_no_upper_bound_and_the_note_says_so(tmp_path: Path, ending: str) -> None:
    traces = tmp_path / f"t{ending}"
    write_traces(traces, (_unbounded(t) for t in read_traces(VLLM)))
    found = scored(traces)
    assert sum(tool["undecided"] for tool in found["by_tool"].values()) == 88
    assert any("written by an earlier release, without a vocabulary size. Read their" in n for n in found["notes"])


def _unbounded(t: Trajectory) -> Trajectory:
    assert t.entropy_upper is not None
    return replace(t, entropy_upper=np.where(np.isnan(t.entropy_upper), np.nan, np.inf), metadata={})


def test_what_earlier_releases_kept_beside_unbounded_entropies_is_passed_over(tmp_path: Path) -> None:
    traces = tmp_path / "t.jsonl"
    write_traces(traces, list(read_traces(VLLM))[:1])
    record = json.loads(traces.read_text())
    traces.write_text(json.dumps(record | {"top_k_evidence": [0.5, None, "inf"]}))
    assert len(list(read_traces(traces, strict=True))) == 1


def test_a_size_too_small_for_the_lists_is_the_fault_of_whoever_stated_it(tmp_path: Path) -> None:
    """None beyond the list is likelier than one in 200,000, and together they hold a half: 100,000 tokens."""
    steep = [user(), assistant([token("a", (0.5, 5e-6))], content="a")]
    log = write(tmp_path / "log.jsonl", line(steep, model="granite-3.1"), said("b"), line(steep, vocab_size=4))
    reader = read_traces(log)
    assert len(list(reader)) == 1
    named, stated = reader.problems
    assert (named.line, stated.line) == (1, 3)
    assert named.reason.startswith(
        "model 'granite-3.1': a vocabulary of 49,155 tokens is too small: tokens beyond a li"
    )
    assert "which takes at least 99,9" in named.reason
    assert named.reason.endswith("state the model's own size with --vocab-size (vocab_size in its config.json)")
    assert stated.reason.startswith("field vocab_size: a vocabulary of 4 tokens is too small")
    with pytest.raises(ConfigError, match="--vocab-size: a vocabulary of 50,000 tokens is too small"):
        list(read_traces(log, vocab_size=50_000))


def test_a_token_id_at_or_above_the_size_is_an_error(tmp_path: Path) -> None:
    """vLLM prints ids instead of texts where it is asked to (`return_tokens_as_token_ids`)."""
    log = write(tmp_path / "log.jsonl", said("token_id:99", "token_id:7"), said("token_id:524288"), said("token_id:x"))
    reader = read_traces(log)
    assert len(list(reader)) == 2
    [problem] = reader.problems
    assert problem.line == 2
    assert problem.reason.startswith("a vocabulary of 524,288 tokens is too small: a token has the id 524,288; state")
    assert len(list(read_traces(log, vocab_size=524_289, strict=True))) == 3
    with pytest.raises(
        ConfigError, match="--vocab-size: a vocabulary of 99 tokens is too small: a token has the id 99"
    ):
        list(read_traces(log, vocab_size=99))
    first = write(tmp_path / "first.jsonl", log.read_bytes().splitlines()[0])
    assert len(list(read_traces(first, vocab_size=100, strict=True))) == 1


@pytest.mark.parametrize("form", ["id of each token", "ids beside the logprobs"])
def test_ids_of_llama_cpp_and_of_vllm_count(form: str, tmp_path: Path) -> None:
    tokens, beside = [token("a", HALF), token("b", HALF)], {}
    if form == "id of each token":
        tokens[1]["id"] = 99
    else:
        beside = {"token_ids": [3, 99]}
    choice = {"message": {"role": "assistant", "content": "ab"}, "logprobs": {"content": tokens}, **beside}
    log = write(tmp_path / "log.jsonl", json.dumps({"choices": [choice]}).encode())
    assert len(list(read_traces(log, vocab_size=100, strict=True))) == 1
    with pytest.raises(ConfigError, match="a vocabulary of 99 tokens is too small: a token has the id 99;"):
        list(read_traces(log, vocab_size=99))


def test_a_list_that_no_vocabulary_completes_is_left_out_alone(tmp_path: Path) -> None:
    lines = [line([user(), assistant([token("a", p)], content="a")]) for p in ((0.5, 1e-320), (0.9, 0.05))]
    for size in (None, 100):
        reader = read_traces(write(tmp_path / "log.jsonl", *lines), vocab_size=size)
        assert len(list(reader)) == 1
        [problem] = reader.problems
        assert problem.line == 1
        assert problem.reason.startswith("field top_logprobs: a list of log-probabilities leaves 0.5 of the probabilit")


def test_a_list_without_its_drawn_token_is_not_the_fault_of_the_callers_size(tmp_path: Path) -> None:
    """Its least entry, one in a million, caps nothing: the drawn token is likelier and not among them."""
    steep = token("a", (0.02, 1e-6)) | {"logprob": math.log(0.9)}
    log = write(tmp_path / "log.jsonl", line([user(), assistant([steep], content="a")]), said("b"))
    reader = read_traces(log, vocab_size=100, strict=True)
    assert [np.isfinite(t.entropy_bounds[1]).all() for t in reader] == [True, True]


def test_other_formats_stop_too() -> None:
    for name in ("inspect.json", "inspect.eval"):
        with pytest.raises(ConfigError, match="--vocab-size: a vocabulary of 2 tokens is too small"):
            list(read_traces(ROOT / "tests" / "traces" / "data" / name, vocab_size=2))


def test_an_exact_distribution_assumes_no_size(tmp_path: Path) -> None:
    words = [token(text, (0.5, 0.25, 0.25)) for text in "abc"]
    log = write(tmp_path / "log.jsonl", line([user(), assistant(words, content="abc")]))
    [exact] = read_traces(log, vocab_size=3, strict=True)
    assert exact.entropy == pytest.approx([1.5 * math.log(2)] * 3)
    assert "vocab_size_from" not in exact.metadata


def test_the_error_survives_a_worker_process() -> None:
    error = pickle.loads(pickle.dumps(VocabularySizeError("there are more", 5)))
    assert isinstance(error, DataError)
    assert str(error).startswith("a vocabulary of 5 tokens is too small: there are more; state")
