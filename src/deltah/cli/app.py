"""The command line `deltah`: one command a module, and the options that all have in common."""

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
    cmd_report,
    cmd_rollout,
    cmd_score,
    cmd_study,
    cmd_train,
)
from deltah.cli.options import OpenCommand

app = typer.Typer(
    name="deltah",
    help="Did this tool call make the model more certain? Score logs, train agents, read reports.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.command("demo", cls=OpenCommand)(cmd_demo.command)
app.command("train", cls=OpenCommand)(cmd_train.command)
app.command("eval", cls=OpenCommand)(cmd_eval.command)
app.command("rollout", cls=OpenCommand)(cmd_rollout.command)
app.command("score", cls=OpenCommand)(cmd_score.command)
app.command("probe", cls=OpenCommand)(cmd_probe.command)
app.command("study", cls=OpenCommand)(cmd_study.command)
app.command("report", cls=OpenCommand)(cmd_report.command)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"deltah {deltah.__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
    verbose: bool = typer.Option(False, "--verbose", "-v", help="Show log messages of the libraries below."),
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
    # The level stands on the handler: some libraries set their own loggers to DEBUG.
    handler = logging.StreamHandler()
    handler.setLevel(logging.INFO if verbose else logging.WARNING)
    logging.basicConfig(handlers=[handler], format="%(message)s")
