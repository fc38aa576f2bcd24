"""Do the probe's labels find the calls that the lab agent needed? By group of calls, with intervals by question.

deltah lab world runs/world
deltah rollout --model lab --tasks runs/world/eval/tasks.jsonl --corpus runs/world/eval/corpus.jsonl \
    --tools search,python --limit 60 --seed 0 --out runs/lab60.jsonl
deltah probe runs/lab60.jsonl --model lab --max-calls 150 --seed 0 --out runs/probe.jsonl [--answer-template sentence]
python experiments/probe_lab.py runs/lab60.jsonl runs/probe.jsonl

A call is *needed* if it is the first to return a value of the question's plan that the agent has not learned by heart;
*answering* if that value is the answer; a *repeat* if the same call was made before. The labels are the world's.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable

import numpy as np

from deltah import Trajectory, read_traces
from deltah.lab.names import Split
from deltah.lab.questions import Compute, Question, Step, questions
from deltah.lab.recipe import EVAL_TASKS
from deltah.lab.world import World
from deltah.study.bootstrap import interval, ratio_replicates

WORLD_SEED = 1
"""`deltah lab world` with seed 0 writes the evaluation split of world 1."""
GROUPS = ("needed", "needed, answering", "first, not needed", "repeat")
COLUMNS = ("gain_placebo", "gain_none", "useful", "beats_placebo", "beats_none", "delta_h_placebo", "delta_h_none")


def returns(result: str, step: Step) -> bool:
    if isinstance(step, Compute):
        return result.strip() == step.value
    return any(line.startswith(step.subject) and step.value in line for line in result.splitlines())


def groups_of(trajectory: Trajectory, question: Question) -> dict[str, set[str]]:
    """Groups of every answered call, by its id."""
    missing, seen, groups = [s for s in question.plan if not s.known], set[tuple[str, str]](), {}
    for call in trajectory.calls:
        found = [s for s in missing if returns(call.result or "", s)]
        missing = [s for s in missing if s not in found]
        repeat = (call.name, call.arguments) in seen
        seen.add((call.name, call.arguments))
        groups[call.id] = {"needed"} if found else {"repeat" if repeat else "first, not needed"}
        if question.plan[-1] in found:
            groups[call.id].add("needed, answering")
    return groups


def cell(rows: Iterable[dict[str, object]], column: str) -> str:
    """Mean with its 95 % interval, clustered by question."""
    sums: dict[str, np.ndarray] = {}
    for row in rows:
        if row[column] is not None:
            sums.setdefault(str(row["question"]), np.zeros(2))[:] += float(row[column]), 1  # type: ignore[arg-type]
    table = np.array(list(sums.values())).reshape(-1, 2)
    low, high = interval(ratio_replicates(table[:, :1], table[:, 1:])[:, 0], len(table))
    return f"{table[:, 0].sum() / table[:, 1].sum():.2f} [{low:.2f}, {high:.2f}]" if len(table) else "-"


def main(traces: str, probed: str) -> None:
    asked = {q.task.id: q for q in questions(World(WORLD_SEED, Split.EVAL), EVAL_TASKS, seed=WORLD_SEED)}
    groups = {t.id: groups_of(t, asked[str(t.metadata["task_id"])]) for t in read_traces(traces)}
    with open(probed, encoding="utf-8") as file:
        rows = [row for row in map(json.loads, file) if row["reason"] is None]
    print(f"| calls | n | {' | '.join(COLUMNS)} |\n| --- |{' --- |' * (len(COLUMNS) + 1)}")
    for group in GROUPS:
        chosen = [row for row in rows if group in groups[row["trajectory"]][row["call"]]]
        print(f"| {group} | {len(chosen)} | {' | '.join(cell(chosen, column) for column in COLUMNS)} |")


if __name__ == "__main__":
    main(*sys.argv[1:3])
