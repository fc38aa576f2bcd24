"""The lab's training recipe: what the demo runs, as an ordinary `TrainConfig`.

Numbers come from docs/results/lab.md. They suit a model of one million parameters on two CPU cores; a real language
model wants a far smaller learning rate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from deltah.core.rewards import RewardConfig
from deltah.core.signals import SignalConfig
from deltah.engines.config import EvalConfig, RolloutConfig, TrainConfig
from deltah.lab.questions import Question, questions, write_split
from deltah.lab.world import Split, World
from deltah.tasks import Task, read_tasks
from deltah.tools import ToolConfig
from deltah.tools.search import read_corpus

ARMS = ("outcome", "sparse", "dense")
"""Arms of the demo."""
CONTROLS = ("penalty", "shuffled")
"""Arms that know no entropy; no claim about the others stands without them."""
STEPS = 28
"""Optimiser steps of each arm of the demo."""
TRAIN_TASKS = 2000
EVAL_TASKS = 200


SIGNAL = SignalConfig(margin=0.02)
"""A dead band for this agent's noise: docs/lab.md says why it is 0.02 nats."""


def rollout_config(seed: int = 0) -> RolloutConfig:
    """How the embedded agent acts."""
    return RolloutConfig(
        model="lab",
        tools=("search", "python"),
        max_completion_length=400,
        max_turn_tokens=64,
        max_rounds=8,
        batch_size=48,
        device="cpu",
        seed=seed,
    )


def eval_config(world: Path, limit: int = EVAL_TASKS) -> EvalConfig:
    """The first `limit` questions of the evaluation world."""
    split = world / "eval"
    return EvalConfig(tasks=str(split / "tasks.jsonl"), corpus=str(split / "corpus.jsonl"), limit=limit)


def train_config(
    world: Path,
    reward: str,
    *,
    steps: int,
    seed: int,
    eval_tasks: int = EVAL_TASKS,
    signal: SignalConfig = SIGNAL,
) -> TrainConfig:
    """One arm of the demo on a world written by `write_world`."""
    tool = ToolConfig(corpus=str(world / "train" / "corpus.jsonl"))
    return TrainConfig(
        tasks=str(world / "train" / "tasks.jsonl"),
        rollout=replace(rollout_config(seed), tool=tool),
        reward=RewardConfig(name=reward),
        signal=signal,
        eval=eval_config(world, eval_tasks),
        steps=steps,
        prompts_per_step=6,
        generations=8,
        learning_rate=1e-3,
        warmup_steps=5,
        save_every=5,
        trace_every=10,
        trainer={"adam_beta2": 0.95, "max_grad_norm": 1.0},
    )


def write_world(path: Path, *, seed: int = 0, eval_tasks: int = EVAL_TASKS) -> None:
    """Write the training and the evaluation split; fresh names of the evaluation occur in no training world.

    Args:
        path: Folder for `train/` and `eval/`.
        seed: Seed of the training world; the evaluation world has the next one.
        eval_tasks: Evaluation questions; the first ones are the same however many there are.
    """
    write_split(path / "train", Split.TRAIN, seed=seed, n=TRAIN_TASKS)
    write_split(path / "eval", Split.EVAL, seed=_eval_seed(seed), n=eval_tasks)


def eval_questions(seed: int = 0) -> list[Question]:
    """Questions of the evaluation split that `write_world` writes, with their plans: what only a study may know."""
    world_seed = _eval_seed(seed)
    return list(questions(World(world_seed, Split.EVAL), EVAL_TASKS, seed=world_seed))


def _eval_seed(seed: int) -> int:
    return seed + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Composition:
    """What an evaluation asks, counted from the written files alone; the three parts overlap.

    A question names something unseen if a document that answers it is not in the training corpus: the subject's name is
    then in no training or cold-start world. Every other question is about facts known by heart, or is arithmetic.
    """

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
        limit: Count only the first `limit` questions.

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
