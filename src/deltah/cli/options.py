"""Options that the commands reading logs have in common."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from deltah.calls.logs import LogOptions, log_signals
from deltah.traces.importing import IMPORTERS


class OpenCommand(TyperCommand):
    """A command whose help lists what is registered when it is asked, for `{signals}` and the like."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Parameters, with the names filled in."""
        params: list[Any] = super().get_params(ctx)
        for param in params:
            if param.type.name.endswith(" range"):
                param.metavar = param.metavar or f"<{param.type.name.removesuffix(' range')}>"
            for word, names in (("{signals}", log_signals), ("{formats}", lambda: IMPORTERS)):
                if word in (getattr(param, "help", None) or ""):
                    param.help = param.help.replace(word, ", ".join(names()))
        return params


READING = "Reading logs"
"""Title of their part of the help."""

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
