"""Options that the commands reading logs have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from typer.core import TyperCommand

from deltah.calls.logs import LogOptions, log_signals
from deltah.core.rewards import REWARDS
from deltah.tools.toolbox import TOOLS
from deltah.traces.importing import IMPORTERS

_NAMES: Final[Mapping[str, Callable[[], Iterable[str]]]] = {
    "{signals}": log_signals,
    "{rewards}": lambda: REWARDS,
    "{tools}": lambda: TOOLS,
    "{formats}": lambda: IMPORTERS,
}


class OpenCommand(TyperCommand):
    """A command whose help lists what is registered when it is asked, for `{signals}` and the like."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Parameters, with the names filled in."""
        params: list[Any] = super().get_params(ctx)
        for param in params:
            for word, names in _NAMES.items():
                if word in (getattr(param, "help", None) or ""):
                    param.help = param.help.replace(word, ", ".join(names()))
        return params


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
        help="One of {formats}, or package.module:function; told from the content when not given.",
    ),
]
VocabSize = Annotated[
    int | None,
    typer.Option(
        help="Vocabulary size of logs that do not state it (default: that of the model's family, else 524,288).", min=1
    ),
]
Join = Annotated[bool, typer.Option("--join/--no-join", help="Join API calls of one conversation.")]
Strict = Annotated[bool, typer.Option("--strict", help="Stop at the first record that cannot be read.")]
Workers = Annotated[
    int | None,
    typer.Option(help="Processes; by default one a core, 8 at most, if half a second does not do.", min=1),
]
Signal = Annotated[
    str | None, typer.Option(help="One of {signals}; or package.module:function. delta_h is the method's.")
]
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
