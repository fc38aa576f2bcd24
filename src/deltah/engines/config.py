"""Configuration of a training run: plain frozen data, loaded without any heavy package and saved as it was resolved."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from deltah.core.rewards import RewardConfig
from deltah.core.signals import SignalConfig
from deltah.errors import InvalidValueError
from deltah.tools import ToolConfig

Progress = Callable[[int, int, dict[str, float]], None]
"""Called with (done, total, latest metrics)."""

SYSTEM_PROMPT = (
    "Answer the question. Think briefly. Call a tool when you need a fact or a calculation you are not sure of, and do "
    "not call one when you are. Finish with the answer alone inside <answer></answer>."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutConfig:
    """How a model is loaded, and how it uses tools."""

    model: str = "lab"
    """A local directory, a hub id or `lab` (the embedded agent)."""
    tools: tuple[str, ...] = ("search", "python")
    """Names in `TOOLS`, or `package.module:function`."""
    tool: ToolConfig = field(default_factory=ToolConfig)
    grader: str | None = None
    """Grader of every task, a name or `package.module:function`; None: the one that each task names."""
    system_prompt: str = SYSTEM_PROMPT
    temperature: float = 1.0
    """Sampling temperature; entropies are those of the distribution at this temperature."""
    max_completion_length: int = 1024
    """Tokens of a whole trajectory after its prompt, tool results included."""
    max_turn_tokens: int | None = None
    """Tokens of one assistant message; None: only the whole completion is limited."""
    max_rounds: int = 8
    """Tool rounds after which a pending call stays unanswered."""
    batch_size: int = 8
    """Rows in one forward and backward pass, on each device."""
    device: str = "auto"
    """`auto`: a GPU when there is one; `cpu` forces the CPU."""
    vllm: bool = False
    """Generate with vLLM in the same process (`vllm_mode="colocate"`); needs a GPU and the package vllm."""
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "tools", tuple(self.tools))
        _check_positive(self, "temperature", "max_completion_length", "max_turn_tokens", "max_rounds", "batch_size")
        if self.device not in ("auto", "cpu"):
            raise InvalidValueError(f"device is {self.device!r}; choose 'auto' or 'cpu'")


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutRunConfig:
    """Rollouts without training, under the same keys."""

    rollout: RolloutConfig = field(default_factory=RolloutConfig)


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalConfig:
    """Evaluation on held-out tasks."""

    tasks: str
    """Task file."""
    corpus: str | None = None
    """Corpus that `search` uses during evaluation; None: the training corpus."""
    limit: int | None = None
    """Use only the first `limit` tasks."""
    batch_size: int = 64

    def __post_init__(self) -> None:
        _check_positive(self, "batch_size", "limit")


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateConfig:
    """One evaluation of a model, without training."""

    eval: EvalConfig
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    signal: SignalConfig = field(default_factory=SignalConfig)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-able form, as saved in run.json."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """One training run."""

    tasks: str
    """Task file: JSONL or Parquet, see docs/formats.md."""
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    signal: SignalConfig = field(default_factory=SignalConfig)
    eval: EvalConfig | None = None
    """Evaluation after training; None: none."""
    steps: int = 100
    prompts_per_step: int = 8
    generations: int = 8
    """Trajectories of each prompt, 2 or more: the group."""
    learning_rate: float = 1e-6
    warmup_steps: int = 5
    num_iterations: int = 1
    """Optimiser passes over each batch of trajectories."""
    beta: float = 0.0
    """Weight of the KL term to the starting policy."""
    lora_rank: int = 0
    """Train a LoRA adapter of this rank; 0: all weights. Needs peft."""
    save_every: int = 10
    """Steps between checkpoints; a multiple of `num_iterations`."""
    trace_every: int = 10
    """Steps between written trajectories; 0 writes none."""
    report_to: tuple[str, ...] = ()
    """Trackers of TRL's `report_to`: tensorboard, trackio, wandb."""
    trainer: dict[str, Any] = field(default_factory=dict)
    """Further fields of TRL's `GRPOConfig`, passed on as they are."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "report_to", tuple(self.report_to))
        _check_positive(
            self, "steps", "prompts_per_step", "generations", "learning_rate", "num_iterations", "save_every"
        )
        for name in ("warmup_steps", "beta", "lora_rank", "trace_every"):
            if getattr(self, name) < 0:
                raise InvalidValueError(f"{name} is {getattr(self, name)}; expected 0 or more")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-able form, as saved in run.json."""
        return {**asdict(self), "reward": self.reward.to_dict()}


def _check_positive(config: Any, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if value is not None and not value > 0:
            raise InvalidValueError(f"{name} is {value}; expected a number above 0")
