"""Different tokens of a log: a vocabulary that cannot hold them is refused, whoever stated it, and no other is."""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import deltah.traces.parts
import deltah.traces.vocabularies
from deltah.cli.app import app
from deltah.core.types import Trajectory
from deltah.errors import ConfigError, DataError, VocabularySizeError
from deltah.traces import openai, read_traces
from deltah.traces.dialogue import Facts
from deltah.traces.seen import DENSE_TOKENS, MAX_MODELS, SAMPLE_BYTES, STRIDE, SeenTokens

from .chat import assistant, call, line, result, token, user

ROOT = Path(__file__).parents[2]
HALF = (0.5, 0.25, 0.2)
"""Leaves 0.05 to others."""


def said(*texts: str, **fields: Any) -> bytes:
    return line([user(), assistant([token(text, HALF) for text in texts], content="".join(texts))], **fields)


def write(path: Path, *lines: bytes) -> Path:
    path.write_bytes(b"\n".join(lines))
    return path


def test_the_callers_size_stops_the_reading_at_the_line_that_refutes_it(tmp_path: Path) -> None:
    """Two alternatives beside the drawn token: ten drawn ones and alt1, alt2 are twelve different tokens."""
    log = write(tmp_path / "log.jsonl", *(said(f"w{2 * i}", f" w{2 * i + 1}", model="m") for i in range(5)))
    assert len(list(read_traces(log, vocab_size=12, strict=True))) == 5
    with pytest.raises(ConfigError, match="--vocab-size: a vocabulary of 11 tokens is too small: the log holds at le"):
        list(read_traces(log, vocab_size=11))
    with pytest.raises(ConfigError, match=r"at least 12 different tokens of m; state the model's own size \(vocab_siz"):
        list(read_traces(log, vocab_size=11))
    result = CliRunner().invoke(app, ["score", str(log), "--vocab-size", "11"])
    assert isinstance(result.exception, ConfigError)


def test_a_size_that_a_line_states_is_that_lines_fault(tmp_path: Path) -> None:
    log = write(tmp_path / "log.jsonl", said("a", "b", vocab_size=100), said(*"abcdefgh", vocab_size=5))
    reader = read_traces(log, vocab_size=7)
    assert len(list(reader)) == 1
    [problem] = reader.problems
    assert problem.line == 2
    assert problem.reason.startswith("field vocab_size: a vocabulary of 5 tokens is too small: the log holds at least")


def test_a_size_known_from_a_models_name_says_so(tmp_path: Path) -> None:
    steep = token("a", (0.5, 1e-6))
    log = write(tmp_path / "log.jsonl", line([user(), assistant([steep], content="a")], model="granite-3.1-8b"))
    reader = read_traces(log)
    [trajectory] = reader
    assert np.isinf(trajectory.entropy_bounds[1]).all()
    [size] = reader.refuted_sizes
    assert (size.model, size.vocab_size, size.where) == ("granite-3.1-8b", 49_155, (str(log), 1, "line"))
    # None beyond the list is likelier than one in a million, and together they hold a half.
    assert "hold 0.5 of the probability, none more than 1e-06, which takes at least 49" in size.evidence
    with pytest.raises(DataError, match=r"model 'granite-3\.1-8b': a vocabulary of 49,155 tokens is too small"):
        openai.decode(log.read_bytes(), default_id="")


TINY = "smollm-tiny"


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """A family of which the table says far too little: ten tokens."""
    monkeypatch.setattr(deltah.traces.vocabularies, "_FAMILIES", ((TINY, 10),))


def bounded(trajectories: Iterable[Trajectory]) -> dict[str, bool]:
    return {t.id: bool(np.isfinite(t.entropy_bounds[1]).all()) for t in trajectories}


