"""Entropy: hand-computed values, the certified bounds on random distributions, and the point estimate."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deltah import DEFAULT_VOCAB_SIZE, entropy_bounds, entropy_from_logits
from deltah.errors import InvalidValueError, VocabularySizeError

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

    def test_unknown_vocabulary_is_the_default_one(self) -> None:
        lower, upper, point = entropy_bounds(np.log([[0.5, 0.2], [0.5, 0.5]]))
        # Tail mass 0.3, spread evenly on the 524,286 tokens beyond the two that are known.
        head = 0.5 * LN2 - 0.2 * np.log(0.2)
        assert upper[0] == pytest.approx(head + 0.3 * np.log(524_286 / 0.3), abs=1e-9)
        np.testing.assert_array_equal(point, entropy_bounds(np.log([[0.5, 0.2], [0.5, 0.5]]), 2**19).point)
        assert [lower[1], upper[1]] == pytest.approx([LN2, LN2], abs=1e-9)

    @pytest.mark.parametrize("stand_in", [-np.inf, -9999.0])
    def test_impossible_entries_of_servers(self, stand_in: float) -> None:
        lower, upper, point = entropy_bounds([np.log(0.5), np.log(0.5), stand_in])
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


def dirichlet(rng: np.random.Generator, n: int, vocab: int) -> np.ndarray:
    """Concentrations from 0.01 (near point masses, zeros by underflow) to 100 (near uniform)."""
    gamma = rng.standard_gamma(10.0 ** rng.uniform(-2, 2, size=(n, 1)), size=(n, vocab))
    gamma[:, 0] += 1e-300
    return np.asarray(gamma / gamma.sum(axis=1, keepdims=True))


def zipf(rng: np.random.Generator, n: int, vocab: int) -> np.ndarray:
    """Power laws of exponents 0 to 6."""
    return softmax(-rng.uniform(0, 6, size=(n, 1)) * np.log(np.arange(1, vocab + 1)))


def near_point_mass(rng: np.random.Generator, n: int, vocab: int) -> np.ndarray:
    """All but 1e-12 to 0.1 of the mass on one token, the rest spread unevenly."""
    rest = 10.0 ** rng.uniform(-12, -1, size=(n, 1))
    p = dirichlet(rng, n, vocab) * rest
    p[np.arange(n), rng.integers(0, vocab, size=n)] += 1 - rest[:, 0]
    return p


def near_uniform(rng: np.random.Generator, n: int, vocab: int) -> np.ndarray:
    """Ratios of 1 up to a factor between 1 + 1e-12 and 2."""
    weights = 1 + 10.0 ** rng.uniform(-12, 0, size=(n, 1)) * rng.random((n, vocab))
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def tied(rng: np.random.Generator, n: int, vocab: int) -> np.ndarray:
    """Few levels of logit, so that the K-th probability is shared: the case that packing decides."""
    return softmax(rng.integers(0, rng.integers(2, 5), size=(n, vocab)) * rng.uniform(0, 15, size=(n, 1)))


def masked(rng: np.random.Generator, n: int, vocab: int) -> np.ndarray:
    """Logits of which many are -inf, as a grammar or a sampler's top-p leaves them."""
    logits = rng.normal(size=(n, vocab)) * rng.uniform(0.1, 8, size=(n, 1))
    logits[:, 1:][rng.random((n, vocab - 1)) < rng.random((n, 1))] = -np.inf
    return softmax(logits)


FAMILIES = (dirichlet, zipf, near_point_mass, near_uniform, tied, masked)
VOCABULARIES = (2, 3, 5, 17, 64, 200)


def printed(logp: np.ndarray, rng: np.random.Generator) -> Iterator[tuple[np.ndarray, float | None]]:
    """The same log-probabilities as float64, as float32, and rounded, with the precision to state."""
    yield logp, None
    yield logp.astype(np.float32), None
    decimals = int(rng.integers(1, 7))
    yield np.round(logp, decimals), 0.5 * 10.0**-decimals


