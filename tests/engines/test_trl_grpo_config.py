"""What a run refuses, in one sentence, and that a run which cannot start leaves nothing; then the full disk."""

from __future__ import annotations

import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl")
import torch
from engines.training_fixtures import make_config, same, stop_at, stopped, weights
from engines.trl_fixtures import tiny_model
from transformers import T5Config, T5ForConditionalGeneration

from deltah import runs as rundir
from deltah.engines.config import EvalConfig, EvaluateConfig, RolloutConfig, TrainConfig
from deltah.engines.models import load_model, resolve_model
from deltah.engines.trl import checkpoints
from deltah.engines.trl import grpo_config as settings
from deltah.engines.trl.checkpoints import last_complete
from deltah.engines.trl.grpo_config import check_disk, grpo_config, make_grpo_config
from deltah.engines.trl.rollout import evaluate, rollout
from deltah.engines.trl.training import train
from deltah.errors import (
    ConfigError,
    DataError,
    InvalidValueError,
    MissingDependencyError,
    ModelError,
    TrainingError,
    UnsupportedVersionError,
)
from deltah.runs import RunDirectory


def changed(config: TrainConfig, **fields: Any) -> TrainConfig:
    """A configuration with other fields; those of the rollout are found by name."""
    mine = {key: value for key, value in fields.items() if key not in RolloutConfig.__dataclass_fields__}
    inner = {key: value for key, value in fields.items() if key not in mine}
    return replace(config, rollout=replace(config.rollout, **inner), **mine)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"tasks": "missing.jsonl"}, DataError, "missing.jsonl"),
        ({"eval": EvalConfig(tasks="nowhere.jsonl")}, DataError, r"nowhere\.jsonl"),
        ({"trainer": {"no_such_field": 1}}, ConfigError, "trainer.no_such_field is not a field of TRL's GRPOConfig"),
        ({"trainer": {"num_generations": 3}}, ConfigError, "TRL refuses this configuration"),
        ({"prompts_per_step": 18}, ConfigError, "holds 16 tasks, fewer than the 18 prompts of one step"),
        (
            {"save_every": 10, "trainer": {"steps_per_generation": 10}},
            ConfigError,
            "holds 16 tasks, fewer than the 20 prompts of one step",
        ),
        ({"num_iterations": 4}, ConfigError, "save_every 2 is not a multiple of the 4 steps .*: set save_every to 4"),
        ({"vllm": True}, MissingDependencyError, r"rollout\.vllm needs the package 'vllm'"),
        ({"report_to": ("nonsense",)}, ConfigError, "report_to: nonsense is not supported, only .*tensorboard"),
        ({"report_to": ("wandb",)}, MissingDependencyError, "report_to names 'wandb', whose package is not installed"),
    ],
)
def test_bad_input_is_one_sentence(
    files: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    import transformers.integrations.integration_utils as integrations

    monkeypatch.setattr(integrations, "is_wandb_available", lambda: False)
    monkeypatch.setattr("deltah.engines.trl.grpo_config.find_spec", lambda name: None)
    with pytest.raises(error, match=message):
        train(changed(make_config(files), **change), tmp_path / "run")
    assert not (tmp_path / "run").exists()  # so that the corrected command may use the directory


def test_a_trainer_that_cannot_be_made_leaves_nothing(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: Any, **options: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("deltah.engines.trl.training.RunTrainer", broken)
    with pytest.raises(ZeroDivisionError):
        train(make_config(files), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_evaluation_that_cannot_start_leaves_nothing(files: Path, tmp_path: Path) -> None:
    base = make_config(files)
    shutil.copytree(files / "model", tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").write_bytes(b"")
    config = EvaluateConfig(
        rollout=replace(base.rollout, model=str(tmp_path / "model")), eval=EvalConfig(tasks=base.tasks, limit=1)
    )
    with pytest.raises(ModelError, match="does not load"):
        evaluate(config, tmp_path / "eval")
    assert not (tmp_path / "eval").exists()


def test_vllm_needs_a_gpu(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deltah.engines.trl.grpo_config.find_spec", lambda name: object())
    config = replace(make_config(files).rollout, vllm=True)
    with pytest.raises(ConfigError, match=r"rollout\.vllm needs a GPU"):
        next(rollout(config, []))


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        (RolloutConfig, {"max_turn_tokens": 0}, "max_turn_tokens is 0; expected a number above 0"),
        (EvalConfig, {"tasks": "t", "limit": 0}, "limit is 0"),
        (EvalConfig, {"tasks": "t", "batch_size": 0}, "batch_size is 0"),
        (TrainConfig, {"tasks": "t", "lora_rank": -1}, "lora_rank is -1; expected 0 or more"),
        (TrainConfig, {"tasks": "t", "trace_every": -1}, "trace_every is -1; expected 0 or more"),
    ],
)
def test_numbers_out_of_range_are_refused(kind: type, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidValueError, match=message):
        kind(**fields)


def test_a_field_that_trl_dropped_is_refused_loudly() -> None:
    with pytest.raises(UnsupportedVersionError, match="GRPOConfig no longer has logging_dir"):
        make_grpo_config({"logging_dir": "x"}, {})


def test_processes_share_the_rows_of_a_step(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, run = make_config(files, prompts_per_step=4), RunDirectory(tmp_path / "run")
    assert grpo_config(config, run).gradient_accumulation_steps == 2
    monkeypatch.setattr(settings, "world_size", lambda: 2)
    assert grpo_config(config, run).gradient_accumulation_steps == 1
    monkeypatch.setattr(settings, "world_size", lambda: 3)
    message = "4 prompts x 4 generations = 16 rows per step is not a multiple of 3 processes x rollout.batch_size 8"
    with pytest.raises(ConfigError, match=message):
        grpo_config(config, run)


def test_trained_weights_are_float32_on_a_gpu_too(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """bfloat16 keeps 8 bits: AdamW's steps of 1e-6 would be rounded away. What is not trained may be bfloat16."""
    weight = torch.tensor(0.02, dtype=torch.bfloat16)
    assert weight - 1e-6 == weight
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    found = resolve_model(str(files / "model"))
    for device, train_all, dtype in (
        ("auto", True, torch.float32),
        ("auto", False, torch.bfloat16),
        ("cpu", False, torch.float32),
    ):
        model, _ = load_model(found, device=device, train_all=train_all)
        assert {weight.dtype for weight in model.parameters()} == {dtype}


@pytest.mark.parametrize(("lora_rank", "train_all"), [(0, True), (4, False)])
def test_a_run_says_whether_it_trains_all_weights(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lora_rank: int, train_all: bool
) -> None:
    pytest.importorskip("peft")
    asked: list[bool] = []

    def load(*arguments: Any, train_all: bool, **options: Any) -> None:
        asked.append(train_all)
        raise ModelError("enough")

    monkeypatch.setattr("deltah.engines.trl.training.load_model", load)
    with pytest.raises(ModelError, match="enough"):
        train(make_config(files, lora_rank=lora_rank), tmp_path / "run")
    assert asked == [train_all]


# Models that do not load.


def no_tokenizer(path: Path) -> None:
    for file in path.glob("*token*"):
        file.unlink()


def encoder_decoder(path: Path) -> None:
    sizes = {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2, "vocab_size": 8}
    T5ForConditionalGeneration(T5Config(**sizes)).save_pretrained(path)


MODELS: dict[str, tuple[Callable[[Path], object], str]] = {
    "half the weights": (lambda p: (p / "model.safetensors").write_bytes(b"\x00" * 100), r"the model of .* \(\w+: "),
    "no weights": (lambda p: (p / "model.safetensors").unlink(), r"the model of .*model\.safetensors"),
    "no tokenizer": (no_tokenizer, "tokenizer"),
    "empty config": (lambda p: (p / "config.json").write_text("{}"), "does not load"),
    "broken config": (lambda p: (p / "config.json").write_text("{"), "does not load"),
    "encoder-decoder": (encoder_decoder, "must be a causal language model"),
}


@pytest.mark.parametrize(("damage", "message"), MODELS.values(), ids=MODELS)
def test_a_model_that_does_not_load_is_one_sentence(
    files: Path, tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    shutil.copytree(files / "model", tmp_path / "model")
    damage(tmp_path / "model")
    with pytest.raises(ModelError, match=message) as caught:
        train(changed(make_config(files), model=str(tmp_path / "model")), tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_hub_model_out_of_reach_is_one_sentence(files: Path, tmp_path: Path) -> None:
    message = r"tokenizer of 'nobody/no-such-model' does not load .*check the name and the connection"
    with pytest.raises(ModelError, match=message):
        train(changed(make_config(files), model="nobody/no-such-model"), tmp_path / "run")


def test_model_without_a_chat_template(files: Path, tmp_path: Path) -> None:
    model, tokenizer = tiny_model()
    tokenizer.chat_template = None
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    with pytest.raises(ModelError, match="no chat template"):
        train(changed(make_config(files), model=str(tmp_path / "model")), tmp_path / "run")


def test_unknown_models_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no model at '\./nowhere'"):
        resolve_model("./nowhere")
    with pytest.raises(ModelError, match="holds no model"):
        resolve_model(str(tmp_path))


@pytest.mark.parametrize("command", ["train", "eval", "rollout"])
def test_without_the_extra_a_command_names_it(files: Path, tmp_path: Path, command: str) -> None:
    hidden = (
        "import sys; sys.modules.update(dict.fromkeys(['transformers', 'trl', 'datasets', 'accelerate']));"
        "from deltah.__main__ import main; main()"
    )
    arguments = [command, "--tasks", str(files / "tasks.jsonl"), "--out", str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, "-c", hidden, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": str(Path(__file__).parents[2] / "src")},
    )
    assert (done.returncode, "Traceback" in done.stderr) == (2, False), done.stderr[-2000:]
    assert "needs the package 'datasets'; install it with: pip install 'deltah[train]'" in done.stderr.replace(
        "\n", " "
    )


# The disk.


def test_full_disk_is_refused_before_training(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "deltah.engines.trl.grpo_config.shutil.disk_usage", lambda p: type("Usage", (), {"free": 10**6})
    )
    with pytest.raises(TrainingError, match="has 1 MiB free; the run needs about 200 MiB more"):
        train(make_config(files), tmp_path / "run")


def test_the_disk_a_run_needs(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Float32 weights with two moments, two checkpoints and one in writing, and the model: 3 x 12 + 4 bytes a weight.

    A run that goes on has its checkpoints already.
    """
    monkeypatch.setattr("deltah.engines.trl.grpo_config.MIN_FREE_BYTES", 0)
    free = [0]
    monkeypatch.setattr(
        "deltah.engines.trl.grpo_config.shutil.disk_usage", lambda p: type("Usage", (), {"free": free[0]})
    )
    model = torch.nn.Linear(2**20, 1, bias=False)
    arguments = grpo_config(make_config(files), RunDirectory(tmp_path))
    free[0] = 40 * 2**20
    check_disk(tmp_path, model, arguments)
    free[0] -= 1
    with pytest.raises(TrainingError, match="needs about 40 MiB more"):
        check_disk(tmp_path, model, arguments)
    (tmp_path / "checkpoints" / "checkpoint-2").mkdir(parents=True)
    (tmp_path / "checkpoints" / "checkpoint-2" / "optimizer.pt").write_bytes(b"x" * 12 * 2**20)
    free[0] = 28 * 2**20
    check_disk(tmp_path, model, arguments)
    free[0] = 4 * 2**20
    check_disk(tmp_path, model, arguments, adapter_only=True)


@contextmanager
def largest_file(n_bytes: int) -> Iterator[None]:
    """Writing further than this fails as on a full disk, for every library in this process."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


@pytest.mark.parametrize("share", [0.5, 1.5], ids=["in the weights", "in the optimiser"])
def test_a_disk_that_fills_while_a_checkpoint_is_written(files: Path, tmp_path: Path, share: float) -> None:
    """Safetensors and torch.save each have an error of their own; neither is an OSError."""
    config = make_config(files, save_every=1, steps=2)
    limit = int((files / "model" / "model.safetensors").stat().st_size * share)
    with stopped():
        train(config, tmp_path / "run", progress=stop_at(2))
    message = r"no space left to write in .*run \(.+\); free some, .*run the same command again"
    with pytest.raises(TrainingError, match=message), largest_file(limit):
        train(config, tmp_path / "run")
    run = RunDirectory(tmp_path / "run")
    assert last_complete(run.checkpoints) == run.checkpoints / "checkpoint-1"
    train(config, run.path)
    assert same(weights(run.path), weights(train(config, tmp_path / "whole").path))


def test_a_disk_that_fills_later_is_one_sentence_too(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, text: str) -> None:
        if path.name == "result.json":
            raise OSError(28, "No space left on device")
        original(path, text)

    original = rundir.write_atomic
    monkeypatch.setattr(rundir, "write_atomic", full)
    with pytest.raises(TrainingError, match=r"\(No space left on device\)"):
        train(make_config(files, steps=1), tmp_path / "run")


def test_other_errors_pass_the_guard_unchanged(tmp_path: Path) -> None:
    for error in (OSError(13, "Permission denied"), RuntimeError("shape"), DataError("x"), KeyboardInterrupt()):
        with pytest.raises(type(error)) as caught, checkpoints.disk_faults(tmp_path):
            raise error
        assert caught.value is error


@pytest.mark.parametrize("text", ["PytorchStreamReader failed reading zip archive", "I/O error (os error 2)"])
def test_a_file_that_cannot_be_read_is_not_taken_for_a_full_disk(tmp_path: Path, text: str) -> None:
    with pytest.raises(RuntimeError, match=re.escape(text)) as caught, checkpoints.disk_faults(tmp_path):
        raise RuntimeError(text)
    assert not isinstance(caught.value, TrainingError)
