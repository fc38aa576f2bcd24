"""`deltah lab`: the embedded agent's world and its cold start."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deltah.cli.progress import reporting
from deltah.cli.targets import check_directory

app = typer.Typer(help="The embedded agent: its world, and the cold start that makes it.", no_args_is_help=True)


@app.command("world")
def world(
    out: Annotated[
        Path, typer.Argument(help="Directory for train/ and eval/, each with tasks.jsonl and corpus.jsonl.")
    ],
    seed: Annotated[int, typer.Option(help="Seed of both worlds.")] = 0,
) -> None:
    """Write a training and an evaluation world as ordinary task and corpus files."""
    from deltah.lab.composition import describe
    from deltah.lab.recipe import write_world

    check_directory(out)
    write_world(out, seed=seed)
    typer.echo(f"tasks and corpora in {out}/train and {out}/eval\n{describe(out, seed=seed)}")


@app.command("coldstart")
def coldstart(
    out: Annotated[Path, typer.Argument(help="Directory for the checkpoint.")] = Path("runs/coldstart"),
    seed: Annotated[int, typer.Option(help="Seed; 0 recreates the shipped checkpoint.")] = 0,
) -> None:
    """Recreate the embedded agent from a seed (16 minutes on two cores)."""
    from deltah.lab.coldstart import coldstart as run

    check_directory(out)
    with reporting("cold start") as report:
        run(
            out,
            seed=seed,
            on_trace=lambda done, total: report(done, total, {}),
            on_step=lambda done, total, loss: report(done, total, {}),
        )
    typer.echo(f"checkpoint in {out}; use it with --model {out}")
