"""The page docs/results/topk.md from the numbers of docs/results/topk.json; it computes no statistic."""

from __future__ import annotations

from typing import Any

from deltah.core.entropy import SERVER_PRECISION_NATS

KS = (1, 5, 20, 100)
PRINTS = ("float64", "float32", "4 decimals")
"""How the log-probabilities are printed; float32 ones are computed in float32, as servers do."""
SETS = ("chat", "script", "agent")
FIRST_ASSUMED_NATS = 2e-6
"""Error of a float32 log-probability assumed by the runs that do not state theirs."""


def page(rows: list[dict[str, Any]], facts: dict[str, Any]) -> str:
    violations = sum(row["violations"] for row in rows)
    wrong = sum(row.get("wrong_verdicts", 0) for row in rows)
    checked = sum(row["tokens"] for row in rows)
    parts = [
        "# Certified ΔH on a real language model",
        "",
        f"Made by `{facts['command']}` on {facts['date']}, {facts['machine']}; raw numbers in [topk.json](topk.json). "
        f"SmolLM2-135M-Instruct, V = {facts['vocab_size']}: its full distributions are known, deltah sees the K best "
        "log-probabilities and that of the drawn token. Sets: `chat`, the model's own answers at temperature 1; "
        "`script`, conversations of the lab's scripted agent, teacher-forced; `agent`, the same calls and results with "
        "reasoning drawn from the model at temperature 1.",
        "",
        f"**Bounds that failed: {violations} of {checked} checks. Certified verdicts that were wrong: {wrong}.** "
        "Both count every set, K and print.",
        *failures(rows, facts.get("assumed_error_nats", FIRST_ASSUMED_NATS)),
        "",
        "## Tokens",
        "",
        "Nats; log-probabilities computed and printed in float32, as servers do. Width is that of the certified "
        "interval; the error is that of the point estimate against the exact entropy.",
        "",
        *token_table([row for row in rows if row["printed"] == "float32"]),
        "",
        "## Rounds",
        "",
        "What is said of ΔH of each round, margin 0, float32. 95 % intervals over conversations.",
        "",
        *round_table([row for row in rows if row["printed"] == "float32" and "rounds" in row]),
        "",
        "## Printed precision",
        "",
        "Mean width in nats by how the log-probabilities were printed, and the share of rounds certified.",
        "",
        *print_table(rows),
    ]
    return "\n".join(parts) + "\n"


def failures(rows: list[dict[str, Any]], assumed: float) -> list[str]:
    """Where bounds failed, and what has changed since.

    Args:
        rows: Of the run.
        assumed: Error in nats that the run's bounds allowed a float32 log-probability.
    """
    found = [row for row in rows if row["violations"]]
    if not found:
        return []
    cells = [f"{row['set']}, {row['printed']}, K = {row['k']}: {row['violations']} of {row['tokens']}" for row in found]
    text = (
        f"They failed at {'; '.join(cells)}. The bounds of this run allowed a float32 log-probability an error of "
        f"{assumed:g} nats; that of a float32 log-softmax over this vocabulary is larger (2.1e-5 at most on 5,517 "
        "tokens of `script`)."
    )
    if assumed != SERVER_PRECISION_NATS:
        text += (
            f" Since then deltah allows {SERVER_PRECISION_NATS:g} nats, added to half of the last printed decimal; the "
            "tables have not been made again with it."
        )
    return ["", text]


def token_table(rows: list[dict[str, Any]]) -> list[str]:
    lines = [
        "| set | tokens | mean H | K | mass beyond K | drawn beyond K | width mean | median | p95 | error mean "
        "| mean abs | p95 abs |",
        "| --- " * 12 + "|",
    ]
    for row in rows:
        numbers = [
            row[key]
            for key in (
                "tail_mass_mean",
                "drawn_outside",
                "width_mean",
                "width_median",
                "width_p95",
                "point_error_mean",
                "point_error_mean_abs",
                "point_error_p95_abs",
            )
        ]
        head = f"| {row['set']} | {row['tokens']} | {row['mean_entropy']:.2f} | {row['k']} | "
        lines.append(head + " | ".join(f"{value:.3f}" for value in numbers) + " |")
    return lines


def round_table(rows: list[dict[str, Any]]) -> list[str]:
    lines = [
        "| set | rounds | exactly reduced | K | certified reduced | certified not reduced | undecided | sign of the "
        "estimate right | mean abs error of ΔH |",
        "| --- " * 9 + "|",
    ]
    for row in rows:
        cells = [share(row[key]) for key in ("certified_reduced", "certified_not_reduced", "undecided", "sign_agrees")]
        lines.append(
            f"| {row['set']} | {row['rounds']} | {share(row['exact_reduced'])} | {row['k']} | {' | '.join(cells)} | "
            f"{row['delta_h_error_mean_abs']:.3f} |"
        )
    return lines


def print_table(rows: list[dict[str, Any]]) -> list[str]:
    lines = [
        "| set | K | "
        + " | ".join(f"width, {p}" for p in PRINTS)
        + " | "
        + " | ".join(f"certified, {p}" for p in PRINTS)
        + " |",
        "| --- " * (2 + 2 * len(PRINTS)) + "|",
    ]
    by_key = {(row["set"], row["k"], row["printed"]): row for row in rows}
    for name in SETS:
        for k in KS:
            mine = [by_key[name, k, printed] for printed in PRINTS]
            widths = [f"{row['width_mean']:.4f}" for row in mine]
            certified = [f"{1 - row['undecided'][0]:.3f}" if "undecided" in row else "–" for row in mine]
            lines.append(f"| {name} | {k} | " + " | ".join([*widths, *certified]) + " |")
    return lines


def share(rate_with_interval: list[float]) -> str:
    value, low, high = rate_with_interval
    return f"{value:.2f} [{low:.2f}, {high:.2f}]"
