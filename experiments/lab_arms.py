"""Train every arm of the lab with several seeds; write docs/results/lab.md, its raw numbers and the README's picture.

    python experiments/lab_arms.py --seeds 0 1 2 --out runs/lab-arms
    python experiments/lab_arms.py --seeds 0 --margin 0 --out runs/lab-arms

Resumable: each seed is one `deltah demo`; finished arms are kept. The page states means over seeds, every seed's own
value, and differences to the outcome arm paired by question within a seed. With `--margin`, it trains the sparse arm of
one seed under that dead band instead, and writes docs/results/margin.md: it beside the seed's outcome and sparse arms.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from deltah.core.signals import SignalConfig
from deltah.lab.demo import ARMS, CONTROLS, EVAL_TASKS, STEPS, DemoConfig, report_data, run_demo
from deltah.report import charts
from deltah.report.data import ArmData, ReportData
from deltah.report.page import TEMPLATES, build
from deltah.runs import nan_to_none, package_versions, write_atomic
from deltah.stats.summary import compare, summarise

PICTURE_SCALE = 1.4
"""Size of the stand-alone picture, as a multiple of the chart's size in the page."""
RESULTS = Path(__file__).parents[1] / "docs" / "results"
SHOWN = (
    "outcome",
    "accuracy",
    "calls_per_trajectory",
    "correct_per_call",
    "reduction_rate",
    "no_call",
    "sampled_tokens",
)
REFERENCES = ("outcome", "shuffled")
"""Arms that the others are compared with: plain GRPO, and the control that knows no entropy."""
ALL_ARMS = (*ARMS, *CONTROLS, "otc")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--arms", nargs="+", default=list(ALL_ARMS))
    parser.add_argument("--out", type=Path, default=Path("runs/lab-arms"))
    parser.add_argument("--margin", type=float, help="dead band in nats; writes margin.md")
    parser.add_argument("--tables-only", action="store_true", help="use the finished seeds, train nothing")
    options = parser.parse_args()
    if options.margin is not None:
        write_margin(options.out, options.seeds[0], options.margin, options.steps)
        return
    arms = tuple(options.arms)
    rows, first = [], None
    for seed in options.seeds:
        config = DemoConfig(arms=arms, steps=options.steps, seed=seed)
        out = options.out / f"seed-{seed}"
        if options.tables_only and not finished(config, out):
            continue
        data = trained(config, out)
        first = first or data
        rows += numbers(data, seed)
        write(rows, options.steps)
        print(f"seed {seed} done", flush=True)
    if first is not None:
        write_picture(first, RESULTS / "demo.svg")


def finished(config: DemoConfig, out: Path) -> bool:
    return all((out / arm / "result.json").exists() for arm in config.arms)


def trained(config: DemoConfig, out: Path) -> ReportData:
    return report_data(out, config.arms, config) if finished(config, out) else run_demo(config, out)


def write_margin(out: Path, seed: int, margin: float, steps: int) -> None:
    """Train what is missing of the comparison of two dead bands, and write its page."""
    arms = ("outcome", "sparse")
    usual = DemoConfig(arms=arms, steps=steps, seed=seed)
    other = replace(usual, arms=arms[1:], signal=SignalConfig(margin=margin))
    columns = {arm.name: arm for arm in trained(usual, out / f"seed-{seed}").arms}
    rival = trained(other, out / f"seed-{seed}-margin-{margin:g}").arms[0]
    named = {
        "outcome": columns["outcome"],
        f"sparse, margin {usual.signal.resolved_margin:g}": columns["sparse"],
        f"sparse, margin {margin:g}": rival,
    }
    command = f"python experiments/lab_arms.py --seeds {seed} --margin {margin:g} --steps {steps}"
    (RESULTS / "margin.md").write_text(margin_page(named, command), encoding="utf-8")


def margin_page(arms: dict[str, ArmData], command: str) -> str:
    """The first arm is the one that the others are compared with."""
    lines = [
        "# The dead band",
        "",
        f"What the margin does to the sparse arm of the lab. Made by `{command}` on {date.today().isoformat()}, "
        f"{platform.machine()}, {os.cpu_count()} cores. Intervals are over questions; differences are paired by "
        "question. One seed.",
        "",
        "| decoding | arm | F1 | calls / question | ΔF1 to outcome | Δ calls to outcome |",
        "| --- " * 6 + "|",
    ]
    reference, *_ = arms.values()
    for decoding in ("sampled", "greedy"):
        for name, arm in arms.items():
            summary = summarise(arm.evaluations[decoding].table)
            own = (value(summary.outcome.as_dict(), 3), value(summary.calls_per_trajectory.as_dict(), 2))
            difference = ("–", "–")
            if arm is not reference:
                paired = paired_difference(reference, arm, decoding)
                difference = (interval(paired["outcome"]), interval(paired["calls_per_trajectory"]))
            lines.append(f"| {decoding} | {name} | " + " | ".join((*own, *difference)) + " |")
    return "\n".join(lines) + "\n"


def value(estimate: dict[str, float], digits: int) -> str:
    return "{value:.{d}f} [{low:.{d}f}, {high:.{d}f}]".format(**estimate, d=digits)


def numbers(data: ReportData, seed: int) -> list[dict[str, Any]]:
    """Estimates of every arm and evaluation, and paired differences to the outcome arm."""
    rows: list[dict[str, Any]] = []
    columns = {arm.name: arm for arm in data.columns}
    for name, arm in columns.items():
        for decoding, evaluation in arm.evaluations.items():
            summary = summarise(evaluation.table)
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
    paired = compare(reference.evaluations[decoding].table, arm.evaluations[decoding].table)
    return {key: getattr(paired, key).as_dict() for key in ("outcome", "calls_per_trajectory")}


def write_picture(data: ReportData, out: Path) -> None:
    """The page's chart of F1 against calls, sampled, as an SVG file that follows the viewer's light or dark theme."""
    payload = build(data)
    panels = [panel for panel in payload["plane"] if panel["evaluation"] == "sampled"]
    drawing = str(charts.plane(panels[0], charts.with_classes(payload["arms"]), charts.plane_limits(panels)))
    css = (TEMPLATES / "style.css").read_text(encoding="utf-8")
    colours = css[: css.index("}\n}\n") + 4]
    rules = [line for line in css.splitlines() if re.match(r"\.(chart|grid|mark|a\d)|line\.", line)]
    width, height = (PICTURE_SCALE * side for side in charts.PLANE_SIZE)
    opening = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}"'
    background = '<rect width="100%" height="100%" fill="var(--bg)"/>'
    inside = f"</title><style>{colours}{chr(10).join(rules)}</style>{background}"
    write_atomic(out, drawing.replace("<svg", opening, 1).replace("</title>", inside, 1) + "\n")


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
    keys = ("outcome", "calls_per_trajectory", "correct_per_call", "reduction_rate", "no_call")
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
            cells = [interval(found[key]) for key in ("outcome", "calls_per_trajectory")]
            lines.append(f"| {row['arm']} | {row['seed']} | {cells[0]} | {cells[1]} |")
    return lines


def interval(estimate: dict[str, float]) -> str:
    return f"{estimate['value']:+.3f} [{estimate['low']:+.3f}, {estimate['high']:+.3f}]"


if __name__ == "__main__":
    main()
