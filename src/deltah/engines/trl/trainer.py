"""`DeltaHTrainer`: stock TRL `GRPOTrainer(tools=...)` whose reward or advantages know the entropy change of each call.

Flow of one batch::

    _generate                        remember ids and tool mask
    _calculate_rewards               entropies -> trajectories -> signals -> credit; outcomes become rewards
    _generate_and_score_completions  advantages (B, T) in the dense and correctness-first forms; metrics; traces

The generation loop, masks, losses, vLLM, PEFT and distribution are TRL's. With `reward=outcome` rewards and advantages
pass through untouched, so training is bit-identical to stock GRPO.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from trl import GRPOTrainer
from trl.models.utils import disable_gradient_checkpointing

from deltah.core.advantages import batch_credit
from deltah.core.align import pad
from deltah.core.metrics import DROPPED, CollapseMonitor, batch_metrics
from deltah.core.rewards import RewardConfig, normalise, reward_config
from deltah.core.signals import Signal, SignalConfig, score, signal_config
from deltah.core.types import FloatArray, Trajectory
from deltah.engines.rollout_row import decode_tokens, last_text, trajectory_from_row
from deltah.engines.trl import trl_compat
from deltah.errors import InvalidValueError

logger = logging.getLogger(__name__)


class DeltaHTrainer(GRPOTrainer):
    """GRPO with per-call entropy rewards.

    A trajectory copies the dataset's columns `task_id`, `question`, `golden_answers`, `rollout_id` and `facts` (a JSON
    object as text), where present.

    Args:
        *args: As for `GRPOTrainer`.
        reward: Which reward, and how advantages are made of it. The first reward function is the outcome, in [0, 1]; it
            is the one that is shaped. Others are added as they are.
        signal: How calls are scored.
        on_trajectories: Called in every process after each batch with (trajectories, signals, step, mode).
        **kwargs: As for `GRPOTrainer`.

    Raises:
        UnsupportedVersionError: if the installed TRL does not fit.
        InvalidValueError: during training, if an outcome lies outside [0, 1].
    """

    def __init__(
        self,
        *args: Any,
        reward: RewardConfig | str | None = None,
        signal: SignalConfig | str | None = None,
        on_trajectories: Callable[[list[Trajectory], list[Signal], int, str], None] | None = None,
        **kwargs: Any,
    ) -> None:
        trl_compat.check_trainer_class(GRPOTrainer)
        super().__init__(*args, **kwargs)
        self.reward = reward_config(reward)
        self.signal = signal_config(signal)
        self._on_trajectories = on_trajectories
        self._monitor = CollapseMonitor()
        self._prompt_ids: list[list[int]] = []
        self._completion_ids: list[list[int]] = []
        self._tool_mask: list[list[int]] = []
        self._captured: torch.Tensor | None = None
        self._capture_next = False
        self._local: tuple[list[Trajectory], list[Signal]] = ([], [])
        self._advantages: list[FloatArray] | None = None

    def act(self, rows: list[dict[str, Any]]) -> list[tuple[Trajectory, Signal]]:
        """Roll out dataset rows in evaluation mode, without a gradient step; needs `num_generations_eval=1`."""
        self.model.eval()
        with torch.no_grad():
            self._generate_and_score_completions(rows)
        return list(zip(*self._local, strict=True))

    # Override 1: remember what was generated.
    def _generate(self, prompts: list[Any]) -> tuple[Any, ...]:
        output = super()._generate(prompts)
        trl_compat.check_rollout(output, len(prompts))
        self._prompt_ids, self._completion_ids, tool_mask = output[:3]
        # Without tools there is no mask: the policy drew every completion token.
        self._tool_mask = [[1] * len(ids) for ids in self._completion_ids] if tool_mask is None else tool_mask
        return output

    # Override 2: measure, and shape the outcome column.
    def _calculate_rewards(
        self, inputs: list[dict[str, Any]], prompts: list[Any], completions: list[Any], completion_ids_list: list[Any]
    ) -> torch.Tensor:
        rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        outcomes = rewards[:, 0].double().cpu().numpy()
        graded = outcomes[np.isfinite(outcomes)]
        if (np.abs(graded - 0.5) > 0.5 + 1e-6).any():
            raise InvalidValueError(
                f"the first reward function, {self.reward_func_names[0]!r}, is the outcome and must return scores in "
                f"[0, 1]; got values from {graded.min():g} to {graded.max():g}: rescale it, or put it second"
            )
        first = self.accelerator.process_index * len(prompts)
        own = outcomes[first : first + len(prompts)].tolist()
        rows = zip(inputs, completions, self._entropies(), own, strict=True)
        trajectories = [self._trajectory(i, *row) for i, row in enumerate(rows)]
        signals = [score(trajectory, self.signal) for trajectory in trajectories]
        self._local = trajectories, signals
        if self.accelerator.num_processes > 1:
            trajectories, signals = gather_object(trajectories), gather_object(signals)
        self._record_metrics(signals, outcomes)
        self._advantages = None
        if self.reward.entry.options.get("untouched"):
            return rewards
        rng = np.random.default_rng([self.args.seed, self.state.global_step])
        groups = [row // self._group_size for row in range(len(trajectories))]
        credit = batch_credit(trajectories, signals, outcomes, groups, self.reward, rng=rng)
        self._metrics[self._mode][DROPPED].append(credit.dropped_rate)
        if credit.per_token:
            others = self._other_advantages(rewards)
            self._advantages = [
                credit.tokens[i] * float(self.reward_weights[0]) + others[i] * trajectories[i].response_mask
                for i in range(first, first + len(prompts))
            ]
        shaped = rewards.clone()
        shaped[:, 0] = torch.from_numpy(credit.totals).to(rewards)
        return shaped

    # Override 3: per-token advantages where the form needs them.
    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self._captured, self._capture_next = None, self._has_old_logprob_pass() and not self._drops_out
        output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        trl_compat.check_scored_batch(output)
        if self._advantages is not None:
            width = output["completion_ids"].size(1)
            output["advantages"] = torch.from_numpy(pad(self._advantages, width)).to(output["advantages"])
        if self._on_trajectories is not None:
            self._on_trajectories(*self._local, self.state.global_step + 1, self._mode)
        return output

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Keep the entropies of the old-logprob pass, which TRL computes and throws away.

        Only when that pass is known to run: with beta > 0 and PEFT the reference pass uses the same method and model.
        Not with dropout, which is on in that pass: its entropies are not those of the policy that acted.
        """
        if not self._capture_next:
            return super()._get_per_token_logps_and_entropies(*args, **kwargs)
        self._capture_next = False
        output = super()._get_per_token_logps_and_entropies(*args, **{**kwargs, "compute_entropy": True})
        self._captured = output[1]
        return output

    @property
    def _mode(self) -> str:
        return "train" if self.model.training else "eval"

    def _has_old_logprob_pass(self) -> bool:
        """TRL's own condition for scoring the batch with the current policy before rewards."""
        generate_every = self.args.steps_per_generation * self.num_iterations
        misaligned = self.args.gradient_accumulation_steps % generate_every != 0
        corrected = self.use_vllm and getattr(self, "vllm_importance_sampling_correction", False)
        return bool(misaligned or corrected)

    @property
    def _drops_out(self) -> bool:
        """Whether training mode changes the model's output: a dropout layer, or a rate that a layer applies itself."""
        return any(
            isinstance(value, float) and value > 0 and ("dropout" in name or isinstance(module, torch.nn.Dropout))
            for module in self.model.modules()
            for name, value in vars(module).items()
        )

    @property
    def _group_size(self) -> int:
        return int(self.num_generations if self._mode == "train" else self.num_generations_eval)

    def _other_advantages(self, rewards: torch.Tensor) -> FloatArray:
        """(world B,) group advantage of the reward functions beside the outcome, weighted and summed; 0 if none."""
        weights = self.reward_weights[1:].to(rewards)
        rest = (rewards[:, 1:] * weights).nansum(dim=1).double().cpu().numpy()
        per_group = rest.reshape(-1, self._group_size)
        return np.concatenate([normalise(row, scale=self.reward.scale, eps=self.reward.eps) for row in per_group])

    def _trajectory(
        self, index: int, row: dict[str, Any], completion: Any, entropy: FloatArray, outcome: float
    ) -> Trajectory:
        ids, step = self._completion_ids[index], self.state.global_step + 1
        messages = completion if isinstance(completion, list) else [{"role": "assistant", "content": completion}]
        facts = {"task_id": row.get("task_id"), "step": step, **json.loads(row.get("facts") or "{}")}
        return trajectory_from_row(
            row["prompt"] if isinstance(row["prompt"], list) else [{"role": "user", "content": row["prompt"]}],
            messages,
            self._tool_mask[index],
            entropy,
            decode_tokens(self._tokenizer, ids),
            truncated=not ids or ids[-1] not in {*self.eos_token_ids, self._tokenizer.pad_token_id},
            id=str(row.get("rollout_id") or f"{step}-{self.accelerator.process_index}-{index}"),
            group_id=None if row.get("task_id") is None else str(row["task_id"]),
            temperature=float(self.temperature),
            token_ids=np.asarray(ids, dtype=np.int64),
            question=row.get("question"),
            prediction=last_text(messages),
            golden_answers=tuple(row.get("golden_answers") or ()),
            outcome=None if np.isnan(outcome) else min(max(outcome, 0.0), 1.0),
            model=getattr(self.model.config, "_name_or_path", None) or None,
            metadata={
                key: value if isinstance(value, str | int | float | bool | None) else json.dumps(value, default=str)
                for key, value in facts.items()
            },
        )

    def _entropies(self) -> list[FloatArray]:
        """(T_i,) nats for each row, at the sampling temperature, from TRL's own scoring pass."""
        return self._score_rows() if self._captured is None else _unpadded(self._captured, self._completion_ids)

    @torch.no_grad()
    def _score_rows(self) -> list[FloatArray]:
        """(T_i,) nats for each row from one extra forward pass, in batches of similar length."""
        size = max(1, min(self.args.per_device_train_batch_size, 32))
        prompts, completions = self._prompt_ids, self._completion_ids
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]) + len(completions[i]))
        result: dict[int, FloatArray] = {}
        training = self.model.training
        self.model.eval()  # dropout would change the entropies, and consume random numbers
        try:
            with disable_gradient_checkpointing(self.model, self.args.gradient_checkpointing_kwargs):
                for start in range(0, len(order), size):
                    chunk = order[start : start + size]
                    rows = self._score_chunk([prompts[i] for i in chunk], [completions[i] for i in chunk])
                    result.update(zip(chunk, rows, strict=True))
        finally:
            self.model.train(training)
        return [result[i] for i in range(len(order))]

    def _score_chunk(self, prompts: list[list[int]], completions: list[list[int]]) -> list[FloatArray]:
        left, right = max(map(len, prompts)), max(map(len, completions))
        ids = torch.full((len(prompts), left + right), self._tokenizer.pad_token_id, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
            span = slice(left - len(prompt), left + len(completion))
            ids[row, span] = torch.tensor(prompt + completion)
            mask[row, span] = 1
        device = self.accelerator.device
        output = super()._get_per_token_logps_and_entropies(
            self.model, ids.to(device), mask.to(device), right, compute_entropy=True
        )
        return _unpadded(output[1], completions)

    def _record_metrics(self, signals: list[Signal], outcomes: FloatArray) -> None:
        row = batch_metrics(signals, outcomes)
        for key, value in row.items():
            if not np.isnan(value):
                self._metrics[self._mode][key].append(value)
        if self._mode == "train" and self.accelerator.is_main_process:
            for alarm in self._monitor.update(row):
                logger.warning("deltah alarm at step %d: %s", self.state.global_step + 1, alarm)


def _unpadded(entropies: torch.Tensor, completions: list[list[int]]) -> list[FloatArray]:
    """B arrays (T_i,) of right-padded rows (B, T)."""
    rows = entropies.float().cpu().numpy()
    return [row[: len(ids)].astype(np.float64) for row, ids in zip(rows, completions, strict=True)]
