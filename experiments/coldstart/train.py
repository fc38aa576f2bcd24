"""The cold start: supervised training of the lab's agent on traces of the scripted teacher, from a seed.

Muon for the matrices of the hidden layers, AdamW for embeddings and norms; short sequences first; loss on tool results
early on. The length is a fixed number of STEPS, not of minutes, so that one seed gives one agent: bit for bit on the
same machine with the same number of threads, up to floating-point order elsewhere. A killed run started again with the
same arguments goes on from its last snapshot to the same result.
"""

from __future__ import annotations

import json
import math
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from deltah.errors import ConfigError, TrainingError, missing_dependency
from deltah.lab.world import Split, World

from .model import ModelConfig, build_model
from .sequences import Example, batches, copy_drill, recitation, traces
from .teacher import TeacherConfig
from .tokenizer import build_tokenizer

if TYPE_CHECKING:
    import torch
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

OnStep: TypeAlias = Callable[[int, int, float], None]
"""Called after each step with (step, steps, loss in nats per token)."""

OnTrace: TypeAlias = Callable[[int, int], None]
"""Called while the teacher writes its traces, before the first step, with (traces, all traces)."""

SNAPSHOT = "coldstart.pt"
RECORD = "coldstart.json"
CURVE_EVERY = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ColdStartConfig:
    """Everything that decides the result, beside the seed."""

    steps: int = 2000
    n_traces: int = 18_000
    worlds: int = 150
    batch_tokens: int = 2048
    late_batch_tokens: int = 4096
    late_from: float = 0.7
    """Share of the steps after which batches are larger."""
    curriculum: tuple[tuple[float, int], ...] = ((0.1, 110), (0.25, 220), (1.0, 1024))
    """(share of the steps, longest sequence until then)."""
    copy_share: float = 0.2
    copy_until: float = 0.5
    recitation_share: float = 0.12
    context_loss_until: float = 0.35
    muon_lr: float = 0.02
    adamw_lr: float = 3e-3
    warmup_steps: int = 30
    decay_from: float = 0.5
    """Share of the steps after which learning rates fall linearly to 2 %."""
    snapshot_every: int = 200
    threads: int = 2
    model: ModelConfig = field(default_factory=ModelConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)


def learning_rate_factor(step: int, config: ColdStartConfig) -> float:
    """Multiplier of both learning rates: linear warm-up, constant, linear decay."""
    warm = min(1.0, (step + 1) / config.warmup_steps)
    share = step / config.steps
    left = min(1.0, (1.0 - share) / (1.0 - config.decay_from))
    return warm * max(0.02, left)


def build_optimizers(model: LlamaForCausalLM, config: ColdStartConfig) -> tuple[torch.optim.Optimizer, ...]:
    """Muon for 2-D weights of the layers, AdamW for the rest."""
    import torch

    from .muon import BatchedMuon

    hidden = [p for name, p in model.named_parameters() if p.ndim == 2 and ".layers." in name]
    other = [p for name, p in model.named_parameters() if not (p.ndim == 2 and ".layers." in name)]
    muon = BatchedMuon(hidden, lr=config.muon_lr)
    adamw = torch.optim.AdamW(other, lr=config.adamw_lr, betas=(0.9, 0.95), weight_decay=0.0)
    for optimizer in (muon, adamw):
        for group in optimizer.param_groups:
            group["base_lr"] = group["lr"]
    return muon, adamw


@dataclass(frozen=True, slots=True)
class _Batch:
    examples: list[Example]
    with_context: bool


def _phase_examples(
    pool: Sequence[Example],
    world: World,
    tokenizer: PreTrainedTokenizerFast,
    step: int,
    config: ColdStartConfig,
    rng: np.random.Generator,
) -> list[Example]:
    """One epoch of what the given step may train on."""
    share = step / config.steps
    longest = next(limit for until, limit in config.curriculum if share < until)
    examples = [e for e in pool if len(e) <= longest]
    n = len(examples)
    examples += [recitation(world, tokenizer, rng) for _ in range(int(config.recitation_share * n))]
    if share < config.copy_until:
        examples += [copy_drill(tokenizer, rng) for _ in range(int(config.copy_share * n))]
    return examples