@pytest.mark.usefixtures("tiny")
def test_a_size_known_from_a_name_is_dropped_once_the_log_refutes_it(tmp_path: Path) -> None:
    """Four drawn tokens a conversation and two alternatives: the third shows twelve and more."""
    lines = [said(*(f"{i}.{j}" for j in range(4)), id=f"t{i}", model=TINY) for i in range(5)]
    lines.insert(2, said("x", "y", id="other", model="another", vocab_size=50))
    log = write(tmp_path / "log.jsonl", *lines)
    reader = read_traces(log, strict=True)
    found = list(reader)
    assert bounded(found) == {"t0": True, "t1": True, "other": True, "t2": False, "t3": False, "t4": False}
    assert [t.model for t in found if t.id != "other"] == [TINY] * 5
    assert [t.id for t in found if "vocab_size_from" in t.metadata] == ["t0", "t1"]
    [size] = reader.refuted_sizes
    assert (size.model, size.vocab_size, size.where and size.where.number) == (TINY, 10, 4)
    assert all(bounded(read_traces(log, vocab_size=30, strict=True)).values())
    assert read_traces(log, vocab_size=30).refuted_sizes == ()


@pytest.mark.usefixtures("tiny")
def test_a_list_that_no_vocabulary_completes_drops_no_size(tmp_path: Path) -> None:
    broken = line([user(), assistant([token("a", (0.5, 1e-320))], content="a")], model=TINY)
    reader = read_traces(write(tmp_path / "log.jsonl", broken, said("b", id="b", model=TINY)))
    assert bounded(reader) == {"b": True}
    assert (reader.n_problems, reader.refuted_sizes) == (1, ())


@pytest.mark.usefixtures("tiny")
def test_parts_refute_a_size_together_and_the_command_says_what_rests_on_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def talk(i: int) -> bytes:
        first = assistant([token(f"{i}.{j}", HALF) for j in range(2)], content="x", tool_calls=[call()])
        last = assistant([token(f"{i}.{j}", HALF) for j in range(2, 4)], content="y")
        return line([user(), first, result("found"), last], id=f"t{i}", model=TINY)

    log = write(tmp_path / "log.jsonl", *map(talk, range(5)))
    printed = []
    for size in (1, 10**6):
        monkeypatch.setattr(deltah.traces.parts, "PART_BYTES", size)
        shown = CliRunner().invoke(app, ["score", str(log), "--json"])
        assert shown.exit_code == 0, shown.output
        printed.append(json.loads(shown.stdout)["notes"][0])
    one = f"The name of {TINY} stands for a vocabulary of 10 tokens, which the log refutes"
    evidence = f"the log holds at least 14 different tokens of {TINY}"
    rely = (
        "of its calls had been measured with it: do not rely on their upper bounds and verdicts. State the model's own"
    )
    assert printed[0].startswith(f"{one} ({evidence}): that size was dropped. 5 {rely}")
    assert printed[1].startswith(f"{one} at {log}, line 3 ({evidence}): that size was dropped. 2 {rely}")


def test_samples_of_inspect_drop_a_refuted_size_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = ROOT / "tests" / "traces" / "data" / "inspect.eval"
    [model] = {t.model for t in read_traces(data)}
    assert model is not None
    monkeypatch.setattr(deltah.traces.vocabularies, "_FAMILIES", ((model, 2),))
    reader = read_traces(data, strict=True)
    assert len(list(reader)) == len(list(read_traces(data, vocab_size=10**6)))
    [size] = reader.refuted_sizes
    assert (size.model, size.vocab_size) == (model, 2)


def test_a_list_that_no_vocabulary_completes_is_left_out_alone(tmp_path: Path) -> None:
    lines = [line([user(), assistant([token("a", p)], content="a")]) for p in ((0.5, 1e-320), (0.9, 0.05))]
    reader = read_traces(write(tmp_path / "log.jsonl", *lines), vocab_size=100)
    assert len(list(reader)) == 1
    [problem] = reader.problems
    assert problem.line == 1
    assert problem.reason.startswith("field top_logprobs: a list of log-probabilities leaves 0.5 of the probability to")


