"""Scoring whole logs: any number of processes gives the same numbers, those of the trajectories read one by one."""

from __future__ import annotations

import gzip
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import make_trajectory

from deltah.calls.callfile import CallWriter
from deltah.calls.logs import LogOptions, ScoredLog
from deltah.calls.rows import call_rows, calls_by
from deltah.calls.savings import Costs, Prices
from deltah.core.metrics import batch_metrics
from deltah.errors import DataError
from deltah.report.data import Evaluation
from deltah.stats.callgroups import CallSummary, summarise_calls
from deltah.stats.scoring import LogScore, score_log
from deltah.traces import write_traces
from deltah.traces.parquet import write_parquet

COSTS = Costs(prices=Prices(input_per_million=1.0, cached_input_per_million=0.1, output_per_million=2.0))


def trajectories(start: int, n: int) -> list[Any]:
    rng = np.random.default_rng(start)
    return [
        make_trajectory(
            rng.gamma(1.0, 1.0, (int(rng.integers(1, 5)), 3)).tolist(),
            half_width=0.3 * (i % 2),
            id=f"t{i}",
            outcome=float(rng.integers(0, 2)),
            metadata={"task_id": i // 3},
        )
        for i in range(start, start + n)
    ]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A log of files of every kind."""
    logs = tmp_path / "logs"
    write_traces(logs / "a.jsonl", trajectories(0, 40))
    write_parquet(logs / "b.parquet", trajectories(40, 40))
    write_traces(logs / "c.jsonl.gz", trajectories(80, 40))
    with (logs / "a.jsonl").open("a") as file:
        file.write('{"segments": "broken"\n')
    return logs


def score_with(folder: Path, workers: int, **options: Any) -> tuple[ScoredLog, LogScore]:
    log = ScoredLog([str(folder)], LogOptions(**options))
    return log, score_log(log, costs=COSTS, workers=workers)


def flat(summary: CallSummary) -> list[float]:
    return [x for value in asdict(summary).values() for x in (value.values() if isinstance(value, dict) else [value])]


def plain(scored: LogScore) -> dict[str, Any]:
    """Everything that was kept, comparable."""
    calls = scored.calls
    return {
        "facts": scored.facts,
        "metrics": scored.metrics.row(),
        "tables": repr((calls.by_tool(), calls.by_round(), calls.by_outcome())),
    }


def test_the_number_of_processes_changes_nothing(folder: Path) -> None:
    (one_log, one), (two_log, two) = (score_with(folder, workers) for workers in (1, 2))
    assert one.facts.trajectories == 120
    assert plain(one) == plain(two)
    assert one_log.reader.problems == two_log.reader.problems != ()


def test_parts_add_up_to_the_trajectories_read_one_by_one(folder: Path) -> None:
    log = ScoredLog([str(folder)])
    pairs = sorted(log, key=lambda pair: int(pair[0].id[1:]))
    _, scored = score_with(folder, 1)
    assert scored.facts == Evaluation.of(pairs, costs=COSTS).facts
    expected = call_rows(pairs)
    by_tool = {name: summarise_calls(rows) for name, rows in calls_by(expected, lambda row: row.tool).items()}
    by_round = {k: summarise_calls(rows) for k, rows in calls_by(expected, lambda row: row.round).items()}
    for found, whole in ((scored.calls.by_tool(), by_tool), (scored.calls.by_round(), by_round)):
        assert set(found) == set(whole)
        for name, summary in found.items():
            assert flat(summary) == pytest.approx(flat(whole[name]), rel=1e-9, nan_ok=True)
    row = batch_metrics([s for _, s in pairs if s is not None], np.array([t.outcome for t, _ in pairs]))
    assert scored.metrics.row() == pytest.approx(row, rel=1e-12)


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_rows_come_in_the_order_of_the_log(folder: Path, tmp_path: Path, suffix: str) -> None:
    written = []
    for workers in (1, 2):
        path = tmp_path / f"calls{suffix}"
        with CallWriter(path) as writer:
            log = ScoredLog([str(folder)])
            assert score_log(log, rows=writer, workers=workers).facts.calls == writer.n_written > 0
        written.append(path.read_bytes())
    assert written[0] == written[1]
    if suffix == ".jsonl":
        names = [json.loads(line)["trajectory"] for line in written[0].splitlines()]
        assert list(dict.fromkeys(names)) == [t.id for i in (0, 40, 80) for t in trajectories(i, 40) if t.calls]


def test_grades_reach_every_process_and_their_matches_are_counted(folder: Path, tmp_path: Path) -> None:
    grades = tmp_path / "grades.jsonl"
    grades.write_text("".join(json.dumps({"id": f"t{i}", "score": 0.25}) + "\n" for i in range(0, 120, 2)))
    log, scored = score_with(folder, 2, answers=str(grades))
    assert log.n_matched == 60
    ungraded = [t.outcome for i in (0, 40, 80) for t in trajectories(i, 40)][1::2]
    assert scored.metrics.row()["deltah/outcome"] == pytest.approx((60 * 0.25 + sum(ungraded)) / 120)


def test_without_looking_for_waste_no_call_is_called_waste(folder: Path, tmp_path: Path) -> None:
    with CallWriter(tmp_path / "calls.jsonl") as writer:
        scored = score_log(ScoredLog([str(folder)]), rows=writer, waste=False)
    rows = [json.loads(line) for line in (tmp_path / "calls.jsonl").read_text().splitlines()]
    assert {(row["waste"], row["verdict"]) for row in rows} == {(None, None)}
    assert scored.facts.savings.certified_and_likely.calls == 0
    _, full = score_with(folder, 1)
    assert full.facts.savings.certified_and_likely.calls > 0
    assert scored.metrics.row() == full.metrics.row()


def test_a_problem_in_another_process_stops_strict_scoring(folder: Path) -> None:
    with pytest.raises(DataError, match=r"a\.jsonl, line 41"):
        score_with(folder, 2, strict=True)


def test_a_damaged_archive_among_parts_is_counted_once(folder: Path) -> None:
    packed = (folder / "c.jsonl.gz").read_bytes()
    (folder / "c.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    assert gzip.decompress(packed)
    log, scored = score_with(folder, 2)
    assert log.reader.n_problems == 2
    assert 80 < scored.facts.trajectories < 120