def _schedule(
    pool: Sequence[Example], tokenizer: PreTrainedTokenizerFast, config: ColdStartConfig, seed: int
) -> Iterator[_Batch]:
    """Yield the batch of every step; depends on the seed alone."""
    rng = np.random.default_rng([seed, 11])
    world = World(0, Split.COLDSTART)
    borders = sorted(
        {round(f * config.steps) for f, _ in config.curriculum}
        | {round(f * config.steps) for f in (config.copy_until, config.late_from)}
    )
    step = 0
    while step < config.steps:
        examples = _phase_examples(pool, world, tokenizer, step, config, rng)
        tokens = config.batch_tokens if step < config.late_from * config.steps else config.late_batch_tokens
        stop = next(border for border in borders if border > step)
        for indices in batches(examples, tokens=tokens, rng=rng):
            yield _Batch([examples[i] for i in indices], step < config.context_loss_until * config.steps)
            step += 1
            if step >= stop:
                break


def _tensors(batch: _Batch, pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Right-padded (B, T) ids and the (B, T) loss mask; causal attention never sees the padding."""
    import torch

    longest = max(map(len, batch.examples))
    ids = np.full((len(batch.examples), longest), pad_id, dtype=np.int64)
    mask = np.zeros((len(batch.examples), longest), dtype=np.bool_)
    for row, example in enumerate(batch.examples):
        ids[row, : len(example)] = example.ids
        mask[row, : len(example)] = example.context if batch.with_context else example.policy
    return torch.from_numpy(ids), torch.from_numpy(mask)


def _train_step(
    model: LlamaForCausalLM, optimizers: tuple[torch.optim.Optimizer, ...], batch: _Batch, factor: float, pad_id: int
) -> float:
    """One update; returns the mean cross-entropy in nats per token."""
    import torch

    ids, mask = _tensors(batch, pad_id)
    targets = mask[:, 1:]
    hidden = model.model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state
    loss = torch.nn.functional.cross_entropy(model.lm_head(hidden[targets]), ids[:, 1:][targets])
    value = float(loss.detach())
    if not math.isfinite(value):
        return value
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return value


@dataclass(slots=True)
class _State:
    """What a snapshot holds."""

    model: LlamaForCausalLM
    optimizers: tuple[torch.optim.Optimizer, ...]
    identity: str
    step: int = 0
    seconds: float = 0.0
    curve: list[tuple[int, float]] = field(default_factory=list)

    def save(self, path: Path) -> None:
        import torch

        part = path.with_suffix(".part")
        torch.save(
            {
                "model": self.model.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
                "identity": self.identity,
                "step": self.step,
                "seconds": self.seconds,
                "curve": self.curve,
            },
            part,
        )
        part.replace(path)

    def load(self, path: Path) -> None:
        import torch

        saved = torch.load(path, weights_only=True)
        if saved["identity"] != self.identity:
            raise ConfigError(
                f"{path} is the snapshot of a cold start with another seed or configuration; "
                "give the same ones to go on, or another output directory"
            )
        self.model.load_state_dict(saved["model"])
        for optimizer, state in zip(self.optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        self.step, self.seconds, self.curve = saved["step"], saved["seconds"], [tuple(p) for p in saved["curve"]]


def _train(
    state: _State, schedule: Iterator[_Batch], config: ColdStartConfig, path: Path, on_step: OnStep | None
) -> None:
    start, before, window = time.perf_counter(), state.seconds, []
    pad_id = state.model.config.pad_token_id
    state.model.train()
    for step, batch in enumerate(schedule):
        if step < state.step:
            continue
        loss = _train_step(state.model, state.optimizers, batch, learning_rate_factor(step, config), pad_id)
        if not math.isfinite(loss):
            raise TrainingError(
                f"the loss of the cold start became {loss} at step {step}; lower muon_lr ({config.muon_lr}) or "
                f"adamw_lr ({config.adamw_lr}) and start again in another directory"
            )
        window.append(loss)
        state.step, state.seconds = step + 1, before + time.perf_counter() - start
        if state.step % CURVE_EVERY == 0:
            state.curve.append((state.step, round(float(np.mean(window)), 4)))
            window = []
        if state.step % config.snapshot_every == 0:
            state.save(path)
        if on_step is not None:
            on_step(state.step, config.steps, loss)


def _versions() -> dict[str, str]:
    import torch
    import transformers

    return {"python": platform.python_version(), "torch": torch.__version__, "transformers": transformers.__version__}


def coldstart(
    out_dir: str | Path,
    *,
    seed: int = 0,
    config: ColdStartConfig | None = None,
    on_step: OnStep | None = None,
    on_trace: OnTrace | None = None,
    eval_questions: int = 256,
) -> Path:
    """Recreate the lab's agent from a seed.

    Args:
        out_dir: Directory of the checkpoint; created if missing. A snapshot in it is resumed.
        seed: Seed of the weights, the worlds, the teacher and the order of batches.
        config: The recipe; by default the one of the shipped checkpoint.
        on_step: Progress of the training.
        on_trace: Progress of the teacher, which works for some seconds first.
        eval_questions: Held-out questions to answer at the end, sampled and greedy; 0 for none.

    Returns:
        `out_dir`, holding model, tokenizer and `coldstart.json` (recipe, seed, versions, machine, seconds, losses,
        figures).

    Raises:
        TrainingError: if the loss is not a number.
        ConfigError: if `out_dir` holds the snapshot of another recipe.
        MissingDependencyError: if torch or transformers is not installed.
    """
    try:
        import torch
    except ImportError as error:
        raise missing_dependency("torch", extra="train", purpose="The cold start") from error

    config, out = config or ColdStartConfig(), Path(out_dir)
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(config.threads)
    tokenizer = build_tokenizer()
    model = build_model(tokenizer, config.model, seed=seed)
    recipe = {"seed": seed, "config": asdict(config)}
    state = _State(model, build_optimizers(model, config), json.dumps(recipe, sort_keys=True))
    snapshot = out / SNAPSHOT
    if snapshot.exists():
        state.load(snapshot)
    pool = _write_traces(config, seed, tokenizer, on_trace)
    _train(state, _schedule(pool, tokenizer, config, seed), config, snapshot, on_step)
    model.eval()
    figures = _evaluate(model, tokenizer, eval_questions) if eval_questions else None
    _write(out, model, tokenizer, recipe | _report(state, figures))
    snapshot.unlink(missing_ok=True)
    return out


def _write_traces(
    config: ColdStartConfig, seed: int, tokenizer: PreTrainedTokenizerFast, on_trace: OnTrace | None
) -> list[Example]:
    pool = []
    for example in traces(config.n_traces, worlds=config.worlds, seed=seed, config=config.teacher, tokenizer=tokenizer):
        pool.append(example)
        if on_trace is not None:
            on_trace(len(pool), config.n_traces)
    return pool


def _evaluate(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, n: int) -> dict[str, Any]:
    from .evaluate import evaluate

    return evaluate(model, tokenizer, n=n)


def _report(state: _State, figures: dict[str, Any] | None) -> dict[str, Any]:
    return {
        "parameters": state.model.num_parameters(),
        "versions": _versions(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "train_seconds": round(state.seconds, 1),
        "loss_nats": state.curve,
        "evaluation": figures,
    }


def _write(out: Path, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, record: dict[str, Any]) -> None:
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    (out / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
