"""Recreate the embedded agent, or write the world that it is asked about."""

from __future__ import annotations

import argparse
from pathlib import Path

from deltah.lab.demo import composition, write_world
from deltah.lab.world import Split, World
from deltah.tasks import read_tasks


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.coldstart", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser("train", help="recreate the agent from a seed (16 minutes on two cores)")
    train.add_argument("out", type=Path, help="directory of the checkpoint; an interrupted training continues there")
    train.add_argument("--seed", type=int, default=0, help="0 recreates the shipped checkpoint")
    world = commands.add_parser("world", help="write a training and an evaluation world as task and corpus files")
    world.add_argument("out", type=Path, help="directory for train/ and eval/")
    world.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.command == "world":
        write_world(options.out, seed=options.seed)
        print(f"tasks and corpora in {options.out}/train and {options.out}/eval\n{describe(options.out, options.seed)}")
        return
    from .train import coldstart

    coldstart(options.out, seed=options.seed, on_step=show)
    print(f"checkpoint in {options.out}; use it with --model {options.out}")


def show(step: int, steps: int, loss: float) -> None:
    if step % 20 == 0 or step == steps:
        print(f"step {step} of {steps}: {loss:.3f} nats a token", flush=True)


def describe(world: Path, seed: int) -> str:
    """Facts and questions of both splits that `write_world` wrote."""
    lines = []
    for name, split, own in (("train", Split.TRAIN, seed), ("eval", Split.EVAL, seed + 1)):
        drawn = World(own, split)
        known, total = sum(subject in drawn.known_names for subject, _ in drawn.facts), len(drawn.facts)
        tasks = read_tasks(world / name / "tasks.jsonl")
        easy = sum(not task.metadata["needs_tools"] for task in tasks)
        lines.append(
            f"{name}: {known} of {total} facts known by heart ({known / total:.0%}); "
            f"{easy} of {len(tasks)} questions need no tool ({easy / len(tasks):.0%})"
        )
    return "\n".join([*lines, f"eval: {composition(world)}"])


if __name__ == "__main__":
    main()
