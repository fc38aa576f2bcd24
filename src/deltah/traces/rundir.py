"""One run = one directory: resolved config, versions, metrics, traces, checkpoints, model, report.

Layout::

    run.json                     config, package versions, seed, machine; written once, atomically
    metrics.jsonl                one object a logged step, {"step": int, ...}; null stands for "not measured"
    status.json                  phase, done and total of what is running
    traces/step-000010.jsonl.zst trajectories of one training step (`traces/rank1-step-...` on other ranks)
    eval/NAME.jsonl.zst          trajectories of one evaluation
    checkpoints/checkpoint-N/    engine state to resume from
    model/                       final model
    report.html, report.json

A directory belongs to one configuration: opening it under another one is refused and the differing keys are named.
Files are written under a temporary name and renamed, so a run killed at any moment leaves no half-written file but the
last line of `metrics.jsonl`, which readers skip.
"""

from __future__ import annotations

import json
import math
import os
import platform
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from deltah.errors import ConfigError, DataError

PACKAGES = ("deltah", "numpy", "torch", "transformers", "trl", "accelerate", "datasets", "pydantic-monty", "bm25s")
"""Packages whose versions a run records."""


def write_atomic(path: Path, text: str) -> None:
    """Write a text file under a temporary name and rename it into place.

    Raises:
        OSError: as the file system says (a full disk, a missing permission).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def nan_to_none(value: Any) -> Any:
    """Replace every non-finite float inside plain containers by None, so that the result is strict JSON."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: nan_to_none(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [nan_to_none(item) for item in value]
    return value


def package_versions() -> dict[str, str]:
    """Versions of Python and of the installed packages that decide a result."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


@dataclass(frozen=True, slots=True)
class RunDirectory:
    """Paths and small files of one run; `open_run` makes or continues one."""

    path: Path

    @property
    def manifest(self) -> dict[str, Any]:
        """Content of run.json.

        Raises:
            DataError: if it is missing or unreadable.
        """
        try:
            content = json.loads((self.path / "run.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"{self.path} is not a run directory: run.json cannot be read ({error})") from error
        if not isinstance(content, dict) or "config" not in content:
            raise DataError(f"{self.path / 'run.json'}: expected an object with the key 'config'")
        return content

    @property
    def config(self) -> dict[str, Any]:
        """Resolved configuration the run was started with."""
        config = self.manifest["config"]
        return dict(config)

    @property
    def metrics_path(self) -> Path:
        """One JSON object a logged step."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        """Engine state to resume from."""
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        """Final model, in Hugging Face format."""
        return self.path / "model"

    def step_traces(self, step: int, rank: int = 0) -> Path:
        """File of the trajectories of one training step."""
        prefix = f"rank{rank}-" if rank else ""
        return self.path / "traces" / f"{prefix}step-{step:06d}.jsonl.zst"

    def evaluation(self, name: str) -> Path:
        """File of the trajectories of one evaluation."""
        return self.path / "eval" / f"{name}.jsonl.zst"

    def set_status(self, phase: str, done: int, total: int) -> None:
        """Say how far a run is, for whoever watches its directory."""
        write_atomic(self.path / "status.json", json.dumps({"phase": phase, "done": done, "total": total}) + "\n")

    @property
    def status(self) -> dict[str, Any]:
        """The last status: `phase`, `done`, `total`; empty before the first."""
        try:
            return dict(json.loads((self.path / "status.json").read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return {}

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """Append one row; a half-written last line of an earlier, killed process is closed first."""
        with self.metrics_path.open("a+b") as file:
            if file.tell() and not _ends_with_newline(file):
                file.write(b"\n")
            file.write(json.dumps(nan_to_none(dict(row)), allow_nan=False).encode() + b"\n")

    def read_metrics(self) -> Iterator[dict[str, Any]]:
        """Rows in order; lines that do not parse (a killed writer's last one) are skipped."""
        if not self.metrics_path.exists():
            return
        with self.metrics_path.open(encoding="utf-8") as file:
            for line in file:
                try:
                    row = json.loads(line)
                except ValueError:
                    continue
                if isinstance(row, dict) and "step" in row:
                    yield row

    def forget_after(self, step: int) -> None:
        """Drop metrics and traces of later steps than the checkpoint a run resumes from."""
        rows = [row for row in self.read_metrics() if row["step"] <= step]
        write_atomic(self.metrics_path, "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))
        for trace in (self.path / "traces").glob("*step-*.jsonl.zst"):
            if int(trace.name.split("step-")[1].split(".")[0]) > step:
                trace.unlink()


def _ends_with_newline(file: Any) -> bool:
    file.seek(-1, os.SEEK_END)
    return bool(file.read(1) == b"\n")


def open_run(
    path: Path, config: Mapping[str, Any], *, command: str, free_keys: frozenset[str] = frozenset()
) -> RunDirectory:
    """Create a run directory, or continue one that was started with the same configuration.

    Args:
        path: The directory; created with its parents.
        config: Resolved configuration, plain JSON values.
        command: Name of the deltah command.
        free_keys: Top-level keys that may differ between the sittings of one run (where it logs, how many threads).

    Raises:
        ConfigError: if the directory holds another run, or files that are not a run.
    """
    run = RunDirectory(path)
    resolved = json.loads(json.dumps(nan_to_none(dict(config))))
    if (path / "run.json").exists():
        _check_same(path, run.manifest, resolved, command, free_keys)
        return run
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ConfigError(f"{path} exists and is not a run of deltah; choose an empty or a new directory")
    manifest = {
        "schema_version": 1,
        "command": command,
        "config": resolved,
        "versions": package_versions(),
        "machine": {"platform": platform.platform(), "cpus": os.cpu_count(), "argv": sys.argv[1:]},
    }
    write_atomic(path / "run.json", json.dumps(manifest, indent=2, sort_keys=True) + "\n")
    return run


def _check_same(
    path: Path, manifest: Mapping[str, Any], config: Mapping[str, Any], command: str, free_keys: frozenset[str]
) -> None:
    """Refuse to mix two configurations in one directory."""
    if manifest.get("command") != command:
        raise ConfigError(f"{path} holds a run of `deltah {manifest.get('command')}`, not of `deltah {command}`")
    old = manifest["config"]
    keys = sorted(k for k in old.keys() | config.keys() if k not in free_keys and old.get(k) != config.get(k))
    if keys:
        changes = "; ".join(f"{k}: {old.get(k)!r} then, {config.get(k)!r} now" for k in keys[:6])
        raise ConfigError(
            f"{path} was started under another configuration ({changes}); "
            "give the same options to continue it, or another --out to start a new run"
        )
