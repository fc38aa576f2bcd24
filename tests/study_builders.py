"""Synthetic agents for the tests of the study: their numbers are chosen, never measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from deltah import Segment, SegmentKind, ToolCall, Trajectory, score
from deltah.calls.tool_kinds import ToolKinds
from deltah.core.types import CallStatus, Estimator, StopReason
from deltah.report.data import ArmData, Evaluation, ReportData

NAMES = ("Mira Kovel", "Tomas Brenn", "Ilse Varga", "Orin Tade", "Pella Sunde", "Rafe Dorn")
PLACES = ("Larkholm", "Velmora", "Tarsa", "Quillport", "Ostbridge", "Nimsby")


class Writer:
    """Collects tokens, their entropies and segments in order."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.texts: list[str] = []
        self.entropy: list[float] = []
        self.segments: list[Segment] = []

    def add(self, kind: SegmentKind, text: str, turn: int, mean: float = 0.0) -> None:
        words = [" " + word for word in text.split(" ")]
        start = len(self.texts)
        self.texts += words
        drawn = self.rng.gamma(0.7, max(mean, 1e-6) / 0.7, size=len(words))
        self.entropy += (drawn if kind.sampled else np.full(len(words), np.nan)).tolist()
        self.segments.append(Segment(kind=kind, start=start, stop=start + len(words), turn=turn))


def agent(
    rng: np.random.Generator, question: int, *, calls: float, skill: float, half_width: float = 0.0, filler: int = 4
) -> Trajectory:
    """One rollout of a made-up agent."""
    name, place = NAMES[question % 6], PLACES[(question * 5) % 6]
    needs = question % 3 > 0
    n, writer, made = int(rng.poisson(calls + (0.4 if needs else -0.2))), Writer(rng), []
    writer.add(SegmentKind.PROMPT, f"user: Where does {name} live? assistant:", 0)
    uncertain = 1.1 if needs else 0.35
    for turn in range(n):
        writer.add(SegmentKind.REASONING, f"I believe {place} , but let me check . " + "so " * filler, turn, uncertain)
        tool = "search" if rng.random() < 0.8 else "python"
        failed = tool == "python" and rng.random() < 0.2
        arguments = f'{{"query": "{name} residence {turn}"}}' if tool == "search" else '{"code": "sum([184, 377])"}'
        writer.add(SegmentKind.CALL, f"<tool_call> {tool} {arguments} </tool_call>", turn, 0.1)
        result = "TypeError: unsupported operand" if failed else f"{name} was born in Tarsa. {name} lives in {place}."
        writer.add(SegmentKind.RESULT, result, turn)
        status = CallStatus.ERROR if failed else CallStatus.OK
        made.append(
            ToolCall(
                id=f"c{turn}", name=tool, arguments=arguments, turn=turn, result=result, status=status, duration_s=0.004
            )
        )
        uncertain *= float(np.exp(rng.normal(-0.5 if turn == 0 else 0.0, 0.35)))
    right = rng.random() < skill - (0.2 if needs and n == 0 else 0.0)
    writer.add(SegmentKind.REASONING, f"Then the answer is {place if right else 'Nimsby'} .", n, uncertain)
    writer.add(SegmentKind.CONTROL, "<eos>", n, 0.01)
    h = np.array(writer.entropy)
    exact = half_width == 0
    return Trajectory(
        id=f"q{question:03d}",
        segments=tuple(writer.segments),
        calls=tuple(made),
        entropy=h,
        entropy_lower=None if exact else np.maximum(h - half_width, 0),
        entropy_upper=None if exact else h + half_width,
        estimator=Estimator.EXACT if exact else Estimator.TOP_K,
        temperature=1.0,
        token_texts=tuple(writer.texts),
        question=f"Where does {name} live? (version {question})",
        prediction=place if right else "Nimsby",
        golden_answers=(place,),
        outcome=1.0 if right else float(rng.choice([0.0, 0.0, 0.4])),
        stop_reason=StopReason.ANSWERED,
        metadata={"task_id": f"task-{question}", "needs_tools": needs},
    )


def evaluated(trajectories: Iterable[Trajectory], seed: int = 0) -> Evaluation:
    scored = ((t, None if t.entropy is None else score(t)) for t in trajectories)
    return Evaluation.of(scored, seed=seed, tools=ToolKinds.of(dict.fromkeys(("search", "python"), "read")))


def rollouts(seed: int, calls: float, skill: float, n: int, **options: Any) -> list[Trajectory]:
    rng = np.random.default_rng(seed)
    return [agent(rng, q, calls=calls, skill=skill, **options) for q in range(n)]


def evaluations(seed: int, calls: float, skill: float, n: int, **options: Any) -> dict[str, Evaluation]:
    return {
        "sampled": evaluated(rollouts(seed, calls, skill, n, **options)),
        "greedy": evaluated(rollouts(seed + 1000, calls * 0.8, min(skill + 0.1, 1), n, **options)),
    }


def curves(
    seed: int, calls: tuple[float, float], skill: tuple[float, float], steps: int = 60
) -> list[Mapping[str, object]]:
    rng = np.random.default_rng(seed)
    share = 1 - np.exp(-np.linspace(0, 3, steps))
    return [
        {
            "step": i + 1,
            "deltah/outcome": float(skill[0] + (skill[1] - skill[0]) * s + rng.normal(0, 0.03)),
            "deltah/calls": float(calls[0] + (calls[1] - calls[0]) * s + rng.normal(0, 0.1)),
            "deltah/reduction_rate": float(0.55 + 0.15 * s + rng.normal(0, 0.03)) if i != 20 else None,
            "deltah/signal_mean": float(-0.2 - 0.2 * s + rng.normal(0, 0.03)),
            "reward": 0.5,
        }
        for i, s in enumerate(share)
    ]


PLANS = {"outcome": (2.5, 0.81), "sparse": (1.3, 0.77), "dense": (1.8, 0.76)}
"""Calls and skill of the arms of `demo`; the sampled rollouts of the arm at index i are `rollouts(i, *plan, n)`."""


def demo(n: int = 60, **options: Any) -> ReportData:
    """Three arms and a start, as the demo has them."""
    arms = tuple(
        ArmData(
            name=name,
            config={"reward": name, "learning_rate": 5e-4, "seed": 0},
            metrics=curves(10 + i, (2.2, calls), (0.6, skill)),
            seconds=200.0 + 13 * i,
            evaluations=evaluations(i, calls, skill, n, **options),
        )
        for i, (name, (calls, skill)) in enumerate(PLANS.items())
    )
    return ReportData(
        title="Three rewards from one cold start",
        arms=arms,
        start=evaluations(99, 2.2, 0.6, n, **options),
        facts={"machine": "synthetic", "date": "2000-01-01"},
    )
