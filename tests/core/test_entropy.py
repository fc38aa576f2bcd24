"""Entropy: hand-computed values, the certified bounds on random distributions, and the point estimate."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deltah import entropy_bounds, entropy_from_logits
from deltah.errors import InvalidValueError

LN2 = np.log(2.0)


def softmax(z: np.ndarray) -> np.ndarray:
    p = np.exp(z - z.max(axis=-1, keepdims=True))
    return p / p.sum(axis=-1, keepdims=True)


def direct_entropy(p: np.ndarray) -> np.ndarray:
    return -np.where(p > 0, p * np.log(np.where(p > 0, p, 1.0)), 0.0).sum(axis=-1)


class TestFromLogits:
    def test_hand_computed(self) -> None:
        logits = np.log([[0.5, 0.5, 1e-300], [0.5, 0.25, 0.25]])
        np.testing.assert_allclose(entropy_from_logits(logits), [LN2, 1.5 * LN2], atol=1e-12)

    def test_impossible_tokens_contribute_nothing(self) -> None:
        h = entropy_from_logits([0.0, 0.0, -np.inf])
        assert h == pytest.approx(LN2, abs=1e-15)

    def test_point_mass_is_zero_not_negative(self) -> None:
        assert entropy_from_logits([1e30, 0.0, 0.0]) == 0.0

    @pytest.mark.parametrize("row", [[-np.inf, -np.inf], [np.nan, 0.0], [np.inf, 0.0]])
    def test_rows_without_a_distribution_are_nan(self, row: list[float]) -> None:
        assert np.isnan(entropy_from_logits(row))

    def test_temperature_divides_logits(self) -> None:
        z = np.array([1.0, -2.0, 0.5])
        assert entropy_from_logits(z, temperature=0.5) == pytest.approx(float(entropy_from_logits(2 * z)), abs=1e-15)

    def test_shape(self) -> None:
        assert entropy_from_logits(np.zeros((2, 3, 7))).shape == (2, 3)

    @given(st.lists(st.floats(-50, 50), min_size=1, max_size=30), st.floats(-1e3, 1e3))
    def test_invariances(self, logits: list[float], shift: float) -> None:
        z = np.array(logits)
        h = entropy_from_logits(z)
        assert 0.0 <= h <= np.log(len(z)) + 1e-12
        np.testing.assert_allclose(entropy_from_logits(z + shift), h, atol=1e-9)
        np.testing.assert_allclose(entropy_from_logits(z[::-1]), h, atol=1e-12)
        np.testing.assert_allclose(h, direct_entropy(softmax(z)), atol=1e-9)

    def test_bad_arguments(self) -> None:
        with pytest.raises(InvalidValueError, match="temperature is 0"):
            entropy_from_logits([0.0], temperature=0)
        with pytest.raises(InvalidValueError, match="V >= 1"):
            entropy_from_logits(np.zeros((3, 0)))


class TestBounds:
    def test_hand_computed(self) -> None:
        # Known 0.5 and 0.2; tail mass 0.3 on 8 tokens of at most 0.2 each: packed is 0.2 + 0.1, spread is 8 x 0.0375.
        lower, upper, point = entropy_bounds(np.log([0.5, 0.2]), 10)
        head = 0.5 * LN2 - 0.2 * np.log(0.2)
        assert lower == pytest.approx(head - 0.2 * np.log(0.2) - 0.1 * np.log(0.1), abs=1e-9)
        assert upper == pytest.approx(head + 0.3 * np.log(8 / 0.3), abs=1e-9)
        assert lower < point < upper

    def test_drawn_token_outside_the_top_k_is_one_more_known_token(self) -> None:
        lower, upper, _ = entropy_bounds(np.log([0.5, 0.2]), 10, sampled=np.log(0.05))
        head = 0.5 * LN2 - 0.2 * np.log(0.2) - 0.05 * np.log(0.05)
        # Tail mass 0.25 on 7 tokens; the cap stays 0.2, so packed is 0.2 + 0.05.
        assert lower == pytest.approx(head - 0.2 * np.log(0.2) - 0.05 * np.log(0.05), abs=1e-9)
        assert upper == pytest.approx(head + 0.25 * np.log(7 / 0.25), abs=1e-9)

    def test_whole_vocabulary_is_exact(self) -> None:
        p = np.array([0.6, 0.3, 0.1])
        lower, upper, point = entropy_bounds(np.log(p).astype(np.float32), 3)
        assert lower == upper == point == pytest.approx(direct_entropy(p), abs=1e-6)

    def test_unknown_vocabulary_has_no_upper_bound(self) -> None:
        lower, upper, point = entropy_bounds(np.log([[0.5, 0.2], [0.5, 0.5]]), None)
        assert upper[0] == np.inf
        assert np.isfinite(point).all()
        assert lower[1] == pytest.approx(LN2, abs=1e-9)

    @pytest.mark.parametrize("stand_in", [-np.inf, -9999.0])
    def test_impossible_entries_of_servers(self, stand_in: float) -> None:
        lower, upper, point = entropy_bounds([np.log(0.5), np.log(0.5), stand_in], None)
        np.testing.assert_allclose([lower, upper, point], LN2, atol=1e-9)

    def test_order_of_entries_does_not_matter(self) -> None:
        a, b = np.log([0.5, 0.3, 0.1]), np.log([0.1, 0.5, 0.3])
        np.testing.assert_array_equal(entropy_bounds(a, 50), entropy_bounds(b, 50))

    def test_nan_rows_stay_nan(self) -> None:
        bounds = entropy_bounds([[np.nan, -1.0], [-1.0, -1.0]], 10)
        assert all(np.isnan(values[0]) and np.isfinite(values[1]) for values in bounds)

    @pytest.mark.parametrize(
        ("logprobs", "vocab_size", "message"),
        [([], 5, "K >= 1"), ([-1.0, -1.0, -1.0], 2, "vocabulary of 2"), ([0.5], 5, "at most 0")],
    )
    def test_bad_arguments(self, logprobs: list[float], vocab_size: int, message: str) -> None:
        with pytest.raises(InvalidValueError, match=message):
            entropy_bounds(logprobs, vocab_size)


def random_distributions(rng: np.random.Generator, n: int, vocab: int) -> np.ndarray:
    """Peaked, flat, power-law and adversarially packed distributions, mixed."""
    kind = rng.integers(0, 4, size=n)[:, None]
    normal = softmax(rng.normal(size=(n, vocab)) * rng.uniform(0.05, 12, size=(n, 1)))
    zipf = softmax(-rng.uniform(0.1, 6, size=(n, 1)) * np.log(np.arange(1, vocab + 1)))
    steps = softmax(np.floor(rng.uniform(0, 3, size=(n, vocab))) * rng.uniform(0, 20, size=(n, 1)))
    sparse = normal * (rng.random((n, vocab)) < 0.3)
    sparse[:, 0] += 1e-3
    return np.choose(kind, [normal, zipf, steps, sparse / sparse.sum(axis=1, keepdims=True)])


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_bounds_hold_on_100000_random_distributions(dtype: type[np.floating]) -> None:
    """0 violations in 1e5 cases, for every K, with and without the drawn token, in both precisions."""
    rng, cases, violations = np.random.default_rng(7), 0, 0
    for vocab in (2, 3, 5, 17, 64, 300):
        p = random_distributions(rng, 3200, vocab)
        truth = direct_entropy(p)
        logp = np.where(p > 0, np.log(np.where(p > 0, p, 1.0)), -np.inf)
        ranked = np.sort(logp, axis=-1)[:, ::-1].astype(dtype)
        drawn = logp[np.arange(len(p)), (p.cumsum(axis=1) > rng.random((len(p), 1))).argmax(axis=1)].astype(dtype)
        for k in {1, 2, 3, min(5, vocab), min(20, vocab)}:
            for sampled in (None, drawn):
                if k > vocab:
                    continue
                lower, upper, point = entropy_bounds(ranked[:, :k], vocab, sampled=sampled)
                slack = 1e-12 if k < vocab else 2e-5  # at K = V the value is as exact as its input
                violations += int(((lower > truth + slack) | (upper < truth - slack)).sum())
                assert ((lower <= point) & (point <= upper)).all()
                cases += len(p)
    assert cases >= 100_000
    assert violations == 0


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 30), st.integers(0, 2**31))
def test_more_logprobs_never_widen_the_interval(k: int, seed: int) -> None:
    p = random_distributions(np.random.default_rng(seed), 4, 40)
    ranked = np.sort(np.log(np.maximum(p, 1e-300)), axis=-1)[:, ::-1]
    few, many = entropy_bounds(ranked[:, :k], 40), entropy_bounds(ranked[:, : k + 5], 40)
    assert (many.lower >= few.lower - 1e-9).all()
    assert (many.upper <= few.upper + 1e-9).all()


def test_point_estimate_beats_the_middle_of_the_interval_on_power_laws() -> None:
    ranks = np.arange(1, 32001)
    p = softmax(-np.linspace(0.8, 2.5, 40)[:, None] * np.log(ranks))
    truth = direct_entropy(p)
    lower, upper, point = entropy_bounds(np.log(p[:, :20]), 32000)
    assert np.abs(point - truth).max() < 0.02
    assert np.abs(point - truth).mean() < 0.05 * np.abs((lower + upper) / 2 - truth).mean()
