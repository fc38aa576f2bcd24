"""How often exact repeats and first calls count as reductions, by margin, on the lab's training world.

    python experiments/dead_band.py --out runs/dead-band

Writes the training world, rolls out the agent before training on its first questions (resumable, a few minutes on one
core), and prints the table that docs/lab.md publishes. A margin separates best where the share of first calls called
reduced exceeds that of exact repeats by most. Neither share uses an answer or the evaluation world. Intervals: 1,000
bootstrap draws of questions.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deltah import Trajectory, read_traces, score
from deltah.lab.demo import SIGNAL, TRAIN_TASKS, rollout_config
from deltah.lab.questions import write_split
from deltah.lab.world import Split

MARGINS = (0.0, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.07, 0.1)
DRAWS = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/dead-band"))
    parser.add_argument("--questions", type=int, default=800)
    parser.add_argument("--traces", type=Path, help="take these trajectories instead of making some")
    options = parser.parse_args()
    print(page(read_traces(options.traces or training_rollout(options.out, options.questions))))


def training_rollout(out: Path, questions: int) -> Path:
    """Sampled trajectories of the shipped agent on the first training questions of seed 0."""
    tasks, corpus = write_split(out / "world", Split.TRAIN, seed=0, n=TRAIN_TASKS)
    config, traces = out / "rollout.json", out / "train.jsonl.zst"
    config.write_text(json.dumps(asdict(rollout_config())), encoding="utf-8")
    if not traces.exists():
        command = [sys.executable, "-m", "deltah", "rollout", "--config", config, "--tasks", tasks, "--corpus", corpus]
        subprocess.run([*map(str, command), "--limit", str(questions), "--out", str(traces)], check=True)
    return traces


def page(trajectories: Iterable[Trajectory]) -> str:
    """The table, and how sure the choice is."""
    calls = calls_by_question(trajectories)
    every = np.concatenate(calls)
    repeats, firsts = shares(every)
    rng = np.random.default_rng(0)
    drawn = np.array([difference(resampled(calls, rng)) for _ in range(DRAWS)])
    low, high = np.percentile(drawn, [2.5, 97.5], axis=0)
    repeated = int(every[:, 0].sum())
    lines = [
        f"{len(calls)} different questions with a call, {repeated} exact repeats, {len(every) - repeated} first calls "
        f"({int(np.isnan(every[:, 1]).sum())} calls without ΔH count as not reduced)\n",
        "| margin, nats | exact repeats called reduced | first calls called reduced | difference [95 %] |",
        "| --- | --- | --- | --- |",
    ]
    for i, margin in enumerate(MARGINS):
        gap = firsts[i] - repeats[i]
        lines.append(f"| {margin:g} | {repeats[i]:.3f} | {firsts[i]:.3f} | {gap:.3f} [{low[i]:.3f}, {high[i]:.3f}] |")
    return "\n".join([*lines, "", waste_level(firsts - repeats, drawn)])


def waste_level(gaps: NDArray[np.float64], drawn: NDArray[np.float64]) -> str:
    """The margin that separates best, and its lead over the recipe's, paired within the draws."""
    best, used = int(np.argmax(gaps)), MARGINS.index(SIGNAL.resolved_margin)
    lead = np.percentile(drawn[:, best] - drawn[:, used], [2.5, 97.5])
    wins = np.bincount(drawn.argmax(axis=1), minlength=len(MARGINS)) / len(drawn)
    return (
        f"largest difference at {MARGINS[best]:g}; its lead over {MARGINS[used]:g}: {gaps[best] - gaps[used]:.3f} "
        f"[{lead[0]:.3f}, {lead[1]:.3f}]\nshare of draws in which a margin is the best: "
        + ", ".join(f"{margin:g}: {share:.2f}" for margin, share in zip(MARGINS, wins, strict=True) if share)
    )


def calls_by_question(trajectories: Iterable[Trajectory]) -> list[NDArray[np.float64]]:
    """For each question (C, 2): whether the call repeats an earlier one of its trajectory exactly, and its ΔH."""
    rows: dict[str | None, list[tuple[float, float]]] = {}
    for trajectory in trajectories:
        seen: set[tuple[str, str]] = set()
        for call, delta in zip(trajectory.calls, score(trajectory).call_value, strict=True):
            key = (call.name, call.arguments)
            rows.setdefault(trajectory.question, []).append((key in seen, float(delta)))
            seen.add(key)
    return [np.array(found, dtype=np.float64) for found in rows.values()]


def resampled(calls: list[NDArray[np.float64]], rng: np.random.Generator) -> NDArray[np.float64]:
    return np.concatenate([calls[i] for i in rng.integers(0, len(calls), len(calls))])


def shares(calls: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Shares of exact repeats and of first calls below each -margin; NaN, no ΔH, is not below."""
    reduced = calls[:, 1, None] < -np.array(MARGINS)
    again = calls[:, 0] == 1.0
    return reduced[again].mean(axis=0), reduced[~again].mean(axis=0)


def difference(calls: NDArray[np.float64]) -> NDArray[np.float64]:
    repeats, firsts = shares(calls)
    return firsts - repeats


if __name__ == "__main__":
    main()
