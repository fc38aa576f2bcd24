"""What a split asks: how many of its questions need a tool, name what no training text names, or were seen in training.

Counts come from the written files alone, so that a page about a run states what that run was evaluated on. A question
*names something unseen* when a document that answers it is not in the training corpus: the subject's name is then in no
training or cold-start world. Every other question is about facts known by heart, or is arithmetic.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from deltah.tasks import Task, read_tasks
from deltah.tools.search import read_corpus


@dataclass(frozen=True, slots=True, kw_only=True)
class Composition:
    """Counts of questions; the three parts overlap."""

    questions: int
    distinct: int
    """Different texts."""
    known: int
    """Need no tool: every step was learned by heart."""
    unseen: int
    """Name an entity that training does not."""
    repeated: int
    """Stand word for word among the training questions."""

    def __str__(self) -> str:
        """One clause for a page or a terminal."""
        return (
            f"{self.questions} questions ({self.distinct} different): {self.unseen} name an entity unseen in training, "
            f"{self.known} need no tool, {self.repeated} stand word for word among the training questions"
        )


def composition(world: str | Path, *, limit: int | None = None) -> Composition:
    """Count the evaluation questions of a folder that `write_world` wrote.

    Args:
        world: The folder, with `train/` and `eval/`.
        limit: Count only the first so many.

    Raises:
        DataError: if a file is missing or damaged.
    """
    train, held_out = Path(world) / "train", Path(world) / "eval"
    documents = {document.id for document in read_corpus(train / "corpus.jsonl")}
    return _count(read_tasks(held_out / "tasks.jsonl")[:limit], read_tasks(train / "tasks.jsonl"), documents)


def _count(asked: Sequence[Task], trained: Sequence[Task], documents: set[str]) -> Composition:
    texts = {task.question for task in trained}
    return Composition(
        questions=len(asked),
        distinct=len({task.question for task in asked}),
        known=sum(not task.metadata["needs_tools"] for task in asked),
        unseen=sum(not documents.issuperset(task.supporting) for task in asked),
        repeated=sum(task.question in texts for task in asked),
    )
