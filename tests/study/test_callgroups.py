"""Groups of calls: sums that merge, and memory that does not grow with the questions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import deltah.stats.callgroups
from deltah.calls.rows import CallRow
from deltah.calls.waste import WasteLevel
from deltah.core.signal_types import Verdict
from deltah.core.types import CallStatus
from deltah.stats.bootstrap import MAX_RESAMPLED
from deltah.stats.callgroups import OTHER_TOOLS, CallTables, question_group, summarise_calls

ROW = CallRow(
    cluster=("id", "q"),
    tool="search",
    round=1,
    status=CallStatus.OK,
    delta_h=-0.5,
    label=Verdict.REDUCED,
    waste=frozenset(),
    verdict=WasteLevel.NONE,
    correct=None,
)


def rows(n_questions: int, calls: int = 2, seed: int = 0) -> list[CallRow]:
    rng = np.random.default_rng(seed)
    labels = [*Verdict, None]
    return [
        replace(
            ROW,
            cluster=("id", f"q{q}"),
            tool=("search", "python", "")[int(rng.integers(3))],
            round=k + 1,
            status=list(CallStatus)[int(rng.integers(3))],
            delta_h=float(rng.normal()) if rng.random() < 0.9 else float("nan"),
            label=labels[int(rng.integers(len(labels)))],
            verdict=list(WasteLevel)[int(rng.integers(4))],
            correct=(None, True, False)[q % 3],
        )
        for q in range(n_questions)
        for k in range(calls)
    ]


def tables(listed: list[CallRow]) -> CallTables:
    found = CallTables()
    found.add(listed)
    return found


def test_few_questions_are_kept_apart() -> None:
    listed = rows(50)
    found = tables(listed)
    for name, summary in found.by_tool().items():
        assert repr(summary) == repr(summarise_calls([row for row in listed if row.tool == name]))
    assert list(found.by_round()) == [1, 2]
    assert {right: s.n for right, s in found.by_outcome().items()} == {True: 34, False: 32}


def test_tables_of_parts_merge_to_those_of_the_whole() -> None:
    listed = rows(60)
    whole, merged = tables(listed), CallTables()
    for start in range(0, len(listed), 17):
        merged.merge(tables(listed[start : start + 17]))
    for name in ("by_tool", "by_round", "by_outcome"):
        assert repr(getattr(whole, name)()) == repr(getattr(merged, name)())


@pytest.mark.parametrize("cut", [100, 2 * MAX_RESAMPLED + 10])
def test_many_questions_are_grouped_alike_in_any_order(cut: int) -> None:
    """Whether a part had to group its own questions or not."""
    listed = rows(MAX_RESAMPLED + 500)
    whole, merged = tables(listed), tables(listed[cut:])
    merged.merge(tables(listed[:cut]))
    for name, summary in whole.by_tool().items():
        other = merged.by_tool()[name]
        assert (summary.n, summary.errors, summary.certified) == (other.n, other.errors, other.certified)
        assert summary.mean_value.value == pytest.approx(other.mean_value.value)
        # Groups come in another order, and so do their draws.
        assert summary.mean_value.high - summary.mean_value.low == pytest.approx(
            other.mean_value.high - other.mean_value.low, rel=0.1
        )
    held = {len(group._sums) for group in whole._tools.groups.values()}
    assert max(held) <= MAX_RESAMPLED


def test_intervals_of_grouped_questions_are_those_of_single_ones() -> None:
    listed = [replace(row, tool="search") for row in rows(6000, calls=1)]
    grouped, single = tables(listed).by_tool()["search"], summarise_calls(listed)
    assert grouped.reduction_rate.value == single.reduction_rate.value
    assert (grouped.reduction_rate.n, grouped.reduction_rate.left_out) == (
        single.reduction_rate.n,
        single.reduction_rate.left_out,
    )
    for name in ("reduction_rate", "mean_value"):
        a, b = getattr(grouped, name), getattr(single, name)
        assert a.high - a.low == pytest.approx(b.high - b.low, rel=0.12)


def test_tools_beyond_the_limit_are_one_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deltah.stats.callgroups, "MAX_TOOLS", 3)
    found = tables([replace(ROW, tool=f"t{i}") for i in range(5)])
    found.merge(tables([replace(ROW, tool="t1"), replace(ROW, tool="t9")]))
    assert {name: s.n for name, s in found.by_tool().items()} == {"t0": 1, "t1": 2, "t2": 1, OTHER_TOOLS: 3}


def test_groups_do_not_depend_on_the_process() -> None:
    assert question_group(("id", "q1")) == question_group(("id", "q1")) < MAX_RESAMPLED
    assert question_group(("id", "\ud800")) >= 0
    spread = np.bincount([question_group(("id", str(i))) for i in range(100 * MAX_RESAMPLED)], minlength=MAX_RESAMPLED)
    assert spread.min() > 50
    assert spread.max() < 160


def test_a_rate_on_which_all_questions_agree_is_not_certain() -> None:
    found = summarise_calls([replace(ROW, cluster=("id", f"q{i}")) for i in range(8)])
    assert (found.reduction_rate.value, found.reduction_rate.high) == (1.0, 1.0)
    assert found.reduction_rate.low == pytest.approx(0.025 ** (1 / 8))
    assert (found.mean_value.low, found.mean_value.high) == (-0.5, -0.5)
