"""Options that several commands share, what they state, and the check of where a command writes."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from deltah.calls.savings import TOKEN_PRICES, Costs, Prices
from deltah.calls.table import is_result, log_signals
from deltah.core.rewards import REWARDS
from deltah.core.signals import SIGNALS
from deltah.errors import ConfigError, DataError
from deltah.tools.toolbox import TOOLS
from deltah.traces.importing import IMPORTERS

_CHOICES: Mapping[str, Callable[[], Iterable[str]]] = {
    "{signals}": log_signals,
    "{all_signals}": lambda: SIGNALS,
    "{rewards}": lambda: REWARDS,
    "{tools}": lambda: TOOLS,
    "{formats}": lambda: IMPORTERS,
}
"""Placeholders in help texts, and the registered names that replace them."""


class OpenCommand(TyperCommand):
    """A command whose help lists what is registered at that time."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Parameters, their help with the names filled in."""
        params: list[Any] = super().get_params(ctx)
        for param in params:
            if param.type.name.endswith(" range"):
                param.metavar = param.metavar or f"<{param.type.name.removesuffix(' range')}>"
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
Force = Annotated[bool, typer.Option("--force", help="Overwrite inputs, and files that deltah did not write.")]
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

Tasks = Annotated[str | None, typer.Option(help="Task file: JSONL or Parquet.")]
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
    outputs: Iterable[Path | None],
    inputs: Iterable[str | Path | None],
    *,
    beside: Sequence[Path] = (),
    force: bool = False,
) -> None:
    """Refuse outputs that are folders and, unless forced, those that would destroy an input.

    Files `beside` the outputs are written without having been named: they replace results of deltah only.
    """
    read = {os.path.realpath(path): path for path in inputs if path is not None}
    for out in filter(None, (*outputs, *beside)):
        if not out.name or out.is_dir():
            raise ConfigError(f"--out {out} is a folder; expected the name of a file to write")
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=out.parent):
                pass
        except OSError as error:
            raise DataError(f"cannot write {out}: {error.strerror or error}; choose another place") from error
        if force or not out.exists():
            continue
        if (path := read.get(os.path.realpath(out))) is not None:
            raise ConfigError(f"--out {out} would overwrite {path}, which is read; choose another name, or --force")
        if out in beside and not is_result(out):
            raise ConfigError(f"{out} would be overwritten and is no earlier result; choose another --out, or --force")
