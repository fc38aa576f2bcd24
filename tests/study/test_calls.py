"""Calls by tool and by round index, and their histogram."""

from __future__ import annotations

import math

import numpy as np
from builders import make_trajectory

from deltah import Trajectory, score
from deltah.calls.rows import call_rows, calls_by, histogram, histogram_edges
from deltah.stats.callgroups import summarise_calls


def test_rows_share_the_round_of_parallel_calls() -> None:
    t = make_trajectory([[2.0], [1.0], [3.0]], calls_per_round=[2, 1])
    rows = call_rows([(t, score(t))])
    assert [(r.round, r.delta_h) for r in rows] == [(1, -1.0), (1, -1.0), (2, 2.0)]
    by_round = {k: summarise_calls(v) for k, v in calls_by(rows, lambda r: r.round).items()}
    assert (by_round[1].n, by_round[1].reduction_rate.value, by_round[1].mean_value.value) == (2, 1.0, -1.0)
    assert (by_round[2].n, by_round[2].reduction_rate.value, by_round[2].mean_value.value) == (1, 0.0, 2.0)


def test_unmeasured_and_unanswered_calls_are_counted() -> None:
    t = make_trajectory([[2.0], [1.0], [0.5]], unanswered_last=True)
    bare = Trajectory(id="b", segments=t.segments, calls=t.calls)
    s = summarise_calls(call_rows([(t, score(t)), (bare, None)]))
    assert (s.n, s.unanswered, s.undefined) == (4, 2, 1)
    assert (s.reduction_rate.value, s.reduction_rate.n, s.reduction_rate.left_out) == (0.5, 2, 2)
    assert (s.mean_value.n, s.mean_value.left_out) == (1, 3)
    empty = summarise_calls([])
    assert math.isnan(empty.reduction_rate.value)
    assert empty.n == 0


def test_histogram_counts_every_defined_value_and_zero_is_not_reduced() -> None:
    t = make_trajectory([[1.0], [0.5], [0.5], [1.5], [9.0]])
    rows = call_rows([(t, score(t))])
    edges = histogram_edges(rows, bins=4)
    assert len(edges) == 5
    assert edges[2] == 0
    counts = histogram(rows, edges)
    assert counts.sum() == 4
    assert counts[:2].sum() == 1  # only the -0.5
    np.testing.assert_allclose(edges, -edges[::-1])
    assert histogram([], histogram_edges([])).sum() == 0
