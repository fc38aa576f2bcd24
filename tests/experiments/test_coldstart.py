"""The cold start is reproducible and resumable, stops at a loss that is no number; the shipped checkpoint answers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deltah.errors import ConfigError, TrainingError
from deltah.lab import checkpoint_path
from deltah.lab.questions import questions
from deltah.lab.world import Split, World

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from coldstart.evaluate import auc, auc_within, make_generate, run, summarize  # noqa: E402
from coldstart.model import ModelConfig  # noqa: E402
from coldstart.sequences import batches, copy_drill, recitation, spans, trace_example, world_tools  # noqa: E402
from coldstart.train import ColdStartConfig, coldstart, learning_rate_factor  # noqa: E402

ROOT = Path(__file__).parents[2]
TINY = ColdStartConfig(
    steps=6,
    n_traces=60,
    worlds=2,
    batch_tokens=512,
    late_batch_tokens=512,
    snapshot_every=3,
    warmup_steps=2,
    threads=1,
    model=ModelConfig(hidden_size=16, intermediate_size=32, n_layers=1, n_heads=2),
)


@pytest.fixture(autouse=True)
def keep_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def weights(path: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return dict(load_file(path / "model.safetensors"))


def same(a: Path, b: Path) -> bool:
    first, second = weights(a), weights(b)
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def test_the_same_seed_gives_the_same_weights(tmp_path: Path) -> None:
    a, b, c = (
        coldstart(tmp_path / name, seed=seed, config=TINY, eval_questions=0)
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert same(a, b)
    assert not same(a, c)


def test_a_killed_run_resumes_to_the_same_weights(tmp_path: Path) -> None:
    class KilledError(Exception):
        pass

    def kill(step: int, steps: int, loss: float) -> None:
        if step == 5:
            raise KilledError

    with pytest.raises(KilledError):
        coldstart(tmp_path / "a", config=TINY, on_step=kill, eval_questions=0)
    with pytest.raises(ConfigError, match="another seed or configuration"):
        coldstart(tmp_path / "a", seed=1, config=TINY, eval_questions=0)
    seen: list[int] = []
    resumed = coldstart(tmp_path / "a", config=TINY, on_step=lambda s, n, loss: seen.append(s), eval_questions=0)
    assert seen == [4, 5, 6]
    assert same(resumed, coldstart(tmp_path / "b", config=TINY, eval_questions=0))
    record = json.loads((resumed / "coldstart.json").read_text())
    assert record["machine"].endswith(f"{os.cpu_count()} cores")
    assert record["config"]["steps"] == 6
    assert not (resumed / "coldstart.pt").exists()


def test_a_loss_that_is_no_number_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="loss of the cold start became"):
        coldstart(tmp_path, config=replace(TINY, muon_lr=float("nan"), warmup_steps=1), eval_questions=0)


def test_learning_rate_rises_stays_and_falls() -> None:
    config = replace(TINY, steps=100, warmup_steps=10, decay_from=0.5)
    factors = [learning_rate_factor(step, config) for step in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[10] == factors[50] == 1.0
    assert factors[75] == pytest.approx(0.5)
    assert min(factors) >= 0.02


def test_batches_use_every_sequence_once_and_keep_the_budget(tokenizer: Any, conversations: list[Any]) -> None:
    examples = [trace_example(messages, tokenizer) for messages in conversations[:200]]
    drawn = list(batches(examples, tokens=1000, rng=np.random.default_rng(0)))
    assert sorted(i for batch in drawn for i in batch) == list(range(200))
    assert all(len(batch) * max(len(examples[i]) for i in batch) <= 1000 for batch in drawn)


def test_loss_lies_on_what_the_policy_writes() -> None:
    mask = spans(np.array([7, 1, 5, 5, 2, 7, 1, 6, 2]), start_id=1, end_id=2)
    assert mask.tolist() == [False, False, True, True, True, False, False, True, True]


def test_drills_carry_loss_where_they_should(tokenizer: Any, world: World) -> None:
    rng = np.random.default_rng(0)
    drill = copy_drill(tokenizer, rng)
    text = tokenizer.decode(drill.ids)
    assert tokenizer.decode(drill.ids[drill.policy]) in text
    assert text.count(tokenizer.decode(drill.ids[drill.policy][:-1])) == 2
    recited = tokenizer.decode(recitation(world, tokenizer, rng).ids)
    assert all(line.strip().rsplit(" ", 1)[0] for line in recited.splitlines())
    assert not any(name in recited for names in world.new.values() for name in names)


def test_auc_by_hand() -> None:
    score, label = np.array([3.0, 1.0, 2.0, 2.0]), np.array([True, False, True, False])
    assert auc(score, label) == pytest.approx((1 + 1 + 1 + 0.5) / 4)
    assert auc_within(score, label, np.array([0.0, 0.0, 1.0, 1.0])) == pytest.approx((1 + 0.5) / 2)
    assert np.isnan(auc(score, np.zeros(4, dtype=bool)))


@pytest.fixture(scope="module")
def shipped() -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = checkpoint_path()
    return AutoModelForCausalLM.from_pretrained(path).eval(), AutoTokenizer.from_pretrained(path)


def test_the_checkpoint_is_small_and_complete() -> None:
    files = {file.name: file.stat().st_size for file in checkpoint_path().iterdir()}
    assert {
        "model.safetensors",
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "coldstart.json",
    } <= set(files)
    assert sum(files.values()) < 10_000_000


def test_the_checkpoint_is_the_one_its_record_describes(shipped: tuple[Any, Any], tokenizer: Any) -> None:
    from dataclasses import asdict

    model, loaded = shipped
    record = json.loads((checkpoint_path() / "coldstart.json").read_text())
    assert record["config"] == json.loads(json.dumps(asdict(ColdStartConfig())))
    assert record["parameters"] == model.num_parameters()
    assert loaded.get_vocab() == tokenizer.get_vocab()
    assert loaded.chat_template == tokenizer.chat_template
    assert model.generation_config.eos_token_id == loaded.eos_token_id
    assert model.generation_config.temperature in (None, 1.0)


def test_the_checkpoint_answers_held_out_questions(shipped: tuple[Any, Any]) -> None:
    model, tokenizer = shipped
    world = World(77, Split.EVAL)
    asked = list(questions(world, 24, seed=3))
    torch.manual_seed(0)
    figures = summarize(
        run(asked, make_generate(model, tokenizer, temperature=0.0), tokenizer, dict(world_tools(world)))
    )
    assert figures["accuracy"] > 0.4
    assert figures["calls"] > 1.0
    assert figures["share_unanswered"] < 0.3


def test_the_docs_state_the_recorded_seconds_of_the_cold_start() -> None:
    record = json.loads((checkpoint_path() / "coldstart.json").read_text())
    docs = (ROOT / "docs" / "lab.md").read_text(encoding="utf-8")
    assert f"{record['train_seconds']:.0f} s of training" in docs
    assert "eight minutes" not in docs
    help_of_train = subprocess.run(
        [sys.executable, "-m", "experiments.coldstart", "--help"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "COLUMNS": "120"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert f"({record['train_seconds'] / 60:.0f} minutes on two cores)" in help_of_train
