"""A whole training run in its directory: resume, refusals, agreement of metrics, traces and scores, evaluation."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from builders import make_trajectory

pytest.importorskip("trl")
from engines.training_fixtures import make_config, same, stop_at, stopped, weights
from safetensors.torch import load_file

from deltah import read_traces, score
from deltah.calls.grading import grader_of
from deltah.core import metrics
from deltah.core.metrics import batch_metrics
from deltah.engines.config import EvalConfig, EvaluateConfig, RolloutConfig, TrainConfig
from deltah.engines.trl import training
from deltah.engines.trl.rollout import evaluate, rollout
from deltah.engines.trl.training import train
from deltah.errors import ConfigError
from deltah.runs import RunDirectory
from deltah.tasks import read_tasks


def test_interrupted_run_resumes_to_the_undisturbed_result(files: Path, tmp_path: Path) -> None:
    assert_resumes_exactly(make_config(files), files, tmp_path, traced=[1, 2, 3, 4])


def test_further_passes_over_a_batch_are_logged_traced_and_resumed(files: Path, tmp_path: Path) -> None:
    """With two passes the even steps generate nothing: their rows count all the same."""
    config = make_config(files, num_iterations=2, trace_every=2)
    run = assert_resumes_exactly(config, files, tmp_path, traced=[1, 3])
    rows = list(run.read_metrics())
    assert [metrics.CALLS in row for row in rows] == [True, False, True, False]
    assert [row[metrics.SECONDS] for row in rows] == pytest.approx(np.cumsum([row["step_time"] for row in rows]))
    assert json.loads((run.path / "result.json").read_text())["seconds"] == pytest.approx(rows[-1][metrics.SECONDS])


@pytest.mark.parametrize(
    ("every", "stride", "written"),
    [(4, 1, [1, 4, 8]), (4, 2, [1, 5, 9]), (3, 2, [1, 3, 7, 9]), (1, 3, [1, 4, 7]), (20, 2, [1])],
)
def test_traces_are_of_the_first_batch_at_or_after_each_multiple(
    tmp_path: Path, every: int, stride: int, written: list[int]
) -> None:
    write = training._trace_writer(RunDirectory(tmp_path), every, stride)
    for step in range(1, 10, stride):
        write([make_trajectory([[1.0]])], [], step, "train")
        write([make_trajectory([[1.0]])], [], 99, "eval")
    assert [step_of(path) for path in sorted((tmp_path / "traces").iterdir())] == written


def step_of(trace: Path) -> int:
    return int(trace.name.split("-")[1].split(".")[0])


def assert_resumes_exactly(config: TrainConfig, files: Path, tmp_path: Path, *, traced: list[int]) -> RunDirectory:
    """Cut after step 3, so that a checkpoint of step 2 is continued."""
    whole = train(config, tmp_path / "whole")
    with stopped():
        train(config, tmp_path / "cut", progress=stop_at(3))
    assert not (tmp_path / "cut" / "result.json").exists()
    cut = train(config, tmp_path / "cut")
    start = load_file(files / "model" / "model.safetensors")
    a, b = weights(whole.path), weights(cut.path)
    assert not same(start, a)
    assert same(a, b)
    rows = [list(run.read_metrics()) for run in (whole, cut)]
    assert [row["step"] for row in rows[1]] == [1, 2, 3, 4]
    for x, y in zip(*rows, strict=True):
        assert {k: v for k, v in x.items() if k.startswith("deltah/") and k != "deltah/seconds"} == {
            k: v for k, v in y.items() if k.startswith("deltah/") and k != "deltah/seconds"
        }
    assert [step_of(path) for path in sorted((cut.path / "traces").iterdir())] == traced
    before = (cut.path / "result.json").stat().st_mtime_ns
    assert train(config, cut.path).path == cut.path  # a finished run is left as it is
    assert (cut.path / "result.json").stat().st_mtime_ns == before
    return cut


def test_a_step_shows_the_latest_figures_and_the_evaluation_its_progress(files: Path, tmp_path: Path) -> None:
    config = make_config(files, steps=3, num_iterations=2, eval=EvalConfig(tasks=str(files / "tasks.jsonl"), limit=3))
    steps: list[tuple[int, int, bool]] = []
    done: list[tuple[int, int]] = []
    train(
        config,
        tmp_path / "run",
        progress=lambda k, n, row: steps.append((k, n, metrics.CALLS in row)),
        evaluation_progress=lambda k, n, row: done.append((k, n)),
    )
    assert steps == [(1, 3, False), (2, 3, True), (3, 3, True)]  # the figures of the step before
    assert done == [(k, 6) for k in range(1, 7)]
    assert RunDirectory(tmp_path / "run").status == {"phase": "done", "done": 3, "total": 3}


def test_logged_metrics_equal_scores_of_the_written_traces(files: Path, tmp_path: Path) -> None:
    run = train(make_config(files, steps=2, save_every=5), tmp_path / "run")
    for row in run.read_metrics():
        trajectories = list(read_traces(run.step_traces(row["step"])))
        assert len(trajectories) == 8
        outcomes = np.array([t.outcome for t in trajectories])
        for key, value in batch_metrics([score(t) for t in trajectories], outcomes).items():
            if key in row:
                assert row[key] == pytest.approx(value, abs=1e-6), key


def test_another_configuration_is_refused_by_name(files: Path, tmp_path: Path) -> None:
    train(make_config(files, steps=1), tmp_path / "run")
    with pytest.raises(ConfigError, match="steps: 1 then, 2 now"):
        train(make_config(files, steps=2), tmp_path / "run")


def test_reports_to_tensorboard(files: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = train(make_config(files, steps=1, report_to=("tensorboard",)), tmp_path / "run")
    events = [p for p in run.path.rglob("events.out.tfevents*")]
    tags = EventAccumulator(str(events[0].parent)).Reload().Tags()["scalars"]
    assert any("deltah/calls" in tag for tag in tags)


def test_evaluation_is_written_once_and_graded(files: Path, tmp_path: Path) -> None:
    base = make_config(files)
    config = EvaluateConfig(rollout=base.rollout, eval=EvalConfig(tasks=base.tasks, limit=3))
    run = evaluate(config, tmp_path / "eval")
    greedy = list(read_traces(run.evaluation("greedy")))
    assert [t.metadata["task_id"] for t in greedy] == ["t0", "t1", "t2"]
    assert {grader_of(t) for t in greedy} == {"qa"}
    assert run.status == {"phase": "done", "done": 6, "total": 6}
    assert all(t.outcome is not None and t.entropy is not None for t in greedy)
    before = run.evaluation("sampled").stat().st_mtime_ns
    evaluate(config, tmp_path / "eval")
    assert run.evaluation("sampled").stat().st_mtime_ns == before


def test_rollouts_are_seeded_and_greedy_is_deterministic(files: Path) -> None:
    config, tasks = make_config(files).rollout, read_tasks(files / "tasks.jsonl")

    def ids(config: RolloutConfig, *, greedy: bool) -> list[list[int]]:
        return [t.token_ids.tolist() for t, _ in rollout(config, tasks, greedy=greedy, samples=2)]

    assert ids(config, greedy=False) == ids(config, greedy=False)
    assert ids(config, greedy=False) != ids(replace(config, seed=1), greedy=False)
    greedy = ids(config, greedy=True)
    assert greedy[0] == greedy[1]
