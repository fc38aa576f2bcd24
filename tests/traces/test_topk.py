"""Entropies from servers' lists: hand-computed values, each server's trap, bounds that hold."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from deltah.core.entropy import entropy_from_logits
from deltah.core.types import Estimator
from deltah.errors import DataError
from deltah.traces.tokens import pack_lists
from deltah.traces.topk import Measured
from deltah.traces.topk import measure as measure_packed

LOG = math.log


def measure(sampled: np.ndarray, top: Sequence[Sequence[float | None]], vocab_size: int | None) -> Measured:
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


def test_unknown_vocabulary_has_no_upper_bound() -> None:
    measured = measure(np.array([LOG(0.6)]), [[LOG(0.6), LOG(0.3)]], None)
    assert measured.estimator is Estimator.TOP_K
    assert measured.upper is not None
    assert measured.lower is not None
    assert np.isinf(measured.upper).all()
    # The tail of 0.1 fits on one token: 0.3 is its cap.
    by_hand = -(0.6 * LOG(0.6) + 0.3 * LOG(0.3) + 0.1 * LOG(0.1))
    assert measured.lower == pytest.approx([by_hand], abs=1e-4)


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
    assert measure(np.empty(0), [], None).estimator is Estimator.NONE


@pytest.mark.parametrize(
    ("top", "vocab_size", "message"),
    [
        ([LOG(0.5), LOG(0.25), LOG(0.25)], 2, "vocabulary has 2"),
        ([LOG(0.5), LOG(0.2)], 2, "whole vocabulary but hold only 0.7"),
        ([0.0, LOG(0.9)], 10, "sum to a probability of 1.9"),
        ([0.7], None, "sum to a probability of 2.01"),
    ],
)
def test_impossible_lists_are_refused(top: list[float], vocab_size: int | None, message: str) -> None:
    with pytest.raises(DataError, match=message):
        measure(np.array([LOG(0.5)]), [top], vocab_size)


def server_list(logp: np.ndarray, drawn: int, k: int, dialect: str) -> list[float | None]:
    """What a server prints of one distribution."""
    best = np.argsort(-logp, kind="stable")[:k].tolist()
    if dialect == "vllm":  # the drawn token first, then the best, cut at k
        best = list(dict.fromkeys([drawn, *best]))[:k]
    elif dialect == "appended" and drawn not in best:
        best = [*best, drawn]
    return [max(float(logp[v]), -9999.0) for v in best]


@pytest.mark.parametrize("dialect", ["openai", "vllm", "appended"])
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
    for vocab_size in (vocab, None):
        measured = measure(sampled, top, vocab_size)
        assert measured.lower is not None
        assert measured.upper is not None
        assert (measured.lower <= truth + 1e-9).all()
        assert (measured.upper >= truth - 1e-9).all()


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
