"""deltah: did this tool call make the model more certain?

ΔH is the change of policy entropy across a tool call. This package measures it, exactly or with certified bounds, and
turns it into a diagnosis of logs and into rewards for training. Importing it loads numpy and msgspec, nothing heavy.
"""

from deltah.core.advantages import token_advantages
from deltah.core.entropy import EntropyBounds, entropy_bounds, entropy_from_logits
from deltah.core.rewards import Reward, RewardConfig, dense_reward, group_rewards, sparse_reward
from deltah.core.scored import CallLabel, Group, Signal
from deltah.core.signals import PositionBaseline, SignalConfig, score
from deltah.core.types import Segment, SegmentKind, ToolCall, Trajectory
from deltah.errors import DeltahError
from deltah.traces import read_traces, signal_of, write_traces

__version__ = "0.1.0"

__all__ = [
    "CallLabel",
    "DeltahError",
    "EntropyBounds",
    "Group",
    "PositionBaseline",
    "Reward",
    "RewardConfig",
    "Segment",
    "SegmentKind",
    "Signal",
    "SignalConfig",
    "ToolCall",
    "Trajectory",
    "dense_reward",
    "entropy_bounds",
    "entropy_from_logits",
    "group_rewards",
    "read_traces",
    "score",
    "signal_of",
    "sparse_reward",
    "token_advantages",
    "write_traces",
]
