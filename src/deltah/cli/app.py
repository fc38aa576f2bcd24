"""The command line `deltah`: its commands and their common options."""

from __future__ import annotations

import logging
import os
import warnings

import typer

import deltah
from deltah.cli import (
    cmd_demo,
    cmd_eval,
    cmd_probe,
    cmd_record,
    cmd_report,
    cmd_rollout,
    cmd_score,
    cmd_study,
    cmd_train,
)
from deltah.cli.arguments import OpenCommand
from deltah.errors import DataWarning

app = typer.Typer(
    name="deltah",
    help="Did this tool call make the model more certain? Score logs, train agents, read reports.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
for _panel, _modules in {
    "Diagnose logs": (cmd_score, cmd_report, cmd_study, cmd_probe, cmd_record),
    "Train agents": (cmd_rollout, cmd_eval, cmd_train, cmd_demo),
}.items():
    for _module in _modules:
        _name = _module.__name__.rpartition("_")[2]
        app.command(_name, cls=OpenCommand, rich_help_panel=_panel)(_module.command)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"deltah {deltah.__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
    verbose: bool = typer.Option(False, "--verbose", "-v", help="Show log messages of the libraries."),
) -> None:
    # Set before torch or transformers load: progress bars and logs of the hosts would break ours.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    if not verbose:
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
        warnings.simplefilter("ignore")
    warnings.simplefilter("ignore", DataWarning)  # commands list each record that was lost
    # The level stands on the handler: some libraries set their own loggers to DEBUG.
    handler = logging.StreamHandler()
    handler.setLevel(logging.INFO if verbose else logging.WARNING)
    logging.basicConfig(handlers=[handler], format="%(message)s")
