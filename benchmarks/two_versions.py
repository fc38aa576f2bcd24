"""Whole `deltah score` of two checkouts on the same logs, in turns: medians of wall and CPU time, and their ratios.

    git worktree add ../old v0.1.0
    OMP_NUM_THREADS=1 python benchmarks/two_versions.py ../old . --megabytes 40 --repetitions 3

Each log is a folder of four files. Start-up of Python is in the figures.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import synthetic

from deltah import write_traces
from deltah.core.types import Estimator

N_FILES = 4


def generate(folder: Path, megabytes: int) -> list[Path]:
    logs = [folder / name for name in ("conversations", "api-calls", "parquet")]
    for log in logs:
        log.mkdir()
    for seed in range(N_FILES):
        for log, lines in zip(logs, (synthetic.chat_lines, synthetic.api_lines), strict=False):
            (log / f"{seed}.jsonl").write_bytes(b"".join(lines(megabytes * 10**6, seed=seed)))
        write_traces(logs[2] / f"{seed}.parquet", synthetic.trajectories(25 * megabytes, Estimator.EXACT, seed=seed))
    return logs


def run(checkout: Path, log: Path, workers: int) -> tuple[float, float]:
    """Wall and CPU seconds of one command."""
    rows = log.parent / f"rows-{time.monotonic_ns()}.jsonl"
    command = ["score", str(log), "--out", str(rows), "--workers", str(workers), "--vocab-size", "32000", "--json"]
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    subprocess.run(
        [sys.executable, "-m", "deltah", *command],
        env={**os.environ, "PYTHONPATH": str(checkout / "src")},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=True,
    )
    wall, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    rows.unlink()
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--megabytes", type=int, default=40, help="of one file")
    parser.add_argument("--repetitions", type=int, default=3)
    arguments = parser.parse_args()
    checkouts = [arguments.old.resolve(), arguments.new.resolve()]
    with tempfile.TemporaryDirectory() as folder:
        for log in generate(Path(folder), arguments.megabytes):
            size = sum(file.stat().st_size for file in log.iterdir()) / 1e6
            for workers in (1, 2):
                turns = [[run(c, log, workers) for c in checkouts] for _ in range(arguments.repetitions)]
                (old_wall, new_wall), (old_cpu, new_cpu) = (
                    [median(turn[side][kind] for turn in turns) for side in (0, 1)] for kind in (0, 1)
                )
                print(
                    f"{log.name}, {size:.0f} MB, workers {workers}: wall {old_wall:.2f} s, {new_wall:.2f} s, ratio "
                    f"{old_wall / new_wall:.2f}; CPU {old_cpu:.2f} s, {new_cpu:.2f} s, ratio {old_cpu / new_cpu:.2f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
