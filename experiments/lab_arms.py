"""Train every arm of the lab with several seeds; write docs/results/lab.md, its raw numbers and the README's picture.

    python experiments/lab_arms.py --seeds 0 1 2 --out runs/lab-arms

Resumable: each seed is one `deltah demo`; finished arms are kept. The page states means over seeds, every seed's own
value, and differences to the outcome arm paired by question within a seed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from deltah.core.rewards import RewardName
from deltah.lab.demo import DemoConfig, report_data, run_demo
from deltah.lab.recipe import ARMS, CONTROLS, EVAL_TASKS, STEPS
from deltah.study import ArmData, ReportData
from deltah.study.report.figure import write_plane
from deltah.study.summary import compare_tallies
from deltah.traces.rundir import nan_to_none, package_versions

RESULTS = Path(__file__).parents[1] / "docs" / "results"
SHOWN = ("f1", "accuracy", "calls_per_question", "correct_per_call", "reduction_rate", "no_call", "sampled_tokens")
REFERENCES = ("outcome", "shuffled")
"""Arms that the others are compared with: plain GRPO, and the control that knows no entropy."""
ALL_ARMS = (*ARMS, *CONTROLS, RewardName.OTC)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--arms", nargs="+", default=[arm.value for arm in ALL_ARMS])
    parser.add_argument("--out", type=Path, default=Path("runs/lab-arms"))
    parser.add_argument("--tables-only", action="store_true", help="use the finished seeds, train nothing")
    options = parser.parse_args()
    arms = tuple(RewardName(arm) for arm in options.arms)
    rows, first = [], None
    for seed in options.seeds:
        config = DemoConfig(arms=arms, steps=options.steps, eval_tasks=EVAL_TASKS, seed=seed)
        out = options.out / f"seed-{seed}"
        finished = all((out / arm.value / "result.json").exists() for arm in arms)
        if options.tables_only and not finished:
            continue
        data = report_data(out, arms, config) if finished else run_demo(config, out)
        first = first or data
        rows += numbers(data, seed)
        write(rows, options.steps)
        print(f"seed {seed} done", flush=True)
    if first is not None:
        write_plane(first, RESULTS / "demo.svg")


def numbers(data: ReportData, seed: int) -> list[dict[str, Any]]:
    """Estimates of every arm and evaluation, and paired differences to the outcome arm."""
    rows: list[dict[str, Any]] = []
    columns = {arm.name: arm for arm in data.columns}
    for name, arm in columns.items():
        for decoding, evaluation in arm.evaluations.items():
            summary = evaluation.summarise()
            row = {key: getattr(summary, key).as_dict() for key in SHOWN}
            row["against"] = {
                reference: paired_difference(columns[reference], arm, decoding)
                for reference in REFERENCES
                if reference in columns and name not in ("start", reference)
            }
            rows.append({"seed": seed, "arm": name, "decoding": decoding, "seconds": arm.seconds, **row})
    return rows


def paired_difference(reference: ArmData, arm: ArmData, decoding: str) -> dict[str, dict[str, float | int]]:
    """Arm less reference on the same questions."""
    paired = compare_tallies(reference.evaluations[decoding].tallies, arm.evaluations[decoding].tallies)
    return {key: getattr(paired, key).as_dict() for key in ("f1", "calls_per_question")}


def write(rows: list[dict[str, Any]], steps: int) -> None:
    """Raw numbers as JSON, and the page that states them."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    facts = {
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": package_versions(),
        "steps": steps,
        "eval_tasks": EVAL_TASKS,
    }
    content = nan_to_none({"facts": facts, "rows": rows})
    (RESULTS / "lab.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    (RESULTS / "lab.md").write_text(page(rows, facts), encoding="utf-8")


def page(rows: list[dict[str, Any]], facts: dict[str, Any]) -> str:
    seeds = sorted({row["seed"] for row in rows})
    arms = " ".join(dict.fromkeys(row["arm"] for row in rows if row["arm"] != "start"))
    parts = [
        "# The embedded lab: all arms",
        "",
        f"Made by `python experiments/lab_arms.py --seeds {' '.join(map(str, seeds))} --steps {facts['steps']} "
        f"--arms {arms}` on {facts['date']}, {facts['machine']}; raw numbers in [lab.json](lab.json). "
        f"{len(seeds)} seeds of worlds, sampling and training; {facts['eval_tasks']} held-out questions a seed. "
        "Values are means over seeds with a 95 % t-interval over seeds (wide: they are few), then each seed's own.",
        "",
    ]
    for decoding in ("sampled", "greedy"):
        parts += [f"## {decoding.capitalize()} decoding", "", *table(rows, decoding), ""]
        for reference in REFERENCES:
            heading = f"Difference to `{reference}`, paired by question within each seed:"
            parts += [heading, "", *differences(rows, decoding, reference), ""]
    return "\n".join(parts).rstrip() + "\n"


def table(rows: list[dict[str, Any]], decoding: str) -> list[str]:
    keys = ("f1", "calls_per_question", "correct_per_call", "reduction_rate", "no_call")
    lines = ["| arm | F1 | calls / question | correct / call | reduction rate | without a call |", "| --- " * 6 + "|"]
    for arm in dict.fromkeys(row["arm"] for row in rows):
        mine = [row for row in rows if row["arm"] == arm and row["decoding"] == decoding]
        lines.append(f"| {arm} | " + " | ".join(over_seeds([row[key]["value"] for row in mine]) for key in keys) + " |")
    return lines


def over_seeds(values: list[float | None]) -> str:
    found = np.array([v for v in values if v is not None], dtype=float)
    if not len(found):
        return "–"
    own = ", ".join(f"{v:.2f}" for v in found)
    if len(found) < 2:
        return f"{found[0]:.3f}"
    half = stats.t.ppf(0.975, len(found) - 1) * found.std(ddof=1) / np.sqrt(len(found))
    return f"{found.mean():.3f} ± {half:.3f} ({own})"


def differences(rows: list[dict[str, Any]], decoding: str, reference: str) -> list[str]:
    lines = ["| arm | seed | ΔF1 [95 %] | Δ calls / question [95 %] |", "| --- " * 4 + "|"]
    for row in sorted(rows, key=lambda row: row["arm"]):
        found = row["against"].get(reference)
        if row["decoding"] == decoding and found:
            cells = [interval(found[key]) for key in ("f1", "calls_per_question")]
            lines.append(f"| {row['arm']} | {row['seed']} | {cells[0]} | {cells[1]} |")
    return lines


def interval(estimate: dict[str, float]) -> str:
    return f"{estimate['value']:+.3f} [{estimate['low']:+.3f}, {estimate['high']:+.3f}]"


if __name__ == "__main__":
    main()
