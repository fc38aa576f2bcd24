"""Measuring: every case runs in a process of its own, cases take turns, and a ratio comes with its interval.

Times are taken inside the process after its imports: `wall_s`, and `cpu_s` of the process and its children. On a busy
machine the ratio of CPU times is the one to trust, on a quiet one the wall time says what a user waits. The interval is
the 95 % percentile bootstrap of the median over repetitions.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np

Work = Callable[[], int]
"""What is timed; returns the amount of work done (tokens, bytes)."""
Case = Callable[[str], Work]
"""Takes a file and prepares its work: imports and inputs, which are not timed."""


def files(folder: str) -> list[str]:
    """Files of a log, in order."""
    return sorted(os.path.join(folder, name) for name in os.listdir(folder) if not name.endswith(".tokens"))


def size(folder: str) -> int:
    """Bytes of a log."""
    return sum(map(os.path.getsize, files(folder)))


def times() -> tuple[float, float]:
    spent = os.times()
    return time.perf_counter(), sum(spent[:4])


def run_child(cases: Mapping[str, Case], name: str, path: str) -> None:
    """Run one case in this process and print what it cost."""
    work = cases[name](path)
    wall, cpu = times()
    amount = work()
    wall_after, cpu_after = times()
    result = {
        "wall_s": wall_after - wall,
        "cpu_s": cpu_after - cpu,
        "amount": amount,
        "peak_mb": peak_mb(),
        "peak_child_mb": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024,
    }
    print(json.dumps(result), file=sys.__stdout__)


def peak_mb() -> float:
    """Peak resident memory of this process; of Linux's counters the one that a parent's memory does not raise."""
    with contextlib.suppress(OSError), open("/proc/self/status", encoding="utf-8") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def run(name: str, path: str) -> dict[str, Any]:
    """Run one case of the calling script in a fresh process."""
    command = [sys.executable, sys.argv[0], "--child", name, path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def measure(names: Sequence[str], path: str, repetitions: int) -> dict[str, list[dict[str, Any]]]:
    """Each case `repetitions` times, in turns, after one round that warms the file cache."""
    for name in names:
        run(name, path)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for repetition in range(repetitions):
        first = repetition % len(names)
        for name in (*names[first:], *names[:first]):
            found[name].append(run(name, path))
    return found


def median_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Median with its 95 % percentile bootstrap interval."""
    draws = np.random.default_rng(0).choice(np.asarray(values), (10_000, len(values)))
    low, high = np.quantile(np.median(draws, axis=1), (0.025, 0.975))
    return statistics.median(values), float(low), float(high)


def report(found: Mapping[str, Sequence[Mapping[str, Any]]], unit: float, unit_name: str, ours: Sequence[str]) -> None:
    """Print throughput of every case and the ratios of our cases to all others."""
    for clock in ("wall_s", "cpu_s"):
        print(f"\n{'case':34} {unit_name + ' by ' + clock.removesuffix('_s'):>22}   95 % interval")
        for name, runs in found.items():
            middle, low, high = median_interval([r["amount"] / unit / r[clock] for r in runs])
            print(f"{name:34} {middle:22.2f}   [{low:.2f}, {high:.2f}]")
        for name in ours:
            for peer in (peer for peer in found if peer not in ours):
                pairs = zip(found[name], found[peer], strict=True)
                ratios = [(a["amount"] / a[clock]) / (b["amount"] / b[clock]) for a, b in pairs]
                middle, low, high = median_interval(ratios)
                print(f"ratio {name} / {peer}: {middle:.3f} [{low:.3f}, {high:.3f}]")


def report_memory(name: str, paths: Mapping[str, str]) -> None:
    """Print the peak resident memory of a case on files of several sizes."""
    for label, path in paths.items():
        result = run(name, path)
        megabytes = size(path) / 1e6
        workers = f", largest worker {result['peak_child_mb']:.0f} MB" if result["peak_child_mb"] > 20 else ""
        print(f"peak memory of {name}, {label} ({megabytes:.0f} MB): {result['peak_mb']:.0f} MB{workers}")


def print_machine(packages: Sequence[str]) -> None:
    """Print where and with what the figures below were made."""
    from importlib.metadata import version

    names = [line.split(":")[1].strip() for line in _cpu_lines() if line.startswith("model name")]
    cpu = names[0] if names else platform.processor() or platform.machine()
    print(
        f"{datetime.now(UTC):%Y-%m-%d}, {cpu}, {len(os.sched_getaffinity(0))} cores, Python {platform.python_version()}"
    )
    print(", ".join(f"{name} {version(name)}" for name in packages))


def _cpu_lines() -> list[str]:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return file.read().splitlines()
    except OSError:
        return []


def parser(description: str | None) -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    found.add_argument("--repetitions", type=int, default=7)
    found.add_argument("--folder", help="Where to put the generated files; a temporary folder if not given.")
    return found


def main(cases: Mapping[str, Case], body: Callable[[], None]) -> None:
    """Run a child's case, or the whole benchmark."""
    if sys.argv[1:2] == ["--child"]:
        run_child(cases, *sys.argv[2:4])
    else:
        body()