def test_a_list_without_its_drawn_token_is_not_the_fault_of_the_callers_size(tmp_path: Path) -> None:
    """Its least entry, one in a million, caps nothing: the drawn token is likelier and not among them."""
    steep = token("a", (0.02, 1e-6)) | {"logprob": math.log(0.9)}
    log = write(tmp_path / "log.jsonl", line([user(), assistant([steep], content="a")]), said("b"))
    reader = read_traces(log, vocab_size=100, strict=True)
    assert [np.isfinite(t.entropy_bounds[1]).all() for t in reader] == [True, True]


def test_other_formats_stop_too(tmp_path: Path) -> None:
    for name in ("inspect.json", "inspect.eval"):
        with pytest.raises(ConfigError, match="--vocab-size: a vocabulary of 2 tokens is too small"):
            list(read_traces(ROOT / "tests" / "traces" / "data" / name, vocab_size=2))


def test_tokens_of_other_models_are_not_counted_together(tmp_path: Path) -> None:
    lines = [said(*(f"{m}{i}" for i in range(6)), model=m) for m in "abc"]
    assert len(list(read_traces(write(tmp_path / "log.jsonl", *lines), vocab_size=8, strict=True))) == 3
    lines = [said(*(f"{i}.{j}" for j in range(6)), model=f"m{i}") for i in range(MAX_MODELS + 5)]
    reader = read_traces(write(tmp_path / "many.jsonl", *lines), vocab_size=7)
    with pytest.raises(ConfigError):
        list(reader)


def test_more_models_than_can_be_kept_are_not_counted() -> None:
    seen = SeenTokens()
    for i in range(MAX_MODELS):
        seen.check(Facts(model=f"m{i}"), ["a"], 5)
    seen.check(Facts(model="one more"), list("abcdefgh"), 5)
    with pytest.raises(VocabularySizeError):
        seen.check(Facts(model="m3"), list("abcdefgh"), 5)


def test_texts_beyond_ascii_do_not_count(tmp_path: Path) -> None:
    """A character may be spread over several tokens, whose texts depend on their neighbours."""
    texts = ["é", "ß", "東", "京", "🙂", "a", "b", "c"]
    assert list(read_traces(write(tmp_path / "log.jsonl", said(*texts, model="m")), vocab_size=5, strict=True))
    with pytest.raises(ConfigError, match="at least 5 different tokens"):
        list(read_traces(write(tmp_path / "log.jsonl", said(*texts, model="m")), vocab_size=4))


def test_an_exact_distribution_needs_no_check(tmp_path: Path) -> None:
    """Lists of V entries that hold all probability are exact, whatever else was drawn."""
    words = [token(text, (0.5, 0.25, 0.25)) for text in "abcdefg"]
    log = write(tmp_path / "log.jsonl", line([user(), assistant(words, content="abcdefg")]))
    assert len(list(read_traces(log, vocab_size=3, strict=True))) == 1


@pytest.mark.parametrize("form", ["messages", "pair", "stream", "events", "bare", "batch"])
def test_alternatives_are_found_in_every_form(tmp_path: Path, form: str) -> None:
    tokens = [token("a", HALF) | {"top_logprobs": [
        {"token": f"alt{i}{j}", "logprob": np.log(p)} for j, p in enumerate(HALF)
    ]} for i in range(5)]  # fmt: skip
    message, block = {"role": "assistant", "content": "aaaaa"}, {"content": tokens}
    whole = {"model": "m", "choices": [{"message": message, "logprobs": block, "finish_reason": "stop"}]}
    delta = {"delta": message, "logprobs": block, "finish_reason": "stop"}
    chunk = {"model": "m", "object": "chat.completion.chunk", "choices": [delta]}
    request = {"messages": [user()]}
    record: dict[str, Any] = {
        "messages": {"model": "m", "messages": [user(), message | {"logprobs": block}]},
        "pair": {"request": request, "response": whole},
        "stream": {"request": request, "response": [chunk]},
        "events": {"request": request, "response": f"data: {json.dumps(chunk)}\n\n"},
        "bare": whole,
        "batch": {"request": {"body": request}, "response": {"body": whole}},
    }[form]
    log = write(tmp_path / "log.jsonl", json.dumps(record).encode())
    counted = form != "events"  # the text of an event stream would have to be decoded twice
    if counted:
        with pytest.raises(ConfigError, match="at least 16 different tokens of m"):
            list(read_traces(log, vocab_size=15))
    assert len(list(read_traces(log, vocab_size=16, strict=True))) == 1