def violations(p: np.ndarray, rng: np.random.Generator) -> int:
    """Entropies outside their interval, for each K and print-out, with drawn token and vocabulary size known or not."""
    n, vocab = p.shape
    truth, outside = direct_entropy(p), 0
    with np.errstate(divide="ignore"):
        logp = np.log(p)
    columns = np.argsort(-logp, axis=1)
    drawn = (p.cumsum(axis=1) > rng.random((n, 1))).argmax(axis=1)
    for k in (k for k in (1, 2, 5, 20) if k <= vocab):
        listed = np.concatenate((np.take_along_axis(logp, columns[:, :k], axis=1), logp[np.arange(n), drawn, None]), 1)
        for values, precision in printed(listed, rng):
            for sampled, size in product((None, values[:, k]), (vocab, DEFAULT_VOCAB_SIZE)):
                lower, upper, point = entropy_bounds(values[:, :k], size, sampled=sampled, precision=precision)
                assert ((lower <= point) & (point <= upper)).all()
                # At K = V without a stated precision the value is as exact as its input.
                slack = 2e-5 if k == size else 1e-12
                outside += int(((lower > truth + slack) | (upper < truth - slack)).sum())
    return outside


def test_bounds_hold_on_100000_random_distributions() -> None:
    """0 violations, for K of 1, 2, 5 and 20, in each case of `violations`."""
    rng, n, distributions, found = np.random.default_rng(7), 2_800, 0, {}
    for family, vocab in product(FAMILIES, VOCABULARIES):
        p = family(rng, n, vocab)
        distributions += len(p)
        found[family.__name__, vocab] = violations(p, rng)
    assert distributions >= 100_000
    assert not any(found.values()), found


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


def test_a_vocabulary_that_cannot_hold_the_rest_is_refused() -> None:
    """0.3 is left to tokens of at most 0.01 each: there are at least 30 beside the two that are known."""
    known = np.log([0.69, 0.01])
    for vocab_size in (32, 50_000, DEFAULT_VOCAB_SIZE):
        assert np.isfinite(entropy_bounds(known, vocab_size).lower)
    with pytest.raises(
        VocabularySizeError, match=r"hold 0\.3 of the probability, none more than 0\.01, which takes at le"
    ):
        entropy_bounds(known, 31)
    rows = np.log([[0.69, 0.01], [0.9, 0.09]])
    with pytest.raises(VocabularySizeError, match=r"a vocabulary of 20 tokens is too small: .* takes at least 32;"):
        entropy_bounds(rows, 20)
    # Lists that may not be the best ones, a drawn token that takes a share, and rounded numbers say less.
    assert np.isfinite(entropy_bounds(known, 20, tail_cap=0.0).upper)
    assert np.isfinite(entropy_bounds(np.log([0.5, 0.2]), 4, sampled=np.log(0.11), precision=0.0).upper)
    assert np.isfinite(entropy_bounds(np.log([0.5, 0.2499]), 3, precision=5e-4).upper)
    with pytest.raises(VocabularySizeError):
        entropy_bounds(np.log([0.5, 0.2499]), 3)


@pytest.mark.parametrize("vocab_size", [3, 151_936, DEFAULT_VOCAB_SIZE])
def test_rounding_of_a_nearly_certain_distribution_refutes_nothing(vocab_size: int) -> None:
    """A sum that float32 left short by 1e-13, which tokens of 1e-174 cannot make up."""
    found = entropy_bounds([-1e-13, -400.0], vocab_size)
    assert (found.lower, found.point) == (pytest.approx(0.0, abs=1e-10), pytest.approx(0.0, abs=1e-10))


@pytest.mark.parametrize("least", [-100.0, -740.0, -745.0])
def test_a_list_that_no_vocabulary_completes_refutes_none(least: float) -> None:
    for vocab_size in (3, 50_000, DEFAULT_VOCAB_SIZE):
        with pytest.raises(InvalidValueError, match=r"leaves 0\.632 of the probability .* more than any") as raised:
            entropy_bounds([-1.0, least], vocab_size)
        assert not isinstance(raised.value, VocabularySizeError)


def test_a_list_that_lacks_a_likelier_drawn_token_refutes_no_vocabulary() -> None:
    """0.98 is left to tokens of at most 1e-5, says the list; the drawn token alone holds 0.9 of it."""
    lists = np.log([[[0.5, 0.4], [0.02, 1e-5]]])
    with pytest.raises(InvalidValueError, match=r"at most 1e-05 each, but the drawn token is likelier") as raised:
        entropy_bounds(lists, 100, sampled=np.log([[0.5, 0.9]]))
    assert not isinstance(raised.value, VocabularySizeError)
    for drawn in (0.02, 1e-7, np.nan):  # listed, outside of the best, unknown
        with pytest.raises(VocabularySizeError):
            entropy_bounds(lists[0, 1:], 100, sampled=np.log([drawn]))
