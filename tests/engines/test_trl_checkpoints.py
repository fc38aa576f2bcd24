"""What a run leaves on disk is whole, whenever it stops: checkpoints, the final model, with and without LoRA."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("trl")
import torch
from engines.training_fixtures import Stop, make_config, same, stop_at, stopped, weights
from engines.trl_fixtures import tiny_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from deltah import read_traces
from deltah.cli.app import app
from deltah.engines.config import EvalConfig, EvaluateConfig, TrainConfig
from deltah.engines.models import load_model, resolve_model
from deltah.engines.trl import checkpoints
from deltah.engines.trl.checkpoints import drop_partial, is_complete, last_complete
from deltah.engines.trl.training import train
from deltah.errors import ConfigError, MissingDependencyError, ModelError, TrainingError
from deltah.runs import RunDirectory


def steps_trained(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of the optimiser steps that are taken from here on."""
    taken: list[int] = []
    original = checkpoints.RunTrainer.training_step

    def step(self: Any, *arguments: Any, **options: Any) -> Any:
        taken.append(self.state.global_step + 1)
        return original(self, *arguments, **options)

    monkeypatch.setattr(checkpoints.RunTrainer, "training_step", step)
    return taken


def test_a_stop_inside_the_evaluation_trains_no_further_step(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(files, steps=3, eval=EvalConfig(tasks=str(files / "tasks.jsonl"), limit=2, batch_size=1))
    run = RunDirectory(tmp_path / "run")
    with stopped():
        train(config, run.path, evaluation_progress=stop_at(1))
    finished = weights(run.path)
    shutil.rmtree(run.model)  # a stop inside the writing of the model
    taken = steps_trained(monkeypatch)
    with stopped():
        train(config, run.path, evaluation_progress=stop_at(3))
    assert len(list(read_traces(run.evaluation("sampled")))) == 2
    assert not run.evaluation("greedy").exists()
    train(config, run.path)
    assert taken == []
    assert same(weights(run.path), finished)
    assert [row["step"] for row in run.read_metrics()] == [1, 2, 3]
    assert json.loads((run.path / "result.json").read_text())["steps"] == 3
    assert len(list(read_traces(run.evaluation("greedy")))) == 2


DAMAGE: dict[str, Callable[[Path], None]] = {
    "no state": lambda path: (path / "trainer_state.json").unlink(),
    "no optimiser": lambda path: (path / "optimizer.pt").unlink(),
    "no inventory": lambda path: (path / "files.json").unlink(),
    "half the weights": lambda path: truncate(path / "model.safetensors"),
    "half the optimiser": lambda path: truncate(path / "optimizer.pt"),
    "half the inventory": lambda path: truncate(path / "files.json"),
    "nothing": lambda path: [file.unlink() for file in path.iterdir()] and None,
}


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def fake_checkpoint(path: Path) -> Path:
    path.mkdir(parents=True)
    names = ("trainer_state.json", "optimizer.pt", "model.safetensors")
    for name in names:
        (path / name).write_text("content")
    (path / "files.json").write_text(json.dumps(dict.fromkeys(names, 7)))
    return path


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    good, newer = fake_checkpoint(tmp_path / "checkpoint-9"), fake_checkpoint(tmp_path / "checkpoint-10")
    assert last_complete(tmp_path) == newer
    damage(newer)
    assert not is_complete(newer)
    assert last_complete(tmp_path) == good


def test_only_newer_partial_checkpoints_are_removed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for step in (2, 10, 11):
        fake_checkpoint(tmp_path / f"checkpoint-{step}")
    (tmp_path / "checkpoint-2" / "optimizer.pt").unlink()
    (tmp_path / "checkpoint-11" / "optimizer.pt").unlink()
    (tmp_path / ".partial" / "checkpoint-12").mkdir(parents=True)
    drop_partial(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-2"]
    assert "checkpoint-11 is not whole and is removed; the run continues from step 10" in caplog.text
    assert last_complete(tmp_path / "nowhere") is None


@pytest.mark.slow
@pytest.mark.parametrize("name", ["trainer_state.json", "model.safetensors"])
def test_a_run_resumes_past_a_damaged_checkpoint_to_the_undisturbed_result(
    files: Path, tmp_path: Path, name: str
) -> None:
    config = make_config(files, steps=3, save_every=1)
    whole, cut = train(config, tmp_path / "whole"), RunDirectory(tmp_path / "cut")
    with stopped():
        train(config, cut.path, progress=stop_at(3))
    newest = cut.checkpoints / "checkpoint-2"
    assert last_complete(cut.checkpoints) == newest
    if name == "trainer_state.json":
        (newest / name).unlink()
    else:
        truncate(newest / name)
    train(config, cut.path)
    assert same(weights(cut.path), weights(whole.path))


@pytest.mark.slow
def test_a_stop_inside_the_writing_of_a_checkpoint_leaves_the_one_before(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(files, save_every=1, steps=3)
    whole, cut = train(config, tmp_path / "whole"), RunDirectory(tmp_path / "cut")
    original = checkpoints.RunTrainer._save_rng_state

    def interrupted(self: Any, folder: str) -> None:
        original(self, folder)
        if self.state.global_step == 2:
            raise Stop

    monkeypatch.setattr(checkpoints.RunTrainer, "_save_rng_state", interrupted)
    with stopped():
        train(config, cut.path)
    assert [path.name for path in cut.checkpoints.glob("checkpoint-*")] == ["checkpoint-1"]
    monkeypatch.undo()
    train(config, cut.path)
    assert same(weights(cut.path), weights(whole.path))
    assert sorted(path.name for path in cut.checkpoints.iterdir() if path.is_dir()) == ["checkpoint-2", "checkpoint-3"]
    assert not list(cut.path.glob(".*partial"))


def test_a_host_that_saves_elsewhere_is_refused(files: Path, tmp_path: Path) -> None:
    from deltah.errors import UnsupportedVersionError

    with pytest.raises(UnsupportedVersionError, match=r"no longer written where Trainer\._get_output_dir says"):
        checkpoints._publish(tmp_path / "nowhere", tmp_path / "checkpoint-1")


# Numbers that are not finite.


@pytest.mark.parametrize("num_iterations", [1, 2])
def test_a_loss_that_is_not_finite_stops_the_run_at_that_step(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_iterations: int
) -> None:
    """In the second pass over a batch too, whose rows have no figures of trajectories; the message is one to follow."""
    original = checkpoints.RunTrainer._compute_loss

    def loss(self: Any, model: Any, inputs: Any) -> Any:
        return original(self, model, inputs) * (math.nan if self.state.global_step == 3 else 1.0)

    monkeypatch.setattr(checkpoints.RunTrainer, "_compute_loss", loss)
    config = make_config(files, num_iterations=num_iterations, trainer={"max_grad_norm": 0.0})
    message = r"loss is not a finite number at step 4; start a new run with another --out and a lower learning_rate"
    with pytest.raises(TrainingError, match=message):
        train(config, tmp_path / "run")
    run = RunDirectory(tmp_path / "run")
    assert last_complete(run.checkpoints) == run.checkpoints / "checkpoint-2"
    assert [row["step"] for row in run.read_metrics()] == [1, 2, 3]
    # What the message says works: the old directory keeps its settings, another takes the new ones.
    lower = replace(config, learning_rate=1e-3)
    with pytest.raises(ConfigError, match=r"learning_rate: 0\.01 then, 0\.001 now"):
        train(lower, tmp_path / "run")
    monkeypatch.undo()
    train(lower, tmp_path / "new")


def test_weights_that_are_not_finite_are_not_saved(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss of the step that breaks the weights is finite: only the next one would show it."""
    original = checkpoints.RunTrainer.training_step

    def step(self: Any, model: Any, *arguments: Any) -> Any:
        loss = original(self, model, *arguments)
        if self.state.global_step == 1:
            next(model.parameters()).data.fill_(math.inf)
        return loss

    monkeypatch.setattr(checkpoints.RunTrainer, "training_step", step)
    config = make_config(files, save_every=1, trainer={"max_grad_norm": 0.0})
    with pytest.raises(TrainingError, match="a weight is not a finite number at step 2; start a new run"):
        train(config, tmp_path / "run")
    kept = tmp_path / "run" / "checkpoints" / "checkpoint-1"
    assert last_complete(kept.parent) == kept
    assert all(bool(t.isfinite().all()) for t in load_file(kept / "model.safetensors").values())


def test_a_training_that_ends_early_is_not_finished(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints.RunTrainer, "train", lambda self, resume_from_checkpoint: None)
    with pytest.raises(TrainingError, match="the trainer stopped after 0 of 4 steps, so nothing is saved as finished"):
        train(make_config(files), tmp_path / "run")
    assert not (tmp_path / "run").exists()


# LoRA.


def lora_run(files: Path) -> TrainConfig:
    held_out = EvalConfig(tasks=str(files / "tasks.jsonl"), limit=2)
    return make_config(files, steps=2, save_every=1, lora_rank=2, eval=held_out)


def test_a_lora_run_leaves_a_whole_model_with_its_adapter_beside(files: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    config = lora_run(files)
    run = train(config, tmp_path / "run")
    assert len(list(read_traces(run.evaluation("greedy")))) == 2
    merged = AutoModelForCausalLM.from_pretrained(run.model)
    assert not same(load_file(files / "model" / "model.safetensors"), weights(run.path))
    beside = peft.PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(files / "model"), run.model / "adapter"
    )
    ids = torch.arange(20)[None]
    with torch.no_grad():
        np.testing.assert_allclose(merged(ids).logits.numpy(), beside(ids).logits.numpy(), atol=1e-4)


def test_the_commands_train_a_lora_and_evaluate_what_it_left(files: Path, tmp_path: Path) -> None:
    """The evaluation after the training has a bar of its own; `deltah eval` reads the merged model and the adapter."""
    pytest.importorskip("peft")
    config = lora_run(files)
    path = tmp_path / "run.json"
    path.write_text(json.dumps(config.to_dict()))
    out = tmp_path / "run"
    trained = CliRunner().invoke(app, ["train", "--config", str(path), "--out", str(out)])
    assert trained.exit_code == 0, trained.output
    assert re.search(r"train dense 2/2, .*calls", trained.output)
    assert re.search(r"evaluate 4/4, ", trained.output)
    held_out = EvaluateConfig(rollout=config.rollout, eval=config.eval).to_dict()
    path.write_text(json.dumps(held_out))
    for name in ("model", "model/adapter"):
        options = ["--model", str(out / name), "--out", str(tmp_path / "eval" / name)]
        done = CliRunner().invoke(app, ["eval", "--config", str(path), *options])
        assert done.exit_code == 0, done.output
        assert "greedy" in done.output


def test_a_lora_run_stopped_in_its_evaluation_keeps_what_it_learned(files: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    run = RunDirectory(tmp_path / "run")
    with stopped():
        train(lora_run(files), run.path, evaluation_progress=stop_at(1))
    finished = weights(run.path)
    shutil.rmtree(run.model)
    train(lora_run(files), run.path)
    assert same(weights(run.path), finished)


def test_an_adapter_alone_is_a_model_on_its_base(files: Path, tmp_path: Path) -> None:
    """A checkpoint of a LoRA run, with the tokenizer beside it or only with the base."""
    peft = pytest.importorskip("peft")
    model, _ = tiny_model()
    model = model.from_pretrained(files / "model")
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, task_type="CAUSAL_LM", init_lora_weights=False))
    adapted.save_pretrained(tmp_path / "adapter")
    loaded, tokenizer = load_model(resolve_model(str(tmp_path / "adapter")), device="cpu")
    assert tokenizer.chat_template
    ids = torch.arange(20)[None]
    with torch.no_grad():
        expected = adapted.eval()(ids).logits.numpy()
        np.testing.assert_allclose(loaded.eval()(ids).logits.numpy(), expected, atol=1e-4)
    assert not hasattr(loaded, "merge_and_unload")


def test_an_adapter_without_its_base_or_peft_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "adapter_config.json"
    config.write_text("{}")
    with pytest.raises(ModelError, match="does not name the model it was trained on"):
        resolve_model(str(tmp_path))
    config.write_text('{"base_model_name_or_path": null}')
    with pytest.raises(ModelError, match="names no base_model_name_or_path"):
        resolve_model(str(tmp_path))
    config.write_text('{"base_model_name_or_path": "./gone"}')
    with pytest.raises(ModelError, match=r"no model at '\./gone'"):
        resolve_model(str(tmp_path))
    monkeypatch.setattr("deltah.engines.models.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"holds a LoRA adapter, which needs .*'peft'.*deltah\[train\]"):
        resolve_model(str(tmp_path))
