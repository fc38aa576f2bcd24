"""How often exact repeats and first calls count as reductions, by margin: why the lab's dead band is 0.02 nats.

python experiments/dead_band.py runs/demo/start/eval/sampled.jsonl.zst
"""

from __future__ import annotations

import sys

import numpy as np

from deltah import read_traces, score

MARGINS = (0.0, 0.01, 0.02, 0.05, 0.1)


def main(path: str) -> None:
    repeats: list[float] = []
    firsts: list[float] = []
    for trajectory in read_traces(path):
        seen: set[tuple[str, str]] = set()
        for call, delta in zip(trajectory.calls, score(trajectory).call_delta_h, strict=True):
            key = (call.name, call.arguments)
            (repeats if key in seen else firsts).append(float(delta))
            seen.add(key)
    print(f"{len(repeats)} exact repeats, {len(firsts)} first calls\n")
    print("| margin, nats | exact repeats called reduced | first calls called reduced |\n| --- | --- | --- |")
    for margin in MARGINS:
        shares = [np.mean(np.array(values) < -margin) for values in (repeats, firsts)]
        print(f"| {margin:g} | {shares[0]:.2f} | {shares[1]:.2f} |")


if __name__ == "__main__":
    main(sys.argv[1])
