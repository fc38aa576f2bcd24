"""Fields that several formats share: what does not fit is nothing, never an error."""

from __future__ import annotations

import math
from typing import Any

import pytest

from deltah.traces.importing import UNFIT_OUTCOME, epoch_seconds, outcome_of, unfit_outcome


@pytest.mark.parametrize("per_second", [1, 1e3, 1e6, 1e9])
@pytest.mark.parametrize("moment", [200_000_000, 1_795_622_378.073, 4_102_444_800])
def test_a_moment_is_told_in_any_unit(per_second: float, moment: float) -> None:
    """Of 1976, 2026 and 2100."""
    assert epoch_seconds(moment * per_second) == pytest.approx(moment, abs=1e-5)
    assert epoch_seconds(int(moment * per_second)) == pytest.approx(moment, abs=1)


@pytest.mark.parametrize("value", ["yesterday", "", "12:30", None, True, [1], math.nan, math.inf, 10**400])
def test_what_is_no_number_is_no_moment(value: Any) -> None:
    assert math.isnan(epoch_seconds(value))


def test_a_clock_that_did_not_start_in_1970_counts_seconds() -> None:
    assert [epoch_seconds(value) for value in (0, 12.5, -3.0, 86_400 * 365)] == [0, 12.5, -3.0, 86_400 * 365]


DATES = ["2026-11-25T10:00:00Z", "2026-11-25 12:00:00+02:00", "2026-11-25T10:00:00", " 2026-11-25T10 "]


@pytest.mark.parametrize("text", DATES)
def test_a_moment_may_be_a_date(text: str) -> None:
    assert epoch_seconds(text) == 1_795_600_800


@pytest.mark.parametrize("grade", [85, -0.5, 1.0001])
def test_a_grade_on_another_scale_is_kept_but_no_outcome(grade: float) -> None:
    assert outcome_of(grade) is None
    assert unfit_outcome(grade) == {UNFIT_OUTCOME: grade}


@pytest.mark.parametrize(("grade", "outcome"), [("0", 0.0), (" 0.25 ", 0.25), ("True", 1.0), ("nan", None)])
def test_a_grade_may_be_a_text(grade: str, outcome: float | None) -> None:
    assert outcome_of(grade) == outcome
    assert unfit_outcome("85") == {UNFIT_OUTCOME: 85.0}


@pytest.mark.parametrize("grade", [0, 0.5, True, None, "good", math.nan, math.inf, [1]])
def test_what_is_an_outcome_or_no_number_is_not_kept(grade: Any) -> None:
    assert unfit_outcome(grade) == {}
