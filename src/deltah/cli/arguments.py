"""Options that several commands share, what they state, and the check of where a command writes."""

from __future__ import annotations

import csv
import json
import math
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from deltah.calls.savings import TOKEN_PRICES, Costs, Prices
from deltah.core.rewards import REWARDS
from deltah.core.signals import SIGNALS
from deltah.errors import ConfigError, DataError
from deltah.runs import log_signals
from deltah.tools.toolbox import TOOLS
from deltah.traces.files import Source, opened, records
from deltah.traces.importing import IMPORTERS
from deltah.traces.parquet import columns

_CHOICES: Mapping[str, Callable[[], Iterable[str]]] = {
    "{signals}": log_signals,
    "{all_signals}": lambda: SIGNALS,
    "{rewards}": lambda: REWARDS,
    "{tools}": lambda: TOOLS,
    "{formats}": lambda: IMPORTERS,
}
"""Placeholders in help texts, and the registered names that replace them."""

_RANGES = {"float range": "number", "int range": "whole number"}
"""Types of options, and what messages call them."""


class OpenCommand(TyperCommand):
    """A command whose help lists what is registered at that time."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Parameters, their help with the names filled in."""
        params: list[Any] = super().get_params(ctx)
        for param in params:
            if param.type.name in _RANGES:
                param.metavar = param.metavar or f"<{param.type.name.removesuffix(' range')}>"
                param.type.name = _RANGES[param.type.name]
            for word, names in _CHOICES.items():
                if word in (getattr(param, "help", None) or ""):
                    param.help = param.help.replace(word, ", ".join(names()))
        return params


READING = "Reading logs"
"""Title of a group of options in the help."""

Logs = Annotated[
    list[str],
    typer.Argument(metavar="PATH...", help="Log files, folders or quoted glob patterns; - is standard input."),
]
Answers = Annotated[
    str | None, typer.Option(help="Grades or gold answers, matched by id or question; a task file will do.")
]
TraceFormat = Annotated[
    str | None,
    typer.Option(
        "--format", help="One of {formats}; or package.module:function (default: detected).", rich_help_panel=READING
    ),
]
VocabSize = Annotated[
    int | None,
    typer.Option(
        help="Vocabulary size of the model (default: from its family, else 524,288).", min=1, rich_help_panel=READING
    ),
]
Join = Annotated[
    bool, typer.Option("--join/--no-join", help="Join the API calls of one conversation.", rich_help_panel=READING)
]
ToolFile = Annotated[
    Path | None,
    typer.Option("--tools", help="What each tool does (read, poll or write), as --write-tools drafts it: TOML."),
]
WriteTools = Annotated[
    Path | None, typer.Option(help="Draft a file for --tools from the log: what was measured, to be corrected.")
]
Force = Annotated[
    bool,
    typer.Option("--force", help="Replace what --out names even if it is an input or was not written by this command."),
]
Strict = Annotated[bool, typer.Option("--strict", help="Stop at the first unreadable record.", rich_help_panel=READING)]
Workers = Annotated[
    int | None,
    typer.Option(help="Worker processes (default: one per core, at most 8).", min=1, rich_help_panel=READING),
]
Signal = Annotated[
    str | None,
    typer.Option(help="One of {signals}; or package.module:function (default: the run's own, else delta_h)."),
]
Margin = Annotated[
    float | None, typer.Option(help="Dead band: smaller changes do not count. In the signal's unit.", min=0.0)
]

Tasks = Annotated[str | None, typer.Option(help="Task file: JSONL or Parquet. Required, here or in --config.")]
Model = Annotated[str | None, typer.Option(help="A directory, a hub id or 'lab' (the embedded agent).")]
Tools = Annotated[str | None, typer.Option("--tools", help="Comma-separated: {tools} or package.module:function.")]
Corpus = Annotated[str | None, typer.Option(help="Documents of the search tool, JSONL.")]
Limit = Annotated[int | None, typer.Option(help="Use only the first N tasks.", min=1)]
Seed = Annotated[int | None, typer.Option(help="Random seed.")]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="Configuration file, TOML or JSON.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="Any configuration key, such as reward.alpha=0.3. Repeatable.")
]


PRICES = "Prices"
"""Title of a group of options in the help."""

