"""deltah: did this tool call make the model more certain?

ΔH is the change of policy entropy across a tool call. This package measures it, exactly or with certified bounds, and
turns it into a diagnosis of logs and into rewards for training. Importing it loads nothing: a name loads its module,
and with it numpy and msgspec, when it is first used, so that the command is ready for Ctrl-C from its first moment.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deltah.calls.grading import signal_of
    from deltah.calls.savings import Costs, Prices
    from deltah.calls.table import CallTable, read_calls
    from deltah.core.advantages import (
        BatchCredit,
        Reward,
        batch_credit,
        credit_rollouts,
        group_rewards,
        token_advantages,
    )
    from deltah.core.entropy import DEFAULT_VOCAB_SIZE, EntropyBounds, entropy_bounds, entropy_from_logits
    from deltah.core.metrics import batch_metrics
    from deltah.core.registry import Range, Registry
    from deltah.core.rewards import (
        POOLINGS,
        REWARDS,
        CallRewards,
        Group,
        RewardConfig,
        SegmentAdvantages,
        TrajectoryRewards,
        dense_reward,
        shuffle_verdicts,
        sparse_reward,
    )
    from deltah.core.segments import POOLS, SegmentEntropies, segment_entropies, trajectory_from_spans
    from deltah.core.signals import SIGNALS, Interval, PositionBaseline, Signal, SignalConfig, Verdict, delta_h, score
    from deltah.core.types import CallStatus, Estimator, Segment, SegmentKind, ToolCall, Trajectory
    from deltah.errors import DeltahError
    from deltah.tasks.graders import GRADERS
    from deltah.tools.toolbox import TOOLS
    from deltah.traces import read_traces, write_traces
    from deltah.traces.importing import IMPORTERS

__version__ = "0.2.0"

__all__ = ["GRADERS", "IMPORTERS", "POOLINGS", "POOLS", "REWARDS", "SIGNALS", "TOOLS", "Range", "Registry"]
__all__ += ["CallStatus", "DeltahError", "Segment", "SegmentKind", "ToolCall", "Trajectory", "trajectory_from_spans"]
__all__ += ["DEFAULT_VOCAB_SIZE", "EntropyBounds", "Estimator", "SegmentEntropies"]
__all__ += ["entropy_bounds", "entropy_from_logits", "segment_entropies"]
__all__ += ["Interval", "PositionBaseline", "Signal", "SignalConfig", "Verdict", "delta_h", "score", "signal_of"]
__all__ += ["CallRewards", "Group", "Reward", "RewardConfig", "SegmentAdvantages", "TrajectoryRewards"]
__all__ += ["dense_reward", "group_rewards", "shuffle_verdicts", "sparse_reward"]
__all__ += ["BatchCredit", "batch_credit", "batch_metrics", "credit_rollouts", "token_advantages"]
__all__ += ["CallTable", "Costs", "Prices", "read_calls", "read_traces", "write_traces"]

_HOMES = {
    "calls.grading": "signal_of",
    "calls.savings": "Costs Prices",
    "calls.table": "CallTable read_calls",
    "core.advantages": "BatchCredit Reward batch_credit credit_rollouts group_rewards token_advantages",
    "core.entropy": "DEFAULT_VOCAB_SIZE EntropyBounds entropy_bounds entropy_from_logits",
    "core.metrics": "batch_metrics",
    "core.registry": "Range Registry",
    "core.rewards": "POOLINGS REWARDS CallRewards Group RewardConfig SegmentAdvantages TrajectoryRewards dense_reward "
    "shuffle_verdicts sparse_reward",
    "core.segments": "POOLS SegmentEntropies segment_entropies trajectory_from_spans",
    "core.signals": "SIGNALS Interval PositionBaseline Signal SignalConfig Verdict delta_h score",
    "core.types": "CallStatus Estimator Segment SegmentKind ToolCall Trajectory",
    "errors": "DeltahError",
    "tasks.graders": "GRADERS",
    "tools.toolbox": "TOOLS",
    "traces": "read_traces write_traces",
    "traces.importing": "IMPORTERS",
}
_HOME_OF = {name: f"{__name__}.{module}" for module, names in _HOMES.items() for name in names.split()}
_PARTS = ("core", "errors", "runs", "traces")

if not TYPE_CHECKING:  # a type checker would take any name for one of this package

    def __getattr__(name: str) -> object:
        """Load a public name at its first use."""
        if name in _PARTS:
            return import_module(f"{__name__}.{name}")
        if name not in _HOME_OF:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(_HOME_OF[name]), name)
        return value

    def __dir__() -> list[str]:
        """Public names, loaded or not."""
        return sorted({*globals(), *__all__})
