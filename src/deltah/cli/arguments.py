"""Options that several commands have."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from deltah.calls.logs import LogOptions, log_signals
from deltah.core.rewards import REWARDS
from deltah.core.signals import SIGNALS
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
    """A command whose help lists what is registered when it is asked."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Parameters, with the names filled in."""
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
    Path | None, typer.Option(help="Grades or gold answers, matched by id or question; a task file will do.")
]
TraceFormat = Annotated[
    str | None,
    typer.Option(
        "--format",
        help="One of {formats}; or package.module:function (default: detected).",
        rich_help_panel=READING,
    ),
]
VocabSize = Annotated[
    int | None,
    typer.Option(
        help="Vocabulary size of the model (default: from its family, else 524,288).", min=1, rich_help_panel=READING
    ),
]
Join = Annotated[
    bool,
    typer.Option("--join/--no-join", help="Join the API calls of one conversation.", rich_help_panel=READING),
]
Force = Annotated[bool, typer.Option("--force", help="Overwrite files that are read, or are no earlier result.")]
Strict = Annotated[bool, typer.Option("--strict", help="Stop at the first unreadable record.", rich_help_panel=READING)]
Workers = Annotated[
    int | None, typer.Option(help="Worker processes (default: one per core).", min=1, rich_help_panel=READING)
]
Signal = Annotated[
    str | None,
    typer.Option(help="One of {signals}; or package.module:function (default: the run's own, else delta_h)."),
]
Margin = Annotated[
    float | None,
    typer.Option(help="Dead band: smaller changes do not count. In the signal's unit.", min=0.0),
]


Model = Annotated[str | None, typer.Option(help="A directory, a hub id or 'lab' (the embedded agent).")]
Tools = Annotated[str | None, typer.Option("--tools", help="Comma-separated: {tools} or package.module:function.")]
Corpus = Annotated[str | None, typer.Option(help="Documents of the search tool, JSONL.")]
Limit = Annotated[int | None, typer.Option(help="Use only the first N tasks.", min=1)]
Seed = Annotated[int | None, typer.Option(help="Random seed.")]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="Configuration file, TOML or JSON.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="Any configuration key, such as reward.alpha=0.3. Repeatable.")
]


def split_names(text: str | None) -> list[str] | None:
    """Names of a comma-separated option; None if it is not given."""
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]


def log_options(
    *,
    answers: Path | None = None,
    format: str | None = None,
    vocab_size: int | None = None,
    join: bool = True,
    strict: bool = False,
    signal: str | None = None,
    margin: float | None = None,
) -> LogOptions:
    """Options of a command as the library takes them."""
    return LogOptions(
        format=format,
        vocab_size=vocab_size,
        join=join,
        strict=strict,
        answers=None if answers is None else str(answers),
        signal=signal,
        margin=margin,
    )
