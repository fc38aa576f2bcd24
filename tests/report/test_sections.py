"""Values of the page's parts by hand: the histogram of the signal."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from builders import make_trajectory
from study_builders import evaluated

from deltah import Trajectory
from deltah.report.data import ArmData, ReportData
from deltah.report.page import build


def calls(*trajectories: Trajectory) -> dict[str, Any]:
    data = ReportData(title="t", arms=(ArmData(name="a", evaluations={"logs": evaluated(trajectories)}),))
    (found,) = build(data)["calls"]
    return dict(found)


def test_the_histogram_counts_every_defined_value_and_zero_is_not_reduced() -> None:
    """ΔH of -0.5, 0, 1 and 7.5 on 24 bins: below 0 only the first, at the outer edge the last."""
    found = calls(make_trajectory([[1.0], [0.5], [0.5], [1.5], [9.0]]))
    edges, (panel,) = np.array(found["edges"]), found["histograms"]
    assert (len(edges), edges[12]) == (25, 0.0)
    np.testing.assert_allclose(edges, -edges[::-1])
    assert edges[-1] == pytest.approx(np.quantile([0.5, 0.0, 1.0, 7.5], 0.99), abs=1e-6)
    assert (panel["undefined"], sum(panel["counts"])) == (0, 4)
    assert [i for i, n in enumerate(panel["counts"]) if n] == [11, 12, 13, 23]


def test_calls_without_a_value_are_counted_beside_the_histogram() -> None:
    found = calls(make_trajectory([[2.0], [1.0], [0.5]], unanswered_last=True))
    (panel,) = found["histograms"]
    assert (panel["undefined"], sum(panel["counts"])) == (1, 1)


def test_nothing_called_has_an_empty_histogram() -> None:
    found = calls(make_trajectory([[1.0]]))
    assert (found["edges"][0], found["edges"][-1]) == (-1.0, 1.0)
    assert sum(found["histograms"][0]["counts"]) == 0
