"""Statistics of the pilot study: parity with scipy and with brute force, honesty about thin groups."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu, pearsonr, pointbiserialr, rankdata, spearmanr
from stats.study_tables import make_table, simulate

from deltah.core.types import FloatArray
from deltah.errors import InvalidValueError
from deltah.stats.associations import Association, associate, block_tests, holm, sign_flip_p
from deltah.stats.bootstrap import auc_interval, cluster_weights
from deltah.stats.columns import StudyTable
from deltah.stats.replicates import (
    STATISTICS,
    blocks,
    controls_of,
    doubled_ranks,
    order_of,
    running_sum,
)
from deltah.stats.study_text import size_note


def brute_auc(x: FloatArray, y: FloatArray, strata: FloatArray) -> float:
    """Concordant pairs of a positive and a negative of one stratum, ties a half."""
    won = pairs = 0.0
    for i, j in itertools.product(np.flatnonzero(y == 1), np.flatnonzero(y == 0)):
        if strata[i] == strata[j]:
            pairs += 1
            won += 1.0 if x[i] > x[j] else 0.5 if x[i] == x[j] else 0.0
    return won / pairs if pairs else math.nan


def residual_correlation(a: FloatArray, b: FloatArray, z: FloatArray) -> float:
    """Partial correlation by least squares and scipy."""
    left = [v - z @ np.linalg.lstsq(z, v, rcond=None)[0] for v in (a, b)]
    return float(pearsonr(*left).statistic)


def mixed_table(seed: int = 3, n: int = 160, questions: int = 30) -> StudyTable:
    """Ties, missing values on both sides, a graded label, two tools, rare late indices."""
    rng = np.random.default_rng(seed)
    cluster = np.sort(rng.integers(0, questions, n))
    cluster = np.unique(cluster, return_inverse=True)[1]
    x = rng.normal(size=n)
    y = (x + rng.normal(size=n) > 0).astype(float)
    return make_table(
        cluster,
        {"x": x, "tied": np.round(x), "sign": (x > 0), "gaps": np.where(rng.random(n) < 0.2, np.nan, x**3)},
        {"y": y, "some": np.where(rng.random(n) < 0.3, np.nan, y), "graded": np.round(y + rng.normal(size=n), 1)},
        index=rng.integers(1, 5, n),
        tokens=rng.integers(1, 40, (n, 2)),
        tool=rng.integers(0, 2, n),
    )


def by_pair(found: tuple[Association, ...]) -> dict[tuple[str, str], Association]:
    return {(a.signal, a.label): a for a in found}


def test_estimates_equal_scipy() -> None:
    table = mixed_table()
    controls = controls_of(table)
    for (signal, label), a in by_pair(associate(table, resamples=100, permutations=100)).items():
        column = table.with_baseline()[signal]
        both = np.isfinite(column) & np.isfinite(table.labels[label])
        x, y, z = column[both], table.labels[label][both], controls.design[both]
        assert (a.spearman.n, a.spearman.left_out) == (both.sum(), len(table) - both.sum())
        assert a.spearman.value == pytest.approx(spearmanr(x, y).statistic, abs=1e-12)
        assert a.point_biserial.value == pytest.approx(pointbiserialr(y, x).statistic, abs=1e-12)
        if signal != "call_index":
            assert a.partial_point_biserial.value == pytest.approx(residual_correlation(x, y, z), abs=1e-12)
            ranks = residual_correlation(rankdata(x), rankdata(y), z)
            assert a.partial_spearman.value == pytest.approx(ranks, abs=1e-12)
        if label != "graded":
            u = mannwhitneyu(x[y == 1], x[y == 0]).statistic
            assert a.auc.value == pytest.approx(u / ((y == 1).sum() * (y == 0).sum()), abs=1e-12)


def test_stratified_auc_equals_brute_force() -> None:
    table = mixed_table()
    controls = controls_of(table)
    found = by_pair(associate(table, resamples=100, permutations=100))
    for signal, label in itertools.product(table.signals, ("y", "some")):
        both = np.isfinite(table.signals[signal]) & np.isfinite(table.labels[label])
        x, y = table.signals[signal][both], table.labels[label][both]
        a = found[signal, label]
        assert a.auc_within_index.value == pytest.approx(brute_auc(x, y, table.index[both]), abs=1e-12)
        assert a.auc_stratified.value == pytest.approx(brute_auc(x, y, controls.stratum[both]), abs=1e-12)


def statistics_by_scipy(x: FloatArray, y: FloatArray, z: FloatArray, strata: list[FloatArray]) -> dict[str, float]:
    aucs = dict(zip(STATISTICS[:3], (brute_auc(x, y, s) for s in strata), strict=True))
    return aucs | {
        "spearman": float(spearmanr(x, y).statistic),
        "partial_spearman": residual_correlation(rankdata(x), rankdata(y), z),
        "point_biserial": float(pearsonr(x, y).statistic),
        "partial_point_biserial": residual_correlation(x, y, z),
    }


def test_a_resample_is_the_repeated_sample() -> None:
    """Every statistic of weights w is that of the data with each question written w times."""
    table = mixed_table(seed=5, n=40, questions=9)
    weights = next(cluster_weights(table.n_clusters, resamples=100, seed=1))[:4].astype(float)
    compared = 0
    for block in blocks(table):
        found = block.of_weights(weights)
        for b, s, j in itertools.product(range(4), range(len(block.signals)), range(len(block.labels))):
            copies = np.repeat(np.arange(len(block)), weights[b][block.cluster].astype(int))
            strata = [codes[copies] for codes in block.strata]
            expected = statistics_by_scipy(block.x[copies, s], block.y[copies, j], block.z[copies], strata)
            for column, name in enumerate(STATISTICS):
                if name.startswith("auc") and not block.binary[j]:
                    assert np.isnan(found[b, s, j, column])
                elif not (name.startswith("partial") and block.signals[s] == "call_index"):
                    assert found[b, s, j, column] == pytest.approx(expected[name], abs=1e-9, nan_ok=True)
                    compared += 1
    assert compared > 300


def test_interval_is_the_bootstrap_of_the_repeated_sample() -> None:
    rng = np.random.default_rng(0)
    table = simulate(rng, 25, effect=0.7)
    a = associate(table, resamples=150, permutations=100, seed=4)[0]
    replicates = []
    for weights in cluster_weights(table.n_clusters, resamples=150, seed=4):
        for w in weights:
            copies = np.repeat(np.arange(len(table)), w[table.cluster])
            x, y = table.signals["x"][copies], table.labels["y"][copies]
            u = mannwhitneyu(x[y == 1], x[y == 0]).statistic
            replicates.append(u / ((y == 1).sum() * (y == 0).sum()))
    rarer = min(len(np.unique(table.cluster[table.labels["y"] == value])) for value in (0.0, 1.0))
    expected = auc_interval(a.auc.value, np.array(replicates), rarer)
    assert (a.auc.low, a.auc.high) == pytest.approx(expected, abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(0, 4), st.integers(0, 2)), min_size=1, max_size=60))
def test_weighted_ranks_are_those_of_the_copies(rows: list[tuple[int, int, int]]) -> None:
    values, weights, strata = (np.array(column) for column in zip(*rows, strict=True))
    order = order_of(values.astype(float), np.zeros(len(rows), dtype=np.int64))
    ranks = np.empty(len(rows))
    ranks[order.rows] = (doubled_ranks(weights[order.rows, None].astype(float), order)[:, 0] + 1) / 2
    copies = np.repeat(np.arange(len(rows)), weights)
    np.testing.assert_allclose(ranks[copies], rankdata(values[copies]), atol=1e-12)
    assert (np.diff(strata[order_of(values.astype(float), strata).rows]) >= 0).all()


@given(st.integers(1, 700), st.integers(1, 3))
@settings(max_examples=25, deadline=None)
def test_running_sum(n: int, b: int) -> None:
    weights = np.random.default_rng(n).integers(0, 5, (n, b)).astype(float)
    np.testing.assert_array_equal(running_sum(weights), np.concatenate([np.zeros((1, b)), weights.cumsum(axis=0)]))


def test_thin_groups_say_so() -> None:
    n = 40
    x = np.arange(n, dtype=float)
    few = np.zeros(n)
    few[[0, 10, 20, 30]] = 1
    table = make_table(
        np.arange(n) // 2,
        {"x": x, "flat": np.ones(n), "never": np.full(n, np.nan)},
        {
            "few": few,
            "all": np.ones(n),
            "alternate": np.arange(n) % 2,
            "third": np.full(n, 0.3),
            "correct": np.full(n, np.nan),
            "mine": np.full(n, np.nan),
        },
    )
    found = by_pair(associate(table, resamples=100, permutations=100))
    assert found["x", "few"].reason == "4 questions with a good call; 5 are needed"
    assert found["x", "all"].reason == "0 questions with a call that is not good; 5 are needed"
    assert found["flat", "alternate"].reason == "the signal is the same for all calls"
    assert found["never", "alternate"].reason == "no call has this signal"
    assert found["x", "correct"].reason == "no call has this label"
    assert "--tasks, or log an outcome" in size_note([found["x", "correct"], found["call_index", "correct"]])
    assert size_note([found["x", "mine"]]) == "Not computed: no call has a value of mine."
    assert size_note([found["x", "few"]]).startswith("4 good of 40 calls, 20 questions.")
    assert found["x", "third"].reason == "the label is the same for all calls"
    for a in found.values():
        if a.reason is not None:
            values = [getattr(a, name).value for name in STATISTICS] + [a.p, a.p_holm, a.p_partial, a.p_partial_holm]
            assert np.isnan(values).all()
    within = found["x", "alternate"]
    assert within.reason is None
    assert (within.auc_within_index.n, within.auc_within_index.left_out) == (0, n)
    assert math.isnan(within.auc_within_index.value)
    assert within.auc.value == pytest.approx(0.525)


def test_the_baseline_has_no_partial_statistics() -> None:
    table = simulate(np.random.default_rng(1), 60, position=0.8)
    found = by_pair(associate(table, resamples=100, permutations=199))
    baseline = found["call_index", "y"]
    assert baseline.auc.value > 0.6
    assert np.isnan([baseline.auc_within_index.value, baseline.partial_spearman.value, baseline.p_partial]).all()
    assert np.isfinite([baseline.p, baseline.p_holm]).all()


def test_position_explains_away_what_it_makes() -> None:
    """Signal and label fall with the call index and are independent given it."""
    table = simulate(np.random.default_rng(2), 400, position=0.8)
    a = associate(table, resamples=200, permutations=999)[0]
    assert a.auc.low > 0.5
    assert a.p < 0.01
    assert a.auc_within_index.low < 0.5 < a.auc_within_index.high
    assert a.auc_stratified.low < 0.5 < a.auc_stratified.high
    assert a.partial_spearman.low < 0 < a.partial_spearman.high
    assert a.p_partial > 0.05


def test_a_planted_effect_is_found() -> None:
    table = simulate(np.random.default_rng(3), 120, effect=0.6, position=0.5)
    a = associate(table, resamples=200, permutations=9999)[0]
    assert a.auc_stratified.low > 0.5
    assert a.partial_spearman.low > 0
    assert a.p_partial_holm < 0.05


def test_sign_flips_by_hand() -> None:
    """Scores 1 to 5: of the 32 flips, 2 reach |15|; by Monte Carlo with P draws the share is 1/16."""
    scores = np.array([[1.0], [2.0], [3.0], [4.0], [5.0]])

    def p_of(column: FloatArray, permutations: int) -> float:
        nothing = np.zeros((len(column), 1, 1))
        return float(sign_flip_p(column[:, :, None], nothing, permutations=permutations, seed=0)[0, 0])

    assert p_of(scores, 40_000) == pytest.approx(1 / 16, abs=0.005)
    assert p_of(np.ones((60, 1)), 99) == pytest.approx(1 / 100)
    assert np.isnan(p_of(np.full((9, 1), np.nan), 100))
    assert p_of(np.zeros((9, 1)), 100) == 1.0


def test_a_flip_that_the_controls_absorb_counts_in_full() -> None:
    """Two questions of a = +-0.6: flipping one alone leaves a variance of 1 - 1.44 < 0, so that any value reaches."""
    scores, lost = np.array([3.0, 1.0]).reshape(2, 1, 1), np.array([0.6, -0.6]).reshape(2, 1, 1)
    assert sign_flip_p(scores, lost, permutations=4000, seed=0)[0, 0] == pytest.approx(1.0)
    assert sign_flip_p(scores, lost / 2, permutations=4000, seed=0)[0, 0] == pytest.approx(0.5, abs=0.03)


def test_sign_flips_agree_with_swapping_whole_questions() -> None:
    """With equally shaped questions label blocks can be swapped; both tests then say the same on average."""
    rng = np.random.default_rng(8)
    questions, calls = 80, 3
    differences = []
    for _ in range(40):
        x = rng.normal(size=(questions, calls)) + rng.normal(size=(questions, 1))
        y = (rng.normal(size=(questions, calls)) + rng.normal(size=(questions, 1)) + 0.15 * x > 0).astype(float)
        table = make_table(np.repeat(np.arange(questions), calls), {"x": x.ravel()}, {"y": y.ravel()})
        block = next(b for b in blocks(table) if "x" in b.signals)
        flips = block_tests(block, permutations=999, seed=0)[0][0, 0, 0]
        ranks = rankdata(x).reshape(x.shape) - (x.size + 1) / 2
        centred = y - y.mean()
        observed = abs((ranks * centred).sum())
        swapped = [abs((ranks * centred[rng.permutation(questions)]).sum()) for _ in range(400)]
        differences.append(flips - (1 + sum(value >= observed for value in swapped)) / 401)
    assert abs(np.mean(differences)) < 0.015
    assert np.mean(np.abs(differences)) < 0.04


def test_holm_by_hand() -> None:
    p = np.array([0.01, np.nan, 0.04, 0.03, 0.005])
    np.testing.assert_allclose(holm(p), [0.03, np.nan, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm(np.array([0.6, 0.7])), [1.0, 1.0])
    assert len(holm(np.array([]))) == 0


def test_same_seed_same_numbers() -> None:
    table = mixed_table()
    first, again = (associate(table, resamples=100, permutations=100, seed=7) for _ in range(2))
    other = associate(table, resamples=100, permutations=100, seed=8)
    assert repr(first) == repr(again)
    assert repr(first) != repr(other)


def test_order_of_calls_does_not_matter() -> None:
    table = mixed_table()
    shuffled = np.random.default_rng(0).permutation(len(table))
    other = StudyTable(
        cluster=table.cluster[shuffled],
        index=table.index[shuffled],
        tokens=table.tokens[shuffled],
        tool=table.tool[shuffled],
        tools=table.tools,
        calls=tuple(table.calls[i] for i in shuffled),
        signals={name: column[shuffled] for name, column in table.signals.items()},
        labels={name: column[shuffled] for name, column in table.labels.items()},
    )
    a, b = (by_pair(associate(t, resamples=100, permutations=100)) for t in (table, other))
    for key, one in a.items():
        for name in STATISTICS:
            mine, theirs = getattr(one, name), getattr(b[key], name)
            expected = (mine.value, mine.low, mine.high)
            assert (theirs.value, theirs.low, theirs.high) == pytest.approx(expected, abs=1e-9, nan_ok=True)


def test_too_few_draws_are_refused() -> None:
    with pytest.raises(InvalidValueError, match="permutations is 10; expected 100"):
        associate(mixed_table(), permutations=10)
    with pytest.raises(InvalidValueError, match="resamples is 10; expected 100"):
        associate(mixed_table(), resamples=10)


def test_progress_reaches_its_total() -> None:
    seen: list[tuple[int, int]] = []
    associate(
        mixed_table(), resamples=130, permutations=100, on_progress=lambda done, total: seen.append((done, total))
    )
    assert seen[-1][0] == seen[-1][1]
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
