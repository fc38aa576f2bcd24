"""What is called waste in the labelled set of the experiment, drawn with another seed than the published one."""

from __future__ import annotations

from pathlib import Path

import pytest

from deltah import CallTable


@pytest.mark.parametrize(("declared", "least_recall"), [(True, 0.7), (False, 0.0)])
def test_nearly_all_calls_that_are_called_waste_are(
    declared: bool, least_recall: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "experiments"))
    import waste_labels

    rows, labels = waste_labels.labelled_set(seed=7, rounds=18)
    table = CallTable.of(rows, tools=waste_labels.TOOLS if declared else None)
    levels = table.sql("SELECT waste_level, verdict FROM calls ORDER BY key, index").fetchall()
    assert len(levels) == len(labels) > 200
    called = [label for label, (level, _) in zip(labels, levels, strict=True) if level in ("certified", "likely")]
    of_waste = [found for label, found in zip(labels, levels, strict=True) if label and found[1] != "reduced"]
    missed = [level in ("hint", "none") for level, _ in of_waste]
    assert sum(called) >= 0.98 * len(called)
    assert 1 - sum(missed) / len(missed) >= least_recall