@pytest.mark.parametrize("enveloped", [False, True])
def test_alternatives_of_every_chunk_count(tmp_path: Path, enveloped: bool) -> None:
    """Five chunks, one a line, each with alternatives of its own; the last has none."""
    lines = []
    for i in range(6):
        top = [{"token": f"alt{i}{j}", "logprob": np.log(p)} for j, p in enumerate(HALF)]
        choice: dict[str, Any] = {"delta": {"content": "a"}, "finish_reason": None}
        if i < 5:
            choice["logprobs"] = {"content": [token("a", HALF) | {"top_logprobs": top}]}
        else:
            choice = {"delta": {}, "finish_reason": "stop"}
        chunk = {"id": "r", "model": "m", "object": "chat.completion.chunk", "choices": [choice]}
        lines.append(json.dumps({"response": chunk, "session_id": "s"} if enveloped else chunk).encode())
    log = write(tmp_path / "log.jsonl", *lines)
    with pytest.raises(ConfigError, match="at least 16 different tokens of m"):
        list(read_traces(log, vocab_size=15))
    assert len(list(read_traces(log, vocab_size=16, strict=True))) == 1


def test_alternatives_are_read_of_the_first_lines_only() -> None:
    seen, facts = SeenTokens(), Facts(model="m")
    seen.sample(said("a") + b" " * SAMPLE_BYTES, facts)
    seen.sample(said("b", "c", "d"), facts)
    seen.check(facts, [], 3)
    seen.sample(b"{broken", facts)
    with pytest.raises(VocabularySizeError, match="at least 4"):
        seen.check(facts, ["e"], 3)


def test_of_a_long_log_some_trajectories_are_counted_and_a_refuted_size_stays_refuted() -> None:
    seen, facts = SeenTokens(), Facts(model="m")
    seen.check(facts, ["a"] * DENSE_TOKENS, 5)
    for _ in range(STRIDE - 2):
        seen.check(facts, list("bcdefghi"), 5)
    for _ in range(STRIDE):
        with pytest.raises(VocabularySizeError, match="at least 9 different"):
            seen.check(facts, list("bcdefghi"), 5)


@pytest.mark.parametrize("seed", range(5))
def test_counting_by_and_by_refuses_at_the_same_trajectory_as_counting_anew(seed: int) -> None:
    rng = np.random.default_rng(seed)
    words = [f"w{i}" for i in range(300)] + [f"é{i}" for i in range(40)]
    sampled = said(*(words[i] for i in rng.integers(0, 300, 80)))
    seen, facts, limit = SeenTokens(), Facts(), int(rng.integers(60, 280))
    seen.sample(sampled, facts)
    entries = json.loads(sampled)["messages"][1]["logprobs"]["content"]
    known = {alternative["token"] for entry in entries for alternative in entry["top_logprobs"]}
    for _ in range(200):
        drawn = [words[int(340 * rng.random() ** 3)] for _ in range(20)]
        known |= {text for text in drawn if text.isascii()}
        if len(known) > limit:
            with pytest.raises(VocabularySizeError, match=f"at least {len(known)} different"):
                seen.check(facts, drawn, limit)
            break
        seen.check(facts, drawn, limit)


def test_real_logs_refute_what_is_too_small_and_nothing_else() -> None:
    log = ROOT / "examples" / "lab" / "vllm.jsonl.zst"
    assert len(list(read_traces(log, vocab_size=1394, strict=True))) == 28
    for size in (25, 100, 500):
        with pytest.raises(ConfigError, match=f"a vocabulary of {size} tokens is too small"):
            list(read_traces(log, vocab_size=size))


def test_the_error_survives_a_worker_process() -> None:
    error = pickle.loads(pickle.dumps(VocabularySizeError("there are more", 5)))
    assert isinstance(error, DataError)
    assert str(error).startswith("a vocabulary of 5 tokens is too small: there are more; state")
