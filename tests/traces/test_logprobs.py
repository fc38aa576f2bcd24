"""Entropies from servers' lists: hand-computed values, each server's trap, bounds that hold."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from deltah import DEFAULT_VOCAB_SIZE, read_traces
from deltah.core.entropy import SERVER_PRECISION_NATS, entropy_from_logits
from deltah.core.types import Estimator
from deltah.errors import DataError
from deltah.traces import logprobs
from deltah.traces.logprobs import Measured, _precision, pack_lists
from deltah.traces.logprobs import measure as measure_packed

LOG = math.log
DATA = Path(__file__).parent / "data"


def measure(
    sampled: np.ndarray, top: Sequence[Sequence[float | None]], vocab_size: int = DEFAULT_VOCAB_SIZE
) -> Measured:
    """Measure lists given one by one."""
    return measure_packed(pack_lists([""] * len(top), sampled.tolist(), top), vocab_size)


def test_whole_vocabulary_is_exact() -> None:
    measured = measure(np.array([LOG(0.5)]), [[LOG(0.5), LOG(0.25), LOG(0.25)]], 3)
    assert measured.estimator is Estimator.EXACT
    assert measured.lower is None
    assert measured.entropy == pytest.approx([1.5 * LOG(2)], abs=1e-12)


@pytest.mark.parametrize("stand_in", [None, -9999.0, -math.inf])
def test_impossible_tokens_of_a_whole_vocabulary(stand_in: float | None) -> None:
    measured = measure(np.array([LOG(0.5)]), [[LOG(0.5), LOG(0.5), stand_in]], 3)
    assert measured.estimator is Estimator.EXACT
    assert measured.entropy == pytest.approx([LOG(2)], abs=1e-12)


def test_unknown_vocabulary_is_bounded_by_the_default_one() -> None:
    measured = measure(np.array([LOG(0.6)]), [[LOG(0.6), LOG(0.3)]])
    assert measured.estimator is Estimator.TOP_K
    assert measured.upper is not None
    assert measured.lower is not None
    head = -(0.6 * LOG(0.6) + 0.3 * LOG(0.3))
    # The tail of 0.1 fits on one token, as 0.3 is its cap, or spreads over the 524,286 that are not listed.
    assert measured.lower == pytest.approx([head - 0.1 * LOG(0.1)], abs=1e-4)
    assert measured.upper == pytest.approx([head + 0.1 * LOG(524_286 / 0.1)], abs=1e-3)


def test_mixed_lengths_and_missing_lists() -> None:
    top = [[LOG(0.5), LOG(0.25), LOG(0.25)], [], [LOG(0.9)], [LOG(0.9), LOG(0.05)]]
    measured = measure(np.array([LOG(0.5), np.nan, LOG(0.9), LOG(0.9)]), top, 3)
    assert measured.estimator is Estimator.TOP_K
    assert measured.entropy is not None
    assert np.isnan(measured.entropy).tolist() == [False, True, False, False]
    assert measured.entropy[0] == pytest.approx(1.5 * LOG(2))


def test_nothing_reported_is_not_measured() -> None:
    assert measure(np.array([-1.0]), [[]], 3).estimator is Estimator.NONE
    assert measure(np.array([-1.0]), [[None, None]], 30).entropy is None
    assert measure(np.empty(0), []).estimator is Estimator.NONE


@pytest.mark.parametrize(
    ("top", "vocab_size", "message"),
    [
        ([LOG(0.5), LOG(0.25), LOG(0.25)], 2, "vocabulary of 2 tokens is too small: token 0 has 3 top_logprobs"),
        ([LOG(0.5), LOG(0.2)], 2, "too small: the 2 top_logprobs of token 0 hold only 0.7 of the probability"),
        ([0.0, LOG(0.9)], 10, "sum to a probability of 1.9"),
        ([0.0, LOG(0.9), LOG(0.1)], 2, "sum to a probability of 2"),
        ([LOG(0.3), LOG(0.2)], 2, "drawn with a probability of 0.5, but its top_logprobs hold less likely"),
        ([0.7], DEFAULT_VOCAB_SIZE, "sum to a probability of 2.01"),
    ],
)
def test_impossible_lists_are_refused(top: list[float], vocab_size: int, message: str) -> None:
    with pytest.raises(DataError, match=message):
        measure(np.array([LOG(0.5)]), [top], vocab_size)


DIALECTS = ("openai", "vllm", "appended")


def server_choice(logp: np.ndarray, drawn: int, k: int, dialect: str) -> list[int]:
    """Tokens that a server lists of one distribution."""
    best = np.argsort(-logp, kind="stable")[:k].tolist()
    if dialect == "vllm":  # the drawn token first, then the best, cut at k
        best = list(dict.fromkeys([drawn, *best]))[:k]
    elif dialect == "appended" and drawn not in best:
        best = [*best, drawn]
    return best


def server_list(logp: np.ndarray, drawn: int, k: int, dialect: str) -> list[float]:
    """What a server prints of one distribution."""
    return [max(float(logp[v]), -9999.0) for v in server_choice(logp, drawn, k, dialect)]


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("k", [1, 2, 5, 20])
@pytest.mark.parametrize("decimals", [None, 3])
def test_interval_holds_for_every_dialect(dialect: str, k: int, decimals: int | None) -> None:
    rng = np.random.default_rng(k)
    n, vocab = 1500, 40
    logits = rng.normal(size=(n, vocab)) * rng.gamma(1.0, 3.0, size=(n, 1))
    logits[rng.random((n, vocab)) < 0.1] = -np.inf
    logits[:, 0] = np.where(np.isfinite(logits).any(axis=1), logits[:, 0], 0.0)
    logp = logits - np.log(np.exp(logits - logits.max(axis=1, keepdims=True)).sum(axis=1, keepdims=True))
    logp -= logits.max(axis=1, keepdims=True)
    drawn = np.array([rng.choice(vocab, p=np.exp(row) / np.exp(row).sum()) for row in logp])
    printed = logp if decimals is None else np.round(logp, decimals)
    top = [server_list(row, v, k, dialect) for row, v in zip(printed, drawn, strict=True)]
    sampled = printed[np.arange(n), drawn]
    truth = entropy_from_logits(logits)
    for vocab_size in (vocab, DEFAULT_VOCAB_SIZE):
        measured = measure(sampled, top, vocab_size)
        assert measured.lower is not None
        assert measured.upper is not None
        assert (measured.lower <= truth + 1e-9).all()
        assert (measured.upper >= truth - 1e-9).all()


def mixed_distributions(rng: np.random.Generator, n: int, vocab: int) -> np.ndarray:
    """(n, vocab) probabilities: flat, peaked, tied, sparse, and point masses that round to a log-probability of 0."""
    logits = rng.normal(size=(n, vocab)) * rng.choice([0.01, 1.0, 4.0, 12.0], size=(n, 1))
    tied = rng.random((n, 1)) < 0.2
    logits = np.where(tied, np.floor(logits), logits)
    logits[:, 0] += rng.choice([0.0, 0.0, 5.0, 12.0, 30.0], size=n)
    logits[:, 1:][(rng.random((n, vocab - 1)) < 0.3) & (rng.random((n, 1)) < 0.3)] = -np.inf
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(p / p.sum(axis=1, keepdims=True))


def half_precision(logp: np.ndarray, kind: str) -> np.ndarray:
    """Round to float16, or to bfloat16, whose bits are the upper half of a float32's, to even."""
    if kind == "float16":
        return logp.astype(np.float16).astype(np.float64)
    bits = logp.astype(np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
    return rounded.astype(np.uint32).view(np.float32).astype(np.float64)


def cut(logp: np.ndarray, how: str) -> np.ndarray:
    """Print with a number of decimals, or of significant digits, in double or in single precision; or in half."""
    if "float16" in how:
        return half_precision(logp, how)
    if how.startswith("digits"):
        return np.array([[float(f"{x:.{how[-1]}g}") for x in row] for row in logp])
    rounded = np.round(logp, int(how[-1]))
    return rounded.astype(np.float32).astype(np.float64) if how.startswith("single") else rounded


PRINTS = [*(f"decimals{d}" for d in range(1, 7)), "single1", "single3", "single5", "digits3", "digits4", "digits6"]
PRINTS += ["float16", "bfloat16"]


def violations_of_cut_print_outs(n_messages: int, seed: int) -> tuple[int, int]:
    """(tokens, violations) over short messages printed with few digits, each dialect, K, and vocabulary."""
    rng, tokens, violations = np.random.default_rng(seed), 0, 0
    for _ in range(n_messages):
        n, vocab = int(rng.integers(1, 7)), int(rng.choice([2, 3, 8, 40]))
        p, k, dialect = mixed_distributions(rng, n, vocab), int(rng.choice([1, 2, 5, 20])), rng.choice(DIALECTS)
        drawn = (p.cumsum(axis=1) > rng.random((n, 1))).argmax(axis=1)
        with np.errstate(divide="ignore"):
            exact = np.log(p)
        printed = cut(exact, str(rng.choice(PRINTS)))
        # Ranked by the truth, as a server does, then printed.
        order = [server_choice(row, v, k, str(dialect)) for row, v in zip(exact, drawn, strict=True)]
        top = [[max(float(row[v]), -9999.0) for v in chosen] for row, chosen in zip(printed, order, strict=True)]
        truth = -np.where(p > 0, p * np.where(p > 0, exact, 0.0), 0.0).sum(axis=1)
        for vocab_size in (vocab, DEFAULT_VOCAB_SIZE):
            found = measure(printed[np.arange(n), drawn], top, vocab_size)
            # The entropy of a whole vocabulary is as exact as the log-probabilities it is made of.
            exact_one = found.estimator is Estimator.EXACT
            slack = 5e-6 if exact_one else 1e-9
            lower, upper = (found.entropy, found.entropy) if exact_one else (found.lower, found.upper)
            assert lower is not None
            assert upper is not None
            tokens += n
            violations += int(((lower > truth + slack) | (upper < truth - slack)).sum())
    return tokens, violations


def test_interval_holds_for_short_messages_printed_with_few_digits() -> None:
    tokens, violations = violations_of_cut_print_outs(800, seed=0)
    assert tokens > 5_000
    assert violations == 0


@pytest.mark.slow
def test_interval_holds_for_100000_tokens_printed_with_few_digits() -> None:
    tokens, violations = violations_of_cut_print_outs(15_000, seed=1)
    assert tokens > 100_000
    assert violations == 0


def sampling(logits: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """What a server does to logits before it reports: nothing, a temperature, the k best, a nucleus, bfloat16."""
    ordered = -np.sort(-logits, axis=1)
    how = rng.integers(0, 5)
    if how == 1:
        return np.asarray(logits / rng.choice([0.1, 0.5, 1.5], size=(len(logits), 1)))
    if how == 2:
        return np.where(logits >= ordered[:, int(rng.integers(1, 40)), None], logits, -np.inf)
    if how == 3:
        mass = np.exp(ordered - ordered[:, :1]).cumsum(axis=1)
        last = (mass < 0.9 * mass[:, -1:]).sum(axis=1)
        return np.where(logits >= np.take_along_axis(ordered, last[:, None], axis=1), logits, -np.inf)
    return half_precision(logits, "bfloat16") if how == 4 else logits


def test_no_honest_list_refutes_the_true_vocabulary() -> None:
    """Where all but a trace of the probability is listed, the print-out's error must not pass for a missing tail."""
    rng = np.random.default_rng(0)
    for i in range(150):
        n, vocab, k = 6, int(rng.choice([60, 1400, 20_000])), int(rng.choice([1, 5, 20, 50]))
        logits = rng.normal(size=(n, vocab)) * rng.choice([0.01, 1.0, 4.0], size=(n, 1))
        logits[:, :2] += rng.choice([0.0, 5.0, 12.0, 25.0], size=(n, 2))
        logits = sampling(logits, rng)
        z = logits.astype(np.float32)
        logp = z - z.max(axis=1, keepdims=True)
        logp -= np.log(np.exp(logp).sum(axis=1, keepdims=True))
        p = np.exp(logp.astype(np.float64))
        drawn = (p.cumsum(axis=1) / p.sum(axis=1, keepdims=True) > rng.random((n, 1))).argmax(axis=1)
        how = [*PRINTS, "full", "full"][i % (len(PRINTS) + 2)]
        printed = logp.astype(np.float64) if how == "full" else cut(logp, how)
        order = [server_choice(row, v, k, DIALECTS[i % 3]) for row, v in zip(logp, drawn, strict=True)]
        top = [[max(float(row[v]), -9999.0) for v in chosen] for row, chosen in zip(printed, order, strict=True)]
        found, truth = measure(printed[np.arange(n), drawn], top, vocab), entropy_from_logits(logits)
        assert found.lower is not None
        assert found.upper is not None
        assert ((found.lower <= truth + 1e-9) & (found.upper >= truth - 1e-9)).all(), (i, how)


def error_told(*values: float) -> float:
    """The error that a message of one token with these alternatives is taken to have, nats."""
    return _precision(pack_lists([""], [values[0]], [values]))


@pytest.mark.parametrize(
    ("values", "nats"),
    [
        ([-0.6931471824645996, -1.3862943649291992], 0.0),  # float32, printed in full
        ([-0.69314718], 0.0),
        ([-0.0, -12.345678329467773], 0.0),
        ([-3.14159274e-7, -15.0], 0.0),
        ([-3e-7, -15.0], 0.05),  # three significant digits are possible
        ([-0.0, -9999.0], 0.05),  # nothing but zeros: one decimal is possible
        ([-0.0, -1e-310], 0.05),
        ([-0.7], 0.05),
        ([-0.69, -2.5], 0.005),
        ([-0.693, -2.5, -3.0], 0.005),  # three decimals, or three significant digits: the coarser
        ([-0.693, -2.512], 0.0005),
        ([-0.6930000185966492, -2.5120000839233398], 0.0005),  # rounded in float32, printed as float64
        ([-0.00123, -12.3], 0.05),  # three significant digits
        ([-0.69315, -12.34568], 0.000005),
        ([-0.10498046875, -11.0625], 2.0**-5),  # bfloat16
        ([-0.10498046875, -0.0010986328125], 2.0**-12),
        ([-0.10498046875, -50.25], 2.0**-4),  # and of no consequence beyond 32
        ([-0.1048583984375, -11.0625], 2.0**-8),  # float16
        ([-0.1048617, -11.0625], 0.0),  # one of them is not: a full print-out
    ],
)
def test_error_told_from_the_digits(values: list[float], nats: float) -> None:
    assert error_told(*values) == pytest.approx(SERVER_PRECISION_NATS + nats, rel=1e-6)


def test_later_tokens_tell_what_the_first_cannot() -> None:
    drawn = [0.0] * 100 + [-0.6931471824645996]
    assert _precision(pack_lists([""] * 101, drawn, [[x] for x in drawn])) == SERVER_PRECISION_NATS


def test_whole_vocabulary_printed_with_few_digits_is_an_interval() -> None:
    measured = measure(np.array([-0.7]), [[-0.7, -0.7, -9999.0]], 3)
    assert measured.estimator is Estimator.TOP_K
    assert measured.lower is not None
    assert measured.upper is not None
    assert measured.lower[0] < LOG(2) < measured.upper[0] < LOG(2) + 0.1


@pytest.mark.parametrize("path", sorted(DATA.glob("*.jsonl*")), ids=lambda path: path.name)
def test_recorded_logs_are_taken_as_printed_in_full(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[float] = []
    monkeypatch.setattr(logprobs, "_precision", lambda tokens: told.append(_precision(tokens)) or told[-1])
    assert sum(1 for _ in read_traces(path)) or path.name.endswith("-error.jsonl")
    assert set(told) <= {SERVER_PRECISION_NATS}


def test_openai_stand_in_for_the_drawn_token_narrows_nothing() -> None:
    top = [[LOG(0.5), LOG(0.3)]]
    with_stand_in = measure(np.array([np.nan]), top, 10)
    assert with_stand_in.upper is not None
    assert with_stand_in.upper[0] == pytest.approx(-(0.5 * LOG(0.5) + 0.3 * LOG(0.3) + 0.2 * LOG(0.2 / 8)), abs=1e-3)


def test_a_list_that_lost_entries_caps_nothing() -> None:
    """Tokens that print alike share one entry: what is missing may be likelier than the least entry shown."""
    truth = np.array([0.3, 0.25, 0.2, 0.1, 0.1, 0.05])
    whole = np.log(truth[:4]).tolist()
    lost = np.log(truth[[0, 2, 3]]).tolist()  # the second of two tokens of one text took the first's place
    measured = measure(np.log([0.3, 0.3, 0.3]), [whole, whole, lost], 6)
    exact = -(truth * np.log(truth)).sum()
    assert measured.lower is not None
    assert measured.upper is not None
    assert measured.lower[2] < exact < measured.upper[2]
    # The unseen 0.4 on one token, for it may be one that ranks anywhere.
    by_hand = -sum(p * LOG(p) for p in (0.3, 0.2, 0.1, 0.4))
    assert measured.lower[2] == pytest.approx(by_hand, abs=1e-4)


def test_a_list_without_a_likelier_drawn_token_caps_nothing_and_refutes_nothing() -> None:
    """The drawn token holds 0.7 and is not listed: what is missing may be likelier than the least entry shown."""
    truth = np.array([0.7, 0.15, 0.1, 0.03, 0.02])
    exact = -(truth * np.log(truth)).sum()
    for shown in ([1, 2], [2, 3], [1, 3, 4]):
        lists = [np.log(truth[:3]).tolist(), np.log(truth[shown]).tolist()]
        found = measure(np.log([0.7, 0.7]), lists, 5)
        assert found.lower is not None
        assert found.upper is not None
        assert (found.lower - 1e-9 <= exact).all()
        assert (exact <= found.upper + 1e-9).all()
        # All that is not shown on one token: no entry caps it.
        packed = [*truth[shown], 1 - truth[shown].sum()]
        assert found.lower[1] == pytest.approx(-sum(p * LOG(p) for p in packed), abs=1e-3)
    [steep] = [np.log([0.02, 1e-6]).tolist()]
    refuted = measure(np.log([0.9]), [steep], 100)
    assert refuted.upper is not None
    assert np.isfinite(refuted.upper).all()


def test_recorded_lists_hold_every_drawn_token_that_belongs_there(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[bool] = []
    lacks = logprobs._lacks_drawn
    monkeypatch.setattr(logprobs, "_lacks_drawn", lambda *args: told.extend(lacks(*args)) or lacks(*args))
    list(read_traces(sorted(DATA.glob("*.jsonl*"))))
    assert len(told) > 1000
    assert not any(told)
