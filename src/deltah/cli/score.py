"""`deltah score`: ΔH of every call in traces or logs, as a table and as rows."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich import box
from rich.console import Console
from rich.table import Table

from deltah.cli.config import resolve
from deltah.core.metrics import batch_metrics
from deltah.core.scored import Signal
from deltah.core.signals import SignalConfig, score
from deltah.core.types import Trajectory
from deltah.errors import ConfigError, DataError
from deltah.traces import read_traces
from deltah.traces.rundir import RunDirectory, nan_to_none, write_atomic


def command(
    paths: Annotated[list[Path], typer.Argument(help="Trace or log files, or directories of them; - for stdin.")],
    signal: Annotated[str | None, typer.Option(help="Signal; delta_h is the method's.")] = None,
    margin: Annotated[float | None, typer.Option(help="Dead band in nats.", min=0.0)] = None,
    vocab_size: Annotated[int | None, typer.Option(help="Vocabulary size of logs that do not state it.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write one row a call: .jsonl or .csv.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON instead of tables.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first record that cannot be read.")] = False,
) -> None:
    """Score every tool call of traces or OpenAI-style logs."""
    config = _config(paths, signal, margin)
    scored, unmeasured, problems = _score_files(paths, config, vocab_size=vocab_size, strict=strict)
    if out is not None:
        _write_rows(out, scored)
    if as_json:
        typer.echo(json.dumps(nan_to_none(_summary(scored, unmeasured, len(problems))), indent=1))
    else:
        _print_tables(scored, unmeasured, config)
    for problem in problems[:20]:
        typer.echo(f"left out: {problem}", err=True)
    if problems:
        typer.echo(f"{len(problems)} records could not be read", err=True)
        raise typer.Exit(1)


Scored = tuple[Trajectory, Signal]


def _config(paths: Sequence[Path], signal: str | None, margin: float | None) -> SignalConfig:
    """Options, else the configuration of the run directory that the traces lie in, else the method's defaults.

    Raises:
        ConfigError: if the traces lie in runs that scored their calls differently.
    """
    options = {"name": signal, "margin": margin}
    if signal is not None or margin is not None:
        return resolve(SignalConfig, options=options)
    found = {_config_of_run(path) for path in paths}
    if len(found) > 1:
        raise ConfigError(
            "these traces come from runs with different signals; say which to use with --signal or --margin"
        )
    return found.pop()


def _config_of_run(path: Path) -> SignalConfig:
    from deltah.study import run_signal

    for folder in (path, *path.resolve().parents):
        if (folder / "run.json").exists():
            return run_signal(RunDirectory(folder).config)
    return SignalConfig()


def _score_files(
    paths: Sequence[Path], config: SignalConfig, *, vocab_size: int | None, strict: bool
) -> tuple[list[Scored], int, list[Any]]:
    """Scored trajectories, how many carry no entropies, and the records that could not be read."""
    scored: list[Scored] = []
    problems: list[Any] = []
    unmeasured = 0
    for path in _files(paths):
        reader = read_traces(path, strict=strict, vocab_size=vocab_size)
        for trajectory in reader:
            if trajectory.entropy is None:
                unmeasured += 1
            else:
                scored.append((trajectory, score(trajectory, config)))
        problems += reader.problems
    if not scored and not unmeasured:
        raise DataError(f"no trajectory could be read from {', '.join(map(str, paths))}")
    return scored, unmeasured, problems


def _files(paths: Iterable[Path]) -> Iterator[Path]:
    """Files as given; of a directory, its trace files in order."""
    for path in paths:
        if not path.is_dir():
            yield path
            continue
        found = sorted(p for p in path.rglob("*.jsonl*") if p.name != "metrics.jsonl" and "world" not in p.parts)
        if not found:
            raise DataError(f"{path} holds no .jsonl, .jsonl.gz or .jsonl.zst file")
        yield from found


def _summary(scored: Sequence[Scored], unmeasured: int, problems: int) -> dict[str, Any]:
    outcomes = np.array([np.nan if t.outcome is None else t.outcome for t, _ in scored])
    row = batch_metrics([s for _, s in scored], outcomes)
    return {"trajectories": len(scored), "without_entropies": unmeasured, "unreadable": problems, **row}


def _print_tables(scored: Sequence[Scored], unmeasured: int, config: SignalConfig) -> None:
    from deltah.study import call_rows, calls_by

    console = Console()
    n_calls = sum(s.n_calls for _, s in scored)
    estimators = sorted({t.estimator.value for t, _ in scored})
    console.print(
        f"{len(scored)} trajectories, {n_calls} calls, entropies: {', '.join(estimators) or 'none'}; signal "
        f"{config.name.value}, margin {config.resolved_margin:g}"
        + (f"; {unmeasured} trajectories without entropies are left out" if unmeasured else ""),
        highlight=False,
    )
    rows = call_rows(scored)
    if not rows:
        return
    console.print(
        _call_table("tool", {str(k): v for k, v in calls_by(rows, lambda row: row.tool or "(not parsed)").items()})
    )
    by_round = calls_by(sorted(rows, key=lambda row: row.round), lambda row: str(row.round))
    console.print(_call_table("round", by_round))


def _call_table(label: str, groups: dict[str, list[Any]]) -> Table:
    """One row a group: calls, verdicts, mean ΔH with its interval."""
    from deltah.cli.tables import escaped, two_lines
    from deltah.study import summarise_calls
    from deltah.study.tables import estimate_cell

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in (label, "calls", "reduced", "mean ΔH, nats", "undecided", "undefined", "errors"):
        table.add_column(name, justify="left" if name == label else "right")
    for name, rows in groups.items():
        summary = summarise_calls(rows)
        rate, delta = estimate_cell(summary.reduction_rate, 2), estimate_cell(summary.delta_h, 3, signed=True)
        counts = map(str, (summary.undecided, summary.undefined, summary.errors))
        table.add_row(escaped(name), str(summary.n), two_lines(rate), two_lines(delta), *counts)
    return table


def _write_rows(out: Path, scored: Sequence[Scored]) -> None:
    """One row a call.

    Raises:
        ConfigError: for another ending than .jsonl or .csv.
    """
    rows = [row for trajectory, signal in scored for row in _rows(trajectory, signal)]
    if out.suffix == ".jsonl":
        write_atomic(out, "".join(json.dumps(nan_to_none(row), ensure_ascii=False) + "\n" for row in rows))
    elif out.suffix == ".csv":
        with out.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]) if rows else ["trajectory"])
            writer.writeheader()
            writer.writerows(rows)
    else:
        raise ConfigError(f"--out {out}: expected a name that ends in .jsonl or .csv")


def _rows(trajectory: Trajectory, signal: Signal) -> Iterator[dict[str, Any]]:
    for i, call in enumerate(trajectory.calls):
        k = int(signal.round_of_call[i])
        yield {
            "trajectory": trajectory.id,
            "call": call.id,
            "tool": call.name,
            "arguments": call.arguments,
            "status": call.status.value,
            "round": k + 1,
            "signal": signal.name,
            "delta_h": float(signal.delta_h[k]),
            "lower": float(signal.lower[k]),
            "upper": float(signal.upper[k]),
            "label": signal.labels[k].value,
            "entropy_before": float(signal.segment_entropy[k]),
            "entropy_after": float(signal.segment_entropy[k + 1]),
            "outcome": trajectory.outcome,
            "estimator": trajectory.estimator.value,
            "temperature": trajectory.temperature,
        }
