"""The study as a value: its figures by hand, strict JSON there and back, Markdown that nothing can break."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from stats.study_tables import make_table, study_table

from deltah.errors import DataError
from deltah.stats.associations import associate
from deltah.stats.study import (
    MAX_FAILURES,
    FailureKind,
    StudyResult,
    failures,
    histograms,
    positions,
    roc_curves,
    run_study,
)
from deltah.stats.study_text import study_markdown

NAN = float("nan")


def test_histogram_keeps_zero_on_the_side_of_no_reduction() -> None:
    values = [-1.0, -1e-9, 0.0, 1e-9, 1.0, NAN]
    table = make_table(range(6), {"delta_h": values}, {"good": [1, 1, 1, 0, 1, 1], "graded": [0.5] * 6})
    (found,) = histograms(table)
    middle = len(found.good) // 2
    assert found.edges[middle] == 0
    assert sum(found.good[:middle]) == 3
    assert (sum(found.good[middle:]), sum(found.other[middle:])) == (1, 1)
    assert (sum(found.other), found.left_out) == (1, 1)


def test_area_under_the_curve_is_the_auc() -> None:
    table = study_table()
    associations = associate(table, resamples=100, permutations=100)
    curves = roc_curves(table, associations)
    aucs = {(a.signal, a.label): a.auc.value for a in associations}
    assert {c.signal for c in curves} == {"delta_h", "entropy_before", "call_index"}
    for c in curves:
        assert (c.false_positive_rate[0], c.true_positive_rate[-1]) == (0, 1)
        x, y = np.array(c.false_positive_rate), np.array(c.true_positive_rate)
        area = (np.diff(x) * (y[1:] + y[:-1]) / 2).sum()
        tolerance = 0.01 if c.signal == "delta_h" else 1e-12
        assert area == pytest.approx(aucs[c.signal, c.label], abs=tolerance)


def test_position_effect_by_hand() -> None:
    table = make_table(
        [0, 0, 1, 1, 2],
        {"delta_h": [1, 0, 3, NAN, 2]},
        {"good": [1, 0, 1, 0, NAN]},
        index=[1, 2, 1, 9, 1],
    )
    first, second, late = positions(table, resamples=100, seed=0)
    assert (first.index, first.n, first.reduction.value, first.labels["good"].value) == ("1", 3, 2.0, 1.0)
    assert (first.labels["good"].n, first.labels["good"].left_out) == (2, 1)
    assert np.isnan(first.reduction.low)
    assert second.reduction.value == 0
    assert (late.index, late.n) == ("8 and later", 1)
    assert np.isnan(late.reduction.value)


def test_failure_cases_are_the_clearest_one_a_trajectory() -> None:
    table = make_table(
        [0, 0, 1, 2, 3],
        {"delta_h": [0.5, 0.9, 0.2, -0.7, NAN]},
        {"correct": [0, 0, 0, 1, 1]},
        index=[1, 2, 1, 1, 1],
    )
    found, counts = failures(table)
    assert [(f.kind, f.trajectory, f.index, f.reduction) for f in found] == [
        (FailureKind.FELL_AND_WRONG, "t0", 2, 0.9),
        (FailureKind.FELL_AND_WRONG, "t1", 1, 0.2),
        (FailureKind.ROSE_AND_RIGHT, "t2", 1, -0.7),
    ]
    assert counts == {FailureKind.FELL_AND_WRONG: 3, FailureKind.ROSE_AND_RIGHT: 1}
    assert failures(replace(table, labels={}))[0] == ()
    many = study_table(200)
    assert sum(f.kind is FailureKind.FELL_AND_WRONG for f in failures(many)[0]) == MAX_FAILURES


def test_strict_json_there_and_back() -> None:
    result = run_study(study_table(), resamples=100, permutations=100)
    text = json.dumps(result.as_dict(), allow_nan=False)
    again = StudyResult.from_dict(json.loads(text))
    assert repr(again) == repr(result)
    assert json.dumps(again.as_dict()) == text


def test_a_study_of_another_version_is_refused() -> None:
    data = run_study(study_table(), resamples=100, permutations=100).as_dict()
    with pytest.raises(DataError, match="schema_version 99, expected 1"):
        StudyResult.from_dict({**data, "schema_version": 99})
    with pytest.raises(DataError, match=r"cannot be read.*run `deltah study` again"):
        StudyResult.from_dict({**data, "calls": "many"})


def test_best_signal_first_and_numbers_before_reasons() -> None:
    result = run_study(study_table(), resamples=100, permutations=100)
    assert result.labels == ("correct", "grade", "thin")
    aucs = [a.auc.value for a in result.of_label("correct")]
    assert aucs == sorted(aucs, reverse=True)
    spearman = [a.spearman.value for a in result.of_label("grade")]
    assert spearman == sorted(spearman, reverse=True)
    assert all(np.isnan(a.auc.value) for a in result.of_label("grade"))


def test_markdown() -> None:
    result = run_study(study_table(), resamples=100, permutations=100)
    text = study_markdown(result)
    assert "## correct: the trajectory's outcome is 1" in text
    assert "Not computed: 0 questions with a call that is not good; 5 are needed." in text
    assert "| call\\_index (baseline) |" in text
    assert "Entropy fell and the answer was wrong" in text
    assert "over all 10 tests of the study" in text
    assert "The least possible p is 0.0099, 0.0990 after the correction" in text
    widths = {line.count(" | ") for line in text.splitlines() if line.startswith("| delta")}
    assert widths == {12}


def test_hostile_names_cannot_break_the_markdown() -> None:
    table = study_table()
    calls = tuple(("a|b\n# <script>`x", c[1]) for c in table.calls)
    text = study_markdown(run_study(replace(table, calls=calls), resamples=100, permutations=100))
    assert "a\\|b \\# \\<script\\>\\`x" in text
    assert "<script>" not in text


def test_shares_on_which_all_questions_agree_are_not_certain() -> None:
    table = make_table(range(12), {"delta_h": np.arange(12.0)}, {"good": np.ones(12), "grade": np.full(12, 0.5)})
    (row,) = positions(table, resamples=100, seed=0)
    assert (row.labels["good"].low, row.labels["good"].high) == pytest.approx((0.025 ** (1 / 12), 1.0))
    assert (row.labels["grade"].low, row.labels["grade"].high) == (0.5, 0.5)


def test_few_or_uneven_questions_are_named() -> None:
    def notes(cluster: np.ndarray) -> tuple[str, ...]:
        table = make_table(cluster, {"delta_h": np.arange(len(cluster))}, {"good": np.arange(len(cluster)) % 2})
        return run_study(table, resamples=100, permutations=100).notes

    assert notes(np.arange(60)) == ()
    assert "The 12 questions, with their unequal numbers of calls, weigh as much as 12 equal" in notes(np.arange(12))[0]
    assert notes(np.arange(4)) == ()  # too few for any number
    one_large = np.concatenate([np.arange(40), np.zeros(39, dtype=np.int64)])
    assert "The 40 questions, with their unequal numbers of calls, weigh as much as 4 equal" in notes(one_large)[0]
