"""Options that the commands reading logs have in common."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deltah.calls.logs import LOG_SIGNALS, LogOptions
from deltah.traces.importing import IMPORTERS

Logs = Annotated[
    list[str], typer.Argument(help="Files, folders or quoted glob patterns of traces or logs; - for standard input.")
]
Answers = Annotated[
    Path | None, typer.Option(help="File with grades or gold answers, joined by id or question (a task file will do).")
]
TraceFormat = Annotated[
    str | None,
    typer.Option(
        "--format",
        help=f"One of {', '.join(IMPORTERS)}, or package.module:function; told from the content when not given.",
    ),
]
VocabSize = Annotated[int | None, typer.Option(help="Vocabulary size of logs that do not state it.", min=1)]
Join = Annotated[bool, typer.Option("--join/--no-join", help="Join API calls of one conversation.")]
Strict = Annotated[bool, typer.Option("--strict", help="Stop at the first record that cannot be read.")]
Workers = Annotated[
    int | None,
    typer.Option(help="Processes; by default one a core, 8 at most, if half a second does not do.", min=1),
]
Signal = Annotated[str | None, typer.Option(help=f"One of {', '.join(LOG_SIGNALS)}; delta_h is the method's.")]
Margin = Annotated[
    float | None, typer.Option(help="Dead band, in the signal's unit (nats, but of the ratio).", min=0.0)
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
