"""Vocabulary sizes that were taken from models' names, and what becomes of one that the log refutes.

Such a size (`deltah.traces.vocabularies`) is a default that nobody stated. Once the log refutes it, it is dropped for
that model: its conversations are read as those of a model of unknown size from there on, with infinite upper bounds.
What was read before keeps its bounds; whoever shows them has to say so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from deltah.core.types import Trajectory
from deltah.errors import DataError, VocabularySizeError
from deltah.traces.dialogue import Dialogue
from deltah.traces.seen import SeenTokens
from deltah.traces.vocabularies import vocab_size_of


class NamedSizes:
    """Sizes known from models' names, of one log."""

    def __init__(self) -> None:
        """Trust them all."""
        self.refuted: dict[str, VocabularySizeError] = {}
        """Models whose size the log refutes, in the order it did."""

    def build(self, dialogue: Dialogue, to_trajectory: Callable[[Dialogue], Trajectory]) -> Trajectory:
        """Build a trajectory of a log whose reader states no size.

        Args:
            dialogue: What was said.
            to_trajectory: Takes the size that the record states, else the one known from its model's name.

        Raises:
            DataError: if the record cannot be a trajectory, whatever the size that its model's name stands for.
        """
        model = dialogue.facts.model
        if model is None or dialogue.facts.vocab_size:
            return to_trajectory(dialogue)
        if model in self.refuted:
            return _of_unknown_size(dialogue, to_trajectory)
        try:
            return to_trajectory(dialogue)
        except DataError as error:
            if not isinstance(refuted := error.__cause__, VocabularySizeError):
                raise
        # Only if the record can be read without: a list that no vocabulary completes refutes none.
        trajectory = _of_unknown_size(dialogue, to_trajectory)
        self.refuted[model] = refuted
        return trajectory

    def check(self, seen: SeenTokens) -> None:
        """Drop the sizes that the different tokens of a log refute."""
        for model, refuted in seen.refuted(vocab_size_of):
            self.refuted.setdefault(model, refuted)


def _of_unknown_size(dialogue: Dialogue, to_trajectory: Callable[[Dialogue], Trajectory]) -> Trajectory:
    facts = dialogue.facts
    unnamed = replace(dialogue, facts=replace(facts, model=None))  # a size is known from the name alone
    return replace(to_trajectory(unnamed), model=facts.model)
