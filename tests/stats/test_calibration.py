"""What the study's numbers are worth: size of its tests, coverage of its intervals, few calls, rare tools, edges."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import pearsonr
from stats.study_tables import make_table, simulate

from deltah.stats.associations import associate
from deltah.stats.columns import StudyTable
from deltah.stats.replicates import STATISTICS


def probed(rng: np.random.Generator, calls: int) -> StudyTable:
    """A log of 120 questions and six tools, of which a probe measured one call of each of some questions."""
    table = simulate(rng, 120)
    first = np.flatnonzero(np.diff(table.cluster, prepend=-1))
    probed = rng.choice(first, calls, replace=False) + rng.integers(0, np.bincount(table.cluster).min(), calls)
    x = np.full(len(table), np.nan)
    x[probed] = rng.normal(size=calls)
    return make_table(
        table.cluster,
        {"x": x},
        table.labels,
        index=table.index,
        tokens=table.tokens,
        tool=rng.integers(0, 6, len(table)),
    )


def test_partial_tests_of_few_calls_keep_their_size() -> None:
    """Twenty calls that nothing but chance decides, given a dozen columns of controls."""
    rng = np.random.default_rng(0)
    p = np.array([associate(probed(rng, 20), resamples=100, permutations=199)[0].p_partial for _ in range(150)])
    assert np.isfinite(p).all()
    assert (p <= 0.05).mean() < 0.1


def test_no_partial_statistics_where_the_controls_leave_nothing() -> None:
    a = associate(probed(np.random.default_rng(3), 11), resamples=100, permutations=199)[0]
    assert a.reason is None
    assert np.isfinite([a.spearman.value, a.point_biserial.value, a.p]).all()
    assert np.isnan([a.partial_spearman.value, a.partial_point_biserial.value, a.p_partial, a.p_partial_holm]).all()


def test_calls_of_two_rare_tools_are_no_pair() -> None:
    """Tools too rare for a column of their own are still different tools."""
    rng = np.random.default_rng(0)
    n = 60
    table = make_table(
        np.arange(n),
        {"x": rng.normal(size=n)},
        {"y": np.tile([0, 1], 30)},
        index=np.ones(n),
        tool=np.concatenate([np.zeros(40), np.tile([1, 2], 10)]),
    )
    a = associate(table, resamples=100, permutations=100)[0]
    assert a.auc_stratified.n == 40  # among calls of tool 1 all are bad, of tool 2 all are good


def test_a_graded_label_far_from_zero() -> None:
    """Dates in seconds: their squares have more digits than a float."""
    rng = np.random.default_rng(0)
    n = 300
    x = rng.normal(size=n)
    date = 1.7e9 + np.round(x + rng.normal(size=n), 3)
    a = associate(make_table(np.arange(n), {"x": x}, {"date": date}), resamples=100, permutations=100)[0]
    assert a.point_biserial.value == pytest.approx(pearsonr(x, date).statistic, abs=1e-9)
    assert a.point_biserial.low < a.point_biserial.value < a.point_biserial.high


def test_perfect_separation_is_not_certainty() -> None:
    table = make_table(np.arange(16), {"x": np.arange(16)}, {"y": np.arange(16) >= 8})
    a = associate(table, resamples=100, permutations=100)[0]
    assert (a.auc.value, a.auc.high) == (1.0, 1.0)
    assert a.auc.low == pytest.approx(0.025 ** (1 / 8))


def test_intervals_of_a_great_auc_cover() -> None:
    """Ten questions, a true AUC of Phi(2) = 0.977: percentiles contain it in three of four samples only."""
    rng, hits, runs = np.random.default_rng(1), 0, 200
    for _ in range(runs):
        label = np.repeat(np.arange(20) % 2, 2)
        x = rng.normal(size=40) + 2 * math.sqrt(2) * label
        table = make_table(np.arange(40) // 4, {"x": x}, {"y": label}, index=np.ones(40))
        a = associate(table, resamples=200, permutations=100)[0]
        hits += a.auc.low <= 0.97725 <= a.auc.high
    assert hits / runs > 0.92


@pytest.mark.slow
def test_p_values_are_uniform_under_the_null() -> None:
    """Both levels are shared by a question's calls, independently of each other: no association."""
    rng = np.random.default_rng(11)
    raw, partial = [], []
    for _ in range(600):
        a = associate(simulate(rng, 60), resamples=100, permutations=199)[0]
        raw.append(a.p)
        partial.append(a.p_partial)
    for p in (np.array(raw), np.array(partial)):
        for level in (0.05, 0.1, 0.25, 0.5):
            assert (p <= level).mean() == pytest.approx(level, abs=3 * math.sqrt(level * (1 - level) / 600) + 0.005)


@pytest.mark.slow
def test_intervals_cover() -> None:
    """Coverage of the true AUC and of true correlations of about 95 % under clustering and an effect."""
    rng = np.random.default_rng(12)
    truth = associate(
        simulate(np.random.default_rng(0), 40_000, effect=0.5, position=0.3), resamples=100, permutations=100
    )[0]
    hits = dict.fromkeys(STATISTICS, 0)
    runs = 400
    for _ in range(runs):
        a = associate(simulate(rng, 80, effect=0.5, position=0.3), resamples=400, permutations=100)[0]
        for name in STATISTICS:
            estimate = getattr(a, name)
            hits[name] += estimate.low <= getattr(truth, name).value <= estimate.high
    for name, count in hits.items():
        assert 0.92 <= count / runs <= 0.985, name
