"""`deltah probe`: compare each call's result with no result and with an unrelated one, from the same state."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from deltah.calls.notes import nothing_read
from deltah.calls.table import LogOptions, ScoredLog
from deltah.cli import arguments
from deltah.cli.terminal import reading, report_losses, reporting
from deltah.core.types import Trajectory
from deltah.errors import ConfigError, DataError, InvalidValueError
from deltah.runs import nan_to_none, write_atomic
from deltah.text_format import agreeing, count

if TYPE_CHECKING:
    from deltah.probe.plan import Plan
    from deltah.probe.queries import Backend
    from deltah.probe.run import Cost

_IS_PROBE = arguments.with_columns(("trajectory", "call", "question", "backend", "model"))


def command(  # noqa: PLR0913 - the options of a command line
    paths: arguments.Logs,
    answers: arguments.Answers = None,
    model: Annotated[str | None, typer.Option(help="Local model: a directory, a hub id or 'lab'.")] = None,
    server: Annotated[str | None, typer.Option(help="URL of a server that reports prompt log-probabilities.")] = None,
    served_model: Annotated[str | None, typer.Option(help="Name of the model on the server.")] = None,
    api_key_env: Annotated[str | None, typer.Option(help="Environment variable that holds the API key.")] = None,
    chat_template: Annotated[
        Path | None, typer.Option(help="Chat template, tokenizer_config.json or model folder. Sends text completions.")
    ] = None,
    tools: Annotated[Path | None, typer.Option(help="JSON list of the tool schemas that the agent was given.")] = None,
    top_logprobs: Annotated[int, typer.Option(help="Log-probabilities per token, from the server.", min=1)] = 20,
    vocab_size: arguments.VocabSize = None,
    format: arguments.TraceFormat = None,
    strict: arguments.Strict = False,
    max_calls: Annotated[int, typer.Option(help="Number of calls to probe, spread over the questions.", min=1)] = 200,
    seed: Annotated[int, typer.Option(help="Seed of the sample and of the control results.", min=0)] = 0,
    answer_template: Annotated[
        str | None,
        typer.Option(help="Text with {answer}, or 'sentence' (default: the form of the agent's own answer)."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Output, one row per call. Answers are kept beside it.")] = Path(
        "probe.jsonl"
    ),
    force: arguments.Force = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the cost and stop.")] = False,
) -> None:
    """Ask a model what each result changed, compared with no result and another one."""
    from deltah.probe.plan import ProbeConfig, make_plan
    from deltah.probe.queries import identity_on_disk, open_cache
    from deltah.probe.run import cost_of, run_plan
    from deltah.probe.server import ServerOptions, chars_per_token, connect, unasked
    from deltah.probe.server_api import load_template

    config = ProbeConfig(max_calls=max_calls, seed=seed, answer_template=answer_template)
    if (model is None) == (server is None):
        raise ConfigError("give either --model for a local model or --server for the URL of one")
    read = LogOptions(answers=answers, format=format, vocab_size=vocab_size, strict=strict)
    log, trajectories = _read(paths, read, out, [answers, tools], force=force)
    schemas, kept = _schemas(tools), out.with_suffix(".cache.sqlite")
    if server is None:
        backend = _local(str(model), schemas)
    else:
        asked = ServerOptions(
            url=server, model=served_model, api_key=_api_key(api_key_env), tools=schemas,
            template=load_template(chat_template, schemas), chars_per_token=chars_per_token(trajectories),
            top_k=top_logprobs, vocab_size=vocab_size
        )  # fmt: skip
        backend = unasked(asked, identity_on_disk(kept)) if dry_run else connect(asked)
    with open_cache(kept, backend.identity) as cache:
        plan = make_plan(trajectories, backend, config)
        _say_cost(plan, cost_of(plan, backend, cache))
        if dry_run:
            if server is not None:
                typer.echo(f"nothing was sent: {asked.chars_per_token:.1f} characters per token are assumed")
            return
        with reporting("probe") as (report,):
            rows = run_plan(plan, trajectories, backend, cache, config, progress=report)
    _write(rows, out)
    report_losses(log)


def _read(
    paths: Sequence[str], options: LogOptions, out: Path, inputs: Sequence[str | Path | None], *, force: bool
) -> tuple[ScoredLog, list[Trajectory]]:
    """Logs and their trajectories, read once the output is known not to replace one of them."""
    with reading() as watch:
        log = ScoredLog(paths, replace(options, watch=watch))
        arguments.check_outputs({out: _IS_PROBE}, [*inputs, *log.reader.sources], force=force)
        trajectories = [trajectory for trajectory, *_ in log]
    if not trajectories:
        raise nothing_read(log, paths)
    return log, trajectories


def _say_cost(plan: Plan, cost: Cost) -> None:
    typer.echo(
        f"{count(cost.calls, 'call')}, {count(cost.queries, 'query')} ({cost.cached:,} already answered); about "
        f"{count(cost.tokens, 'model token')} to read; {count(len(plan.skipped), 'call')} cannot be probed, "
        f"{plan.n_left:,} {agreeing(plan.n_left, 'is', 'are')} over the budget"
    )
    for reason, n in sorted(Counter(skipped.reason.value for skipped in plan.skipped).items()):
        typer.echo(f"cannot be probed: {count(n, 'call')}, {reason}")


def _schemas(path: Path | None) -> list[dict[str, Any]]:
    if path is None:
        return []
    try:
        return msgspec.json.decode(path.read_bytes(), type=list[dict[str, Any]])
    except (OSError, ValueError, msgspec.MsgspecError) as error:
        raise ConfigError(f"cannot read the tool schemas {path}: {error}; expected a JSON list of schemas") from error


def _local(model: str, schemas: Sequence[Mapping[str, Any]]) -> Backend:
    from deltah.engines.local_scorer import load_local
    from deltah.engines.models import resolve_model

    return load_local(resolve_model(model), tools=schemas)


def _api_key(variable: str | None) -> str | None:
    key = None if variable is None else os.environ.get(variable)
    if variable is not None and not key:
        raise InvalidValueError(f"--api-key-env {variable}: that environment variable is not set")
    return key


def _write(rows: Sequence[Mapping[str, Any]], out: Path) -> None:
    import numpy as np

    lines = (json.dumps(nan_to_none(row), ensure_ascii=True) + "\n" for row in rows)
    try:
        write_atomic(out, "".join(lines))
    except OSError as error:
        raise DataError(f"cannot write {out}: {error.strerror or error}; the cache keeps every answer") from error
    probed = [row for row in rows if row["reason"] is None]
    judged = [row for row in probed if row["useful"] is not None]
    tokens = sum(row["model_tokens"] for row in probed)
    typer.echo(f"{count(len(probed), 'call')} probed, {count(tokens, 'model token')}; rows in {out}")
    if judged:
        useful, gain = sum(row["useful"] for row in judged), np.mean([row["gain_placebo"] for row in judged])
        entropies = [row["delta_h_placebo"] for row in probed if not np.isnan(row["delta_h_placebo"])]
        change = f"{np.mean(entropies):+.3f} nats" if entropies else "not measured"
        typer.echo(
            f"useful {useful:,} of {len(judged):,} ({useful / len(judged):.0%}); against the control result: "
            f"mean gain {gain:+.3f} nats, mean ΔH {change}"
        )
    for reason, n in sorted(Counter(row["reason"] for row in rows if row["reason"] is not None).items()):
        typer.echo(f"not probed: {count(n, 'call')}, {reason}")
