"""Logs recorded from real servers: every dialect gives the segments, calls and entropies that were sampled.

The files and their servers are described in docs/recordings.md. The embedded agent's vocabulary has 1394 tokens.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from deltah.core.types import CallStatus, Estimator, SegmentKind, SpanQuality, StopReason, Trajectory
from deltah.traces import TraceReader, read_traces, write_traces

from .test_record import assert_same

DATA = Path(__file__).parent / "data"
V = 1394
RECORDED = sorted(p.name for p in DATA.iterdir() if p.name.startswith(("vllm", "llama", "sglang")))


def read(name: str, **options: object) -> tuple[list[Trajectory], TraceReader]:
    [path] = DATA.glob(f"{name}.jsonl*")
    size = None if "python" in name or "emoji" in name else V  # those are SmolLM2's
    reader = read_traces(path, vocab_size=size, **options)  # type: ignore[arg-type]
    return list(reader), reader


def kinds(t: Trajectory) -> list[tuple[str, int]]:
    return [(s.kind.value, s.n_tokens) for s in t.segments if s.n_tokens]


@pytest.mark.parametrize("name", RECORDED)
def test_every_recorded_log_survives_our_own_record(name: str, tmp_path: Path) -> None:
    found = list(read_traces(DATA / name))
    write_traces(tmp_path / "t.jsonl", found)
    for before, after in zip(found, read_traces(tmp_path / "t.jsonl", strict=True), strict=True):
        assert_same(after, before)


@pytest.mark.parametrize("name", RECORDED)
def test_bounds_are_in_order_and_finite_where_a_list_is_known(name: str) -> None:
    for t in read_traces(DATA / name, vocab_size=49_152):
        if t.entropy is None or t.entropy_lower is None or t.entropy_upper is None:
            continue
        known = np.isfinite(t.entropy)
        assert (t.entropy_lower[known] <= t.entropy[known]).all()
        assert (t.entropy[known] <= t.entropy_upper[known]).all()
        assert (t.entropy_upper[known] <= np.log(49_152) + 1e-6).all()
        assert (known <= t.response_mask).all()


@pytest.mark.parametrize("name", ["vllm-tools", "vllm-tools-stream", "vllm-reasoning", "vllm-reasoning-stream"])
def test_vllm_with_a_tool_parser(name: str) -> None:
    [t], reader = read(name, strict=True)
    assert kinds(t) == [("reasoning", 14), ("call", 6), ("control", 1), ("reasoning", 13), ("control", 1)]
    assert (t.spans, t.estimator, t.stop_reason) == (SpanQuality.EXACT, Estimator.TOP_K, StopReason.ANSWERED)
    assert [(c.name, c.arguments, c.status) for c in t.calls] == [
        ("search", '{"query": " Inka Norrel"}', CallStatus.OK)
    ]
    assert t.metadata["n_requests"] == 2
    assert (reader.n_unjoined, reader.n_branches) == (0, 0)
    # Twenty of 1394 tokens hold nearly all of this agent's mass, so the intervals are narrow.
    assert t.entropy_upper is not None
    assert t.entropy_lower is not None
    assert np.nanmax(t.entropy_upper - t.entropy_lower) < 0.2


def test_streamed_and_whole_responses_measure_the_same() -> None:
    [whole], _ = read("vllm-tools", strict=True)
    [streamed], _ = read("vllm-tools-stream", strict=True)
    assert whole.token_texts == streamed.token_texts
    np.testing.assert_allclose(whole.entropy, streamed.entropy, atol=1e-3)


def test_vllm_without_logprobs_still_gives_calls() -> None:
    found, _ = read("vllm-no-logprobs", strict=True)
    assert [t.estimator for t in found] == [Estimator.NONE] * 2
    assert [t.n_calls for t in found] == [1, 3]


def test_vllm_processed_logprobs_of_a_cut_distribution_are_exact_in_effect() -> None:
    """Five tokens were left by top_k = 5; the other entries are stand-ins of probability 0."""
    [t], _ = read("vllm-processed-logprobs", strict=True)
    assert t.entropy is not None
    assert t.entropy_upper is not None
    assert np.nanmax(t.entropy) <= np.log(5) + 1e-6
    assert np.nanmax(t.entropy_upper - t.entropy) < 0.01
    assert t.temperature is None, "the log does not say that its logprobs are processed"


def test_vllm_forced_and_cut_off_calls() -> None:
    [forced], _ = read("vllm-tool-choice-required", strict=True)
    assert kinds(forced) == [("call", 50), ("control", 1)]
    for t in read("vllm-cut-off", strict=True)[0]:
        assert t.n_calls >= 1
        assert any(s.kind is SegmentKind.CALL and s.n_tokens for s in t.segments)


def test_vllm_tokens_as_numbers_are_spelled_by_their_bytes() -> None:
    [t], _ = read("vllm-token-ids", strict=True)
    assert "".join(t.token_texts or ()).startswith(" I think Freya Rovan works for")
    assert t.spans is SpanQuality.EXACT


def test_vllm_several_choices_are_counted() -> None:
    [t], _ = read("vllm-two-choices", strict=True)
    assert t.metadata["n_choices"] == 2


@pytest.mark.parametrize("name", ["llama-cpp-python-forced-call", "llama-cpp-python-forced-call-stream"])
def test_llama_cpp_python_forced_calls_spell_arguments_alone(name: str) -> None:
    [t], _ = read(name, strict=True)
    assert {kind for kind, _ in kinds(t)} == {"call"}
    assert [c.name for c in t.calls] == ["search", "search"]


def test_llama_cpp_python_lists_that_lost_entries_stay_bounds() -> None:
    """Partial characters print alike and share one entry, so short lists cap nothing."""
    [t], _ = read("llama-cpp-python-emoji", strict=True)
    assert t.model == "smollm2"
    assert t.metadata["vocab_size_from"] == "model name"
    assert t.entropy_lower is not None
    assert t.entropy_upper is not None
    width = t.entropy_upper - t.entropy_lower
    assert np.nanmax(width) > 0.5
    assert np.isfinite(width).any()


def test_llama_server_tools() -> None:
    [t], _ = read("llama-server-tools", strict=True)
    assert kinds(t)[:3] == [("reasoning", 14), ("call", 6), ("control", 1)]
    assert (t.spans, t.n_calls, t.metadata["n_requests"]) == (SpanQuality.EXACT, 3, 4)
    [streamed], _ = read("llama-server-tools-stream", strict=True)
    assert (streamed.estimator, streamed.n_calls) == (Estimator.NONE, 3)


@pytest.mark.parametrize("name", RECORDED)
def test_tokens_that_share_an_entry_are_counted_and_no_others(name: str) -> None:
    """An emoji takes several tokens; of 40 drawn llama.cpp's server listed 13 and SGLang's stream 14."""
    found = [t.metadata.get("tokens_without_logprobs") for t in read_traces(DATA / name)]
    short = {"llama-server-emoji.jsonl.zst": 27, "sglang-emoji-stream.jsonl.zst": 26}
    assert found == [short.get(name)] * len(found)


def test_llama_server_calls_left_in_the_text() -> None:
    for name in ("llama-server-text-calls", "llama-server-text-calls-stream"):
        [t], _ = read(name, strict=True)
        assert [(c.name, c.status) for c in t.calls] == [("search", CallStatus.OK), ("search", CallStatus.UNANSWERED)]
        assert t.spans is SpanQuality.EXACT


def test_llama_server_drawn_tokens_outside_a_short_list() -> None:
    [t], _ = read("llama-server-top-2", strict=True)
    assert t.entropy_upper is not None
    assert t.entropy_lower is not None
    assert np.nanmax(t.entropy_upper - t.entropy_lower) > 1.0, "two of 1394 tokens say little where many are likely"


def test_refusals_are_problems_not_trajectories() -> None:
    found, reader = read("llama-server-error")
    assert found == []
    assert "holds an error" in reader.problems[0].reason
    found, reader = read("llama-server-cut-off")
    assert (len(found), reader.n_problems) == (1, 1)
    assert found[0].stop_reason is StopReason.LENGTH
    found, reader = read("sglang-error")
    assert found == []
    assert "holds an error" in reader.problems[0].reason


TURN, LAST = [("reasoning", 13), ("call", 6), ("control", 1)], [("reasoning", 12), ("control", 1)]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sglang-tools", [("reasoning", 13), ("call", 5), ("control", 1), *TURN, *TURN, *LAST]),
        ("sglang-tools-stream", [("reasoning", 13), ("call", 5), ("control", 1), *TURN, *LAST]),
        ("sglang-temperature", [*TURN, *TURN, *LAST]),
        ("sglang-original-logprobs", [*TURN, *TURN, *LAST]),
    ],
)
def test_sglang_with_a_tool_parser(name: str, expected: list[tuple[str, int]]) -> None:
    """In a stream each logprobs block comes in a chunk of its own, after the content or call that it spells."""
    [t], reader = read(name, strict=True)
    assert kinds(t) == expected
    assert (t.spans, t.estimator, t.stop_reason) == (SpanQuality.EXACT, Estimator.TOP_K, StopReason.ANSWERED)
    assert {(c.name, c.status) for c in t.calls} == {("search", CallStatus.OK)}
    assert t.n_calls == sum(kind == "call" for kind, _ in expected)
    assert t.metadata["n_requests"] == t.n_calls + 1
    assert (reader.n_unjoined, reader.n_branches) == (0, 0)
    assert t.temperature == (1.0 if name.startswith("sglang-tools") else None), "only at 1 are all modes the same"
    assert t.prediction == "So Freya Rovan works for Mersa Energy.<answer> Mersa Energy</answer>"


def test_sglang_streamed_and_whole_responses_measure_the_same() -> None:
    [whole], _ = read("sglang-greedy", strict=True)
    [streamed], _ = read("sglang-greedy-stream", strict=True)
    assert whole.token_texts == streamed.token_texts
    assert [s.kind for s in whole.segments] == [s.kind for s in streamed.segments]
    assert [(c.arguments, c.result) for c in whole.calls] == [(c.arguments, c.result) for c in streamed.calls]
    for field in ("logprobs", "entropy", "entropy_lower", "entropy_upper"):
        np.testing.assert_allclose(getattr(whole, field), getattr(streamed, field), atol=1e-4)


@pytest.mark.parametrize("name", ["sglang-reasoning", "sglang-reasoning-stream"])
def test_sglang_with_a_reasoning_parser(name: str) -> None:
    """The thought and its tag stand in the logprobs too: no text is told twice."""
    [t], _ = read(name, strict=True)
    thought = [("reasoning", 14), ("call", 6), ("control", 1)]
    last = [("reasoning", 9), ("control", 1), ("reasoning", 3), ("control", 1)]
    assert kinds(t) == [*thought * t.n_calls, *last]
    assert all(s.n_tokens for s in t.segments if s.kind is SegmentKind.REASONING)
    assert (t.spans, t.prediction) == (SpanQuality.EXACT, "North Quarry</answer>")
    assert {(c.name, c.arguments) for c in t.calls} == {("search", '{"query": " Inka Norrel"}')}


@pytest.mark.parametrize("name", ["sglang-tool-choice-required", "sglang-tool-choice-required-stream"])
def test_sglang_shows_what_a_grammar_forced(name: str) -> None:
    """Tokens that the grammar rules out have the least float32 number: no entry, and no mass, of theirs is left."""
    [t], _ = read(name, strict=True)
    assert kinds(t) == [("call", 64)]
    assert t.token_texts is not None
    assert t.entropy_upper is not None
    assert "".join(t.token_texts[:10]) == '<tool_call>{"name":"'
    assert (t.entropy_upper[1:10] < 1e-3).all(), "these nine were the only ones allowed"
    assert np.isfinite(t.entropy_upper).all()


def test_sglang_cut_off_calls_stay_in_the_text() -> None:
    [t], _ = read("sglang-cut-off", strict=True)
    assert [n for kind, n in kinds(t) if kind == "call"] == [4, 4, 4, 2]
    assert (t.n_calls, t.spans) == (4, SpanQuality.EXACT)


def test_sglang_choices_of_a_stream_are_told_apart() -> None:
    [t], _ = read("sglang-two-choices-stream", strict=True)
    assert t.metadata["n_choices"] == 2
    assert [n for _, n in kinds(t)] == [14, 6, 1, 14, 6, 1, 13, 1]


def test_sglang_without_alternatives_gives_tokens_alone() -> None:
    [t], _ = read("sglang-top-0", strict=True)
    assert (t.estimator, t.entropy, t.spans) == (Estimator.NONE, None, SpanQuality.EXACT)
    assert t.logprobs is not None
    assert np.isfinite(t.logprobs).all()


def test_sglang_bytes_spell_partial_characters() -> None:
    """Each token shows U+FFFD and has its own bytes; the last of 40 begins a character that the limit cut off."""
    [t], _ = read("sglang-emoji", strict=True)
    assert t.token_texts is not None
    assert "".join(t.token_texts).startswith("🦄🐱 🐁🐁")
    assert t.token_texts[-1] == "\ufffd"
    assert kinds(t) == [("reasoning", 40)]
    assert t.spans is SpanQuality.EXACT


def test_sglang_streams_without_a_parser_lose_partial_characters() -> None:
    """Only the last token of a character is listed, with its own bytes: the text cannot be had from the tokens."""
    [t], _ = read("sglang-emoji-stream", strict=True)
    assert kinds(t) == [("reasoning", 14)]
    assert t.spans is SpanQuality.APPROXIMATE
