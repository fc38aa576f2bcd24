"""How often intervals of the study hold the truth, and how often its tests reject a true null, on simulated logs.

    python experiments/study_calibration.py > docs/results/study_calibration.txt

Questions of a log share a level of the signal and, separately, of the label, which is drawn a call (`call`) or once a
question (`question`). The signal of good calls is shifted by an effect: 0, 1.2 or 2.7 standard deviations. The truth is
that of a log of 6,000 questions. Eight signals of each kind are drawn on every simulated log.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

import numpy as np

from deltah.stats.associations import associate
from deltah.stats.columns import StudyTable
from deltah.stats.replicates import STATISTICS, blocks

EFFECTS = (0.0, 1.2, 2.7)
SIGNALS = 8
TRUE_QUESTIONS = 6000
MAX_INDEX = 8
SHARED = 0.7
"""Standard deviation of the signal that calls of a question share, of 1."""
SIZES: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "like": lambda rng, q: 1 + rng.poisson(4, q),
    "one large": lambda rng, q: 1 + rng.poisson(2, q) + 20 * (np.arange(q) == 0),
    "heavy tail": lambda rng, q: np.minimum(1 + rng.pareto(1.2, q) * 2, 150).astype(np.int64),
}
"""Calls of each question."""
SCENARIOS = (
    ("like", 8, 120),
    ("like", 20, 90),
    ("like", 60, 60),
    ("one large", 20, 60),
    ("heavy tail", 20, 60),
    ("heavy tail", 60, 40),
)
"""Sizes, questions, simulated logs."""
SHOWN = ("auc", "auc_within_index", "spearman", "partial_spearman", "point_biserial", "partial_point_biserial")


def simulate(rng: np.random.Generator, sizes: str, questions: int, signals: int) -> StudyTable:
    n = SIZES[sizes](rng, questions)
    cluster = np.repeat(np.arange(questions), n)
    calls = len(cluster)
    level = rng.normal(size=questions)
    labels = {
        "call": (level[cluster] + rng.logistic(size=calls) > 0).astype(np.float64),
        "question": (level + rng.normal(size=questions) * 0.5 > 0).astype(np.float64)[cluster],
    }
    columns = {}
    for effect in EFFECTS:
        for s in range(signals):
            own = np.sqrt(1 - SHARED**2) * rng.normal(size=calls)
            noise = SHARED * rng.normal(size=questions)[cluster] + own
            columns |= {f"{label}|{effect}|{s}": noise + effect * good for label, good in labels.items()}
    return StudyTable(
        cluster=cluster,
        index=np.minimum(np.concatenate([np.arange(1, k + 1) for k in n]), MAX_INDEX),
        tokens=np.exp(rng.normal(3, 0.7, (calls, 2))).astype(np.int64) + 1,
        tool=rng.integers(0, 2, calls),
        tools=("a", "b"),
        calls=tuple((f"t{q}", str(i)) for i, q in enumerate(cluster)),
        signals=columns,
        labels=labels,
    )


def truth(sizes: str) -> dict[tuple[str, str], np.ndarray]:
    table = simulate(np.random.default_rng(10_000), "like" if sizes == "one large" else sizes, TRUE_QUESTIONS, 2)
    found = defaultdict(list)
    for block in blocks(table):
        estimate = block.estimate()
        for i, name in enumerate(block.signals):
            for j, label in enumerate(block.labels):
                if name.startswith(f"{label}|"):
                    found[label, name.split("|")[1]].append(estimate[i, j])
    return {key: np.mean(values, axis=0) for key, values in found.items()}


def run(sizes: str, questions: int, logs: int) -> None:
    true = truth(sizes)
    held, rejected = defaultdict(list), defaultdict(list)
    for r in range(logs):
        table = simulate(np.random.default_rng([0, r]), sizes, questions, SIGNALS)
        for a in associate(table, resamples=500, permutations=499, seed=r):
            if a.reason is not None or not a.signal.startswith(f"{a.label}|"):
                continue
            key = a.label, a.signal.split("|")[1]
            for i, name in enumerate(STATISTICS):
                interval = getattr(a, name)
                if interval.low == interval.low:
                    held[key, name].append(interval.low <= true[key][i] <= interval.high)
            rejected[key].append((a.p <= 0.05, a.p_partial <= 0.05))
    print(f"\n{questions} questions, sizes: {sizes}, {logs} logs")
    for key, tests in sorted(rejected.items()):
        shares = "  ".join(f"{name} {np.mean(held[key, name]):.3f}" for name in SHOWN)
        raw, partial = np.mean(tests, axis=0)
        kind = "rejected" if key[1] == "0.0" else "power"
        print(
            f"{key[0]:<8} effect {key[1]}  n {len(tests):>4}  held: {shares}  {kind}: {raw:.3f}, partial {partial:.3f}"
        )


if __name__ == "__main__":
    for scenario in SCENARIOS:
        run(*scenario)
