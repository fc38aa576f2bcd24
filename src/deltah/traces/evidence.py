"""What top-k lists say of a trajectory, kept while the vocabulary's size is unknown, and used once it is stated.

Without the size V no upper bound exists. A trajectory of a log that does not say it carries the sums that its bounds
take (`deltah.core.entropy.top_k_evidence`), so that traces written from it can be certified later as the log itself:
`bounded` gives the entropies and bounds that the log gives with V. (Lists of all V tokens are exact in the log alone.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from deltah.core.entropy import bounds_from_evidence
from deltah.core.types import Trajectory
from deltah.errors import ConfigError, DataError, InvalidValueError, VocabularySizeError
from deltah.traces.dialogue import Dialogue
from deltah.traces.tokens import concatenate
from deltah.traces.topk import evidence_of


def with_evidence(dialogue: Dialogue, to_trajectory: Callable[[Dialogue], Trajectory]) -> Trajectory:
    """The trajectory of a conversation, with what its lists say if its entropies have no upper bound; errors likewise.

    Args:
        dialogue: What was said.
        to_trajectory: Measures its tokens.
    """
    trajectory = to_trajectory(dialogue)
    if trajectory.entropy_upper is None or not np.isinf(trajectory.entropy_upper).any():
        return trajectory
    tokens = concatenate([said.tokens for said in dialogue.said if not said.context])
    return replace(trajectory, top_k_evidence=evidence_of(tokens, requested=dialogue.facts.top_logprobs))


def bounded(trajectory: Trajectory, vocab_size: int | None) -> Trajectory:
    """A trajectory of ours, bounded by a size that was not known when it was written.

    Args:
        trajectory: One without evidence is given back as it is.
        vocab_size: V; None: still unknown.

    Raises:
        ConfigError: if the size is too small for what the trajectory holds.
        DataError: if what it carries is no such evidence.
    """
    if vocab_size is None or trajectory.top_k_evidence is None:
        return trajectory
    try:
        found = bounds_from_evidence(trajectory.top_k_evidence, vocab_size)
    except VocabularySizeError as error:
        raise ConfigError(f"--vocab-size: {error}") from error
    except InvalidValueError as error:
        raise DataError(f"field top_k_evidence: {error}") from error
    return replace(
        trajectory,
        entropy=found.point,
        entropy_lower=found.lower,
        entropy_upper=found.upper,
        top_k_evidence=None,
    )
