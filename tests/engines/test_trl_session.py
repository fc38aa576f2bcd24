"""A whole training run in its directory: resume, refusals, agreement of metrics, traces and scores, evaluation."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("trl")
import torch
from engines.trl_fixtures import tiny_model
from safetensors.torch import load_file

from deltah import RewardConfig, read_traces, score
from deltah.core.metrics import batch_metrics
from deltah.engines.models import resolve_model
from deltah.engines.trl.acting import evaluate, rollout
from deltah.engines.trl.config import EvalConfig, EvaluateConfig, RolloutConfig, TrainConfig
from deltah.engines.trl.session import train
from deltah.errors import ConfigError, DataError, ModelError, TrainingError
from deltah.tasks import read_tasks
from deltah.tools import ToolConfig


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, tasks whose long answers a random model hits in part, and a corpus."""
    path = tmp_path_factory.mktemp("files")
    model, tokenizer = tiny_model()
    model.save_pretrained(path / "model")
    tokenizer.save_pretrained(path / "model")
    words = sorted(word.strip() for word in tokenizer.get_vocab() if word.strip().isalpha())
    answers = [" ".join(words[i::3]) for i in range(3)]
    tasks = [{"id": f"t{i}", "question": f"What is {i} times 7?", "answer": answers[i % 3]} for i in range(16)]
    (path / "tasks.jsonl").write_text("".join(json.dumps(t) + "\n" for t in tasks))
    (path / "corpus.jsonl").write_text('{"id": "1", "contents": "Port Anselm is a city."}\n')
    return path


def make_config(files: Path, **fields: object) -> TrainConfig:
    rollout_config = RolloutConfig(
        model=str(files / "model"),
        tool=ToolConfig(corpus=str(files / "corpus.jsonl")),
        max_completion_length=16,
        batch_size=8,
        device="cpu",
    )
    defaults: dict[str, object] = {
        "tasks": str(files / "tasks.jsonl"),
        "rollout": rollout_config,
        "reward": RewardConfig(name="dense"),
        "steps": 4,
        "prompts_per_step": 2,
        "generations": 4,
        "learning_rate": 1e-2,
        "save_every": 2,
        "trace_every": 1,
    }
    return TrainConfig(**{**defaults, **fields})


def weights(path: Path) -> dict[str, torch.Tensor]:
    return load_file(path / "model" / "model.safetensors")


class Stop(Exception):
    """Stands for a killed process."""


def stop_at(step: int):
    def progress(done: int, total: int, row: dict[str, float]) -> None:
        if done == step:
            raise Stop

    return progress


def test_interrupted_run_resumes_to_the_undisturbed_result(files: Path, tmp_path: Path) -> None:
    config = make_config(files)
    whole = train(config, tmp_path / "whole")
    with pytest.raises(Stop):
        train(config, tmp_path / "cut", progress=stop_at(3))
    assert not (tmp_path / "cut" / "result.json").exists()
    cut = train(config, tmp_path / "cut")
    start = load_file(files / "model" / "model.safetensors")
    a, b = weights(whole.path), weights(cut.path)
    assert any(not torch.equal(start[key], a[key]) for key in a)
    assert all(torch.equal(a[key], b[key]) for key in a)
    rows = [list(run.read_metrics()) for run in (whole, cut)]
    assert [row["step"] for row in rows[1]] == [1, 2, 3, 4]
    for x, y in zip(*rows, strict=True):
        assert {k: v for k, v in x.items() if k.startswith("deltah/") and k != "deltah/seconds"} == {
            k: v for k, v in y.items() if k.startswith("deltah/") and k != "deltah/seconds"
        }
    assert [p.name for p in sorted((cut.path / "traces").iterdir())] == [f"step-{i:06d}.jsonl.zst" for i in range(1, 5)]
    assert train(config, cut.path).path == cut.path  # a finished run is left as it is


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


def test_broken_numbers_stop_the_run(files: Path, tmp_path: Path) -> None:
    config = make_config(files, learning_rate=1e30, warmup_steps=0, trainer={"max_grad_norm": 0.0})
    with pytest.raises(TrainingError, match="not a finite number at step"):
        train(config, tmp_path / "run")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"tasks": "missing.jsonl"}, DataError, "missing.jsonl"),
        ({"trainer": {"no_such_field": 1}}, ConfigError, "trainer.no_such_field is not a field of TRL's GRPOConfig"),
        ({"trainer": {"num_generations": 3}}, ConfigError, "TRL refuses this configuration"),
    ],
)
def test_bad_input_is_one_sentence(
    files: Path, tmp_path: Path, change: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        train(make_config(files, **change), tmp_path / "run")
    assert not (tmp_path / "run").exists()  # so that the corrected command may use the directory


def test_evaluation_is_checked_before_training(files: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.jsonl"):
        train(make_config(files, eval=EvalConfig(tasks="nowhere.jsonl")), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_model_without_a_chat_template(files: Path, tmp_path: Path) -> None:
    model, tokenizer = tiny_model()
    tokenizer.chat_template = None
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    base = make_config(files)
    config = replace(base, rollout=replace(base.rollout, model=str(tmp_path / "model")))
    with pytest.raises(ModelError, match="no chat template"):
        train(config, tmp_path / "run")


def test_full_disk_is_refused_before_training(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deltah.engines.trl.session.shutil.disk_usage", lambda p: type("Usage", (), {"free": 10**6}))
    with pytest.raises(TrainingError, match="has 1 MiB free; the run needs about 200 MiB"):
        train(make_config(files), tmp_path / "run")


def test_unknown_models_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no model at '\./nowhere'"):
        resolve_model("./nowhere")
    with pytest.raises(ModelError, match="holds no model"):
        resolve_model(str(tmp_path))


def test_evaluation_is_written_once_and_graded(files: Path, tmp_path: Path) -> None:
    base = make_config(files)
    config = EvaluateConfig(rollout=base.rollout, eval=EvalConfig(tasks=base.tasks, limit=3))
    run = evaluate(config, tmp_path / "eval")
    greedy = list(read_traces(run.evaluation("greedy")))
    assert [t.metadata["task_id"] for t in greedy] == ["t0", "t1", "t2"]
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