Price = Annotated[
    list[str] | None,
    typer.Option(
        help="Price of a million tokens (input=2, cached=0.2, output=8) or of one call (search=0.005). Repeatable.",
        rich_help_panel=PRICES,
    ),
]
Currency = Annotated[str, typer.Option(help="Currency of the prices.", rich_help_panel=PRICES)]
Latency = Annotated[
    list[str] | None,
    typer.Option(
        help="Seconds of one call, where the log has no times: search=0.8. Repeatable.", rich_help_panel=PRICES
    ),
]


def agent(model: str | None, tools: str | None, corpus: str | None, seed: int | None) -> dict[str, Any]:
    """Options of the agent, by key of the configuration."""
    keys = ("rollout.model", "rollout.tools", "rollout.tool.corpus", "rollout.seed")
    return dict(zip(keys, (model, split_names(tools), corpus, seed), strict=True))


def split_names(text: str | None) -> list[str] | None:
    """Names of a comma-separated option; None if it is not given."""
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]


def costs(price: Iterable[str] | None, currency: str, latency: Iterable[str] | None) -> Costs:
    """Costs that the options state."""
    stated = _amounts("--price", price)
    tokens = {field: stated.pop(name, None) for name, field in TOKEN_PRICES.items()}
    prices = Prices(**tokens, per_call=stated, currency=currency)
    return Costs(prices=prices, latency_s=_amounts("--latency", latency))


def _amounts(option: str, given: Iterable[str] | None) -> dict[str, float]:
    found = {}
    for text in given or ():
        name, _, number = text.rpartition("=")
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if not name or not (math.isfinite(value) and value >= 0):
            raise ConfigError(f"{option} {text!r}: expected a name and a number, 0 or more, such as search=0.005")
        found[name] = value
    return found


def check_outputs(
    outputs: Mapping[Path, Callable[[Path], bool]],
    inputs: Iterable[str | Path | Source | None],
    *,
    force: bool = False,
) -> None:
    """Refuse outputs that cannot be written and, unless forced, those that would replace another file than their own.

    Args:
        outputs: Files to write; each with the function that says whether a file is an earlier one of its kind.
        inputs: What is read. An input is not replaced; an earlier output in a folder of logs is.
        force: Replace whatever is there.
    """
    sources = (item if isinstance(item, Source) else Source(str(item), named=True) for item in inputs if item)
    read = {os.path.realpath(source.path): source for source in sources}
    for out, is_own in outputs.items():
        if not out.name or out.is_dir():
            raise ConfigError(f"--out {out} is a folder; expected the name of a file to write")
        try:  # folders are made with the file, once there is something to write
            with tempfile.TemporaryFile(dir=next(folder for folder in out.absolute().parents if folder.exists())):
                pass
        except OSError as error:
            raise DataError(f"cannot write {out}: {error.strerror or error}; choose another place") from error
        if force or not out.is_file() or not out.stat().st_size:
            continue
        earlier, source = is_own(out), read.get(os.path.realpath(out))
        path, why = out, None if earlier else "which this command did not write"
        if source is not None and (source.named or not earlier):
            path, why = Path(source.path), "which is read"
        if why is not None:
            raise ConfigError(f"--out {out} would overwrite {path}, {why}; choose another name, or --force")


def like(pattern: bytes) -> Callable[[Path], bool]:
    """The function that says whether the content of a file has a pattern."""

    def matches(path: Path) -> bool:
        try:
            return re.search(pattern, path.read_bytes()) is not None
        except OSError:
            return False

    return matches


def first_record(path: Path) -> bytes:
    """The first record of a log; empty where none can be read."""
    try:
        with opened(str(path)) as raw:
            return next(iter(records(str(path), raw))).data
    except (OSError, DataError, StopIteration):
        return b""


def with_columns(required: Iterable[str], known: Iterable[str] | None = None) -> Callable[[Path], bool]:
    """The function that says whether the rows of a file have some columns, and none but those that are known."""

    def matches(path: Path) -> bool:
        try:
            if path.suffix == ".parquet":
                return fits(columns(path))
            with path.open(encoding="utf-8", newline="") as file:
                return fits(set(next(csv.reader(file)) if path.suffix == ".csv" else json.loads(file.readline())))
        except (OSError, ValueError, TypeError, csv.Error):
            return False

    def fits(names: set[str]) -> bool:
        return names.issuperset(required) and (known is None or names.issubset(known))

    return matches
