"""Parquet traces: tokens a second of reading and scoring, against reading the same columns and doing nothing else.

    python benchmarks/parquet_score.py --repetitions 7

* `rows, N workers`: trajectories are read, validated and scored, and one row a call is made; nothing else.
* `deltah score --no-waste`: the whole command without a look at the text: ΔH, statistics and tables.
* `deltah score`: the whole command, with waste and savings too. Both with `--workers 1` and `2`.
* `pyarrow`, `polars`: read the columns that the scoring needs into memory, row group by row group, on one thread.

Exact entropies, and top-k estimates with their bounds (three times as many numbers). Starting the workers takes about
half a second, so all is measured on the larger of two files.
"""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
from collections.abc import Iterator
from functools import partial
from itertools import islice
from typing import Any

import harness
import synthetic

from deltah.core.signals import Signal, SignalConfig, score
from deltah.core.types import Estimator, Trajectory
from deltah.traces import read_traces
from deltah.traces.parquet import OPTIONAL, write_parquet

COLUMNS = [
    "id",
    "estimator",
    "temperature",
    "outcome",
    "segments",
    "calls",
    "entropy",
    "entropy_lower",
    "entropy_upper",
]
FILES = 4
"""Of a log: each is read by one process."""
ROW_GROUP = 2048
ROWS = ("rows, 1 worker", "rows, 2 workers")
FLAGS = {"deltah score --no-waste": ("--no-waste",), "deltah score": ()}
COMMANDS = {f"{name}, {n}": (*flags, "--workers", str(n)) for name, flags in FLAGS.items() for n in (1, 2)}
PEERS = ("pyarrow", "polars")


def call_rows(trajectory: Trajectory, signal: Signal) -> Iterator[tuple[Any, ...]]:
    labels, lower, upper = signal.call_verdicts, signal.call_lower.tolist(), signal.call_upper.tolist()
    for i, delta_h in enumerate(signal.call_value.tolist()):
        call = trajectory.calls[i]
        yield trajectory.id, call.id, call.name, call.status.value, delta_h, lower[i], upper[i], labels[i].value


def score_file(_: object, trajectories: Iterator[Trajectory]) -> tuple[int, list[tuple[Any, ...]]]:
    """Tokens read, and one row a call."""
    config, found, n_tokens = SignalConfig(), list[tuple[Any, ...]](), 0
    for trajectory in trajectories:
        found.extend(call_rows(trajectory, score(trajectory, config)))
        n_tokens += len(trajectory)
    return n_tokens, found


def score_rows(path: str, workers: int) -> harness.Work:
    return lambda: sum(n for n, _ in read_traces(path, skip=OPTIONAL).map(score_file, workers=workers))


def whole_command(path: str, options: tuple[str, ...]) -> harness.Work:
    from deltah.cli.app import app

    def work() -> int:
        with contextlib.redirect_stdout(io.StringIO()):
            app(["score", path, *options], standalone_mode=False)
        return n_tokens(path)

    return work


def n_tokens(folder: str) -> int:
    """Read from a small file beside the data, so that counting is not part of what is measured."""
    with open(os.path.join(folder, "n.tokens"), encoding="utf-8") as file:
        return int(file.read())


def with_pyarrow(path: str) -> harness.Work:
    import pyarrow.parquet

    def work() -> int:
        for name in harness.files(path):
            file = pyarrow.parquet.ParquetFile(name)
            for i in range(file.num_row_groups):
                file.read_row_group(i, columns=COLUMNS, use_threads=False)
        return n_tokens(path)

    return work


def with_polars(path: str) -> harness.Work:
    os.environ["POLARS_MAX_THREADS"] = "1"
    import polars

    def work() -> int:
        for name in harness.files(path):
            n_rows = polars.scan_parquet(name).select(polars.len()).collect().item()
            for start in range(0, n_rows, ROW_GROUP):
                polars.scan_parquet(name).select(COLUMNS).slice(start, ROW_GROUP).collect()
        return n_tokens(path)

    return work


CASES: dict[str, harness.Case] = {
    "rows, 1 worker": partial(score_rows, workers=1),
    "rows, 2 workers": partial(score_rows, workers=2),
    **{name: partial(whole_command, options=options) for name, options in COMMANDS.items()},
    "pyarrow": with_pyarrow,
    "polars": with_polars,
}


def generate(folder: str, n: int, estimator: Estimator) -> None:
    """A log of `FILES` files."""
    os.makedirs(folder)
    total, made = 0, synthetic.trajectories(n, estimator)

    def counted(n_rows: int) -> Iterator[Trajectory]:
        nonlocal total
        for trajectory in islice(made, n_rows):
            total += len(trajectory)
            yield trajectory

    for i in range(FILES):
        write_parquet(os.path.join(folder, f"{i}.parquet"), counted(n // FILES))
    with open(os.path.join(folder, "n.tokens"), "w", encoding="utf-8") as file:
        file.write(str(total))


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--trajectories", type=int, default=4000)
    arguments = parser.parse_args()
    harness.print_machine(["deltah", "numpy", "duckdb", *PEERS])
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        for estimator in (Estimator.EXACT, Estimator.TOP_K):
            small, large = (os.path.join(folder, f"{estimator}-{scale}") for scale in (1, 4))
            generate(small, arguments.trajectories, estimator)
            generate(large, 4 * arguments.trajectories, estimator)
            size = harness.size(large) / 1e6
            print(f"\n== {estimator}: {n_tokens(large) / 1e6:.1f} M tokens, {size:.0f} MB", flush=True)
            ours = (*ROWS, *COMMANDS)
            harness.report(harness.measure((*ours, *PEERS), large, arguments.repetitions), 1e6, "M tokens/s", ours)
            print()
            for name in ours:
                harness.report_memory(name, {"1x": small, "4x": large})


if __name__ == "__main__":
    harness.main(CASES, main)
