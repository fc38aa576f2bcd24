"""One run = one directory, of one configuration and of one process at a time.

Layout::

    run.json                     config, package versions, machine; written once
    metrics.jsonl                one object per logged step, {"step": int, ...}; null for what was not measured
    status.json                  phase, done and total
    result.json                  written last: the run is finished
    traces/step-000010.jsonl.zst trajectories of one training step (`traces/rank1-step-...` on other ranks)
    eval/NAME.jsonl.zst          trajectories of one evaluation
    checkpoints/checkpoint-N/    engine state to resume from
    model/                       final model
    report.html, report.json
    .lock                        held by the process that works here (`claim`)

A run killed at any moment leaves no half-written file but the last line of `metrics.jsonl`, which readers skip.
"""

from __future__ import annotations

import json
import logging
import math
import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import IO, Any

import msgspec

from deltah.core.metrics import FORMER_KEYS
from deltah.core.signals import SIGNALS, SignalConfig
from deltah.errors import ConfigError, DataError, InvalidValueError

try:
    import fcntl
except ImportError:  # pragma: no cover - Windows: runs there are not protected from one another
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

LOCK, MANIFEST, STATUS, RESULT = ".lock", "run.json", "status.json", "result.json"
DONE = "done"
"""Phase of a finished run's status."""
FOLDERS = ("checkpoints", "traces", "eval", "model")
PACKAGES = ("deltah", "numpy", "torch", "transformers", "trl", "accelerate", "datasets", "pydantic-monty", "bm25s")
"""Packages whose versions a run records."""
_KEYS_NAMED = 6
_RESULT = re.compile(rb'\{\s*"schema_version": ?\d+,\s*"(?:title|level)":')
"""How the JSON of a report or a study begins, as no record of traces does."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name to write a file under, which then takes the place of `path`; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomic(path: Path, text: str) -> None:
    """Write a text file under a temporary name and rename it into place."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def nan_to_none(value: Any) -> Any:
    """A value for strict JSON: None for every float in it that is not finite."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: nan_to_none(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [nan_to_none(item) for item in value]
    return value


def package_versions() -> dict[str, str]:
    """Versions of Python and of the installed packages that affect a result."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


@dataclass(frozen=True, slots=True)
class RunDirectory:
    """Paths and small files of one run; `open_run` makes or continues one."""

    path: Path

    @property
    def manifest(self) -> dict[str, Any]:
        """Content of run.json; a `DataError` where it is missing or unreadable."""
        try:
            content = json.loads((self.path / MANIFEST).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"{self.path} is not a run directory: run.json cannot be read ({error})") from error
        if not isinstance(content, dict) or not isinstance(content.get("config"), dict):
            raise DataError(f"{self.path / MANIFEST}: expected an object with the key 'config'")
        return content

    @property
    def config(self) -> dict[str, Any]:
        """Resolved configuration the run was started with."""
        return dict(self.manifest["config"])

    @property
    def metrics_path(self) -> Path:
        """One JSON object per logged step."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        """Engine state to resume from."""
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        """Final model, in Hugging Face format."""
        return self.path / "model"

    @property
    def finished(self) -> bool:
        """Whether the run is complete."""
        return (self.path / RESULT).exists()

    def step_traces(self, step: int, rank: int = 0) -> Path:
        """File of the trajectories of one training step."""
        prefix = f"rank{rank}-" if rank else ""
        return self.path / "traces" / f"{prefix}step-{step:06d}.jsonl.zst"

    def evaluation(self, name: str) -> Path:
        """File of the trajectories of one evaluation."""
        return self.path / "eval" / f"{name}.jsonl.zst"

    def set_status(self, phase: str, done: int, total: int) -> None:
        """Write the progress of the run to status.json."""
        write_atomic(self.path / STATUS, json.dumps({"phase": phase, "done": done, "total": total}) + "\n")

    @property
    def status(self) -> dict[str, Any]:
        """The last status: `phase`, `done`, `total`; empty before the first."""
        try:
            return dict(json.loads((self.path / STATUS).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return {}

    def finish(self, result: Mapping[str, Any], total: int) -> None:
        """Mark the run as finished, with all of `total` steps or trajectories done."""
        self.set_status(DONE, total, total)
        write_atomic(self.path / RESULT, json.dumps(nan_to_none(result)) + "\n")

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """Append one row, on a line of its own if a killed process left half a line."""
        with self.metrics_path.open("a+b") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    file.write(b"\n")
            file.write(json.dumps(nan_to_none(row), allow_nan=False).encode() + b"\n")

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
                    yield {FORMER_KEYS.get(str(key), str(key)): value for key, value in row.items()}

    def forget_after(self, step: int) -> None:
        """Drop metrics and traces of later steps than the checkpoint a run resumes from."""
        if self.metrics_path.exists():
            rows = [row for row in self.read_metrics() if row["step"] <= step]
            write_atomic(self.metrics_path, "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))
        for trace in (self.path / "traces").glob("*step-*.jsonl.zst"):
            if int(trace.name.split("step-")[1].split(".")[0]) > step:
                trace.unlink()


def open_run(
    path: Path, config: Mapping[str, Any], *, command: str, free_keys: frozenset[str] = frozenset()
) -> RunDirectory:
    """Create a run directory, or continue one of the same configuration; `free_keys` of its top level may differ."""
    run = RunDirectory(path)
    resolved = json.loads(json.dumps(nan_to_none(config)))
    if (path / MANIFEST).exists():
        _check_same(path, run.manifest, resolved, command, free_keys)
        return run
    if path.exists() and (not path.is_dir() or any(_content(path))):
        raise ConfigError(f"{path} exists and is not a run of deltah; choose an empty or a new directory")
    manifest = {
        "schema_version": 1,
        "command": command,
        "config": resolved,
        "versions": package_versions(),
        "machine": {"platform": platform.platform(), "cpus": os.cpu_count(), "argv": sys.argv[1:]},
    }
    with _unwritable_named(path):
        write_atomic(path / MANIFEST, json.dumps(manifest, indent=2, sort_keys=True) + "\n")
    return run


def _check_same(
    path: Path, manifest: Mapping[str, Any], config: Mapping[str, Any], command: str, free_keys: frozenset[str]
) -> None:
    """Refuse to mix two configurations in one directory."""
    if manifest.get("command") != command:
        raise ConfigError(f"{path} holds a run of `deltah {manifest.get('command')}`, not of `deltah {command}`")
    old, new = _flat(manifest["config"]), _flat(config)
    keys = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]  # null is "not set"
    keys = [key for key in keys if key.split(".")[0] not in free_keys]
    if keys:
        changes = "; ".join(f"{key}: {_shown(old, key)} then, {_shown(new, key)} now" for key in keys[:_KEYS_NAMED])
        more = f"; and {len(keys) - _KEYS_NAMED} more" if len(keys) > _KEYS_NAMED else ""
        raise ConfigError(
            f"{path} was started under another configuration ({changes}{more}); "
            "give the same options to continue it, or another --out to start a new run"
        )


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as dotted keys, as the command line writes them."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _shown(flat: Mapping[str, Any], key: str) -> str:
    return repr(flat[key]) if key in flat else "not set"


def _content(path: Path) -> Iterator[Path]:
    """Entries of a run directory, without the lock and empty folders."""
    for child in path.iterdir():
        empty = child.name in FOLDERS and not any(file.is_file() for file in child.rglob("*"))
        if child.name != LOCK and not empty:
            yield child


@contextmanager
def _unwritable_named(path: Path) -> Iterator[None]:
    """Turn an error of the file system into one sentence that names the run directory."""
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"cannot write the run directory {path}: {error.strerror or error}; choose another --out"
        ) from error


def run_signal(config: Mapping[str, Any]) -> SignalConfig:
    """Signal configuration in a run's configuration, the method's defaults if it has none."""
    try:
        return msgspec.convert(config.get("signal") or {}, SignalConfig)
    except msgspec.ValidationError as error:
        raise DataError(f"the run's signal configuration cannot be read: {error}") from error


def log_signals() -> tuple[str, ...]:
    """Names of the signals that a log can be scored by as it is read: those that need no fit."""
    return tuple(name for name, entry in SIGNALS.items() if "fit" not in entry.options)


def known_signal(name: str) -> str:
    """The name of a signal that a log can be scored by; an InvalidValueError for any other."""
    known = name in SIGNALS or ":" in name
    if known and "fit" not in SIGNALS.resolve(name).options:
        return name
    fitted = f"the signal {name!r} needs an expectation fitted on other questions, as `deltah study` computes it; here"
    raise InvalidValueError(
        f"{fitted if known else f'unknown signal {name!r};'} choose one of: {', '.join(log_signals())}; or name one of "
        "your own as package.module:function"
    )


@contextmanager
def claim(path: Path) -> Iterator[None]:
    """Lock a run directory, created if missing, for this process.

    If the block fails before it has written results, everything it made is removed, so that the corrected command can
    use the same name.
    """
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    before = {child.name for child in path.iterdir()} if path.is_dir() else set()
    with _unwritable_named(path):
        lock = _locked_file(path)
    with lock:
        try:
            yield
        except BaseException:
            if MANIFEST not in before and all(child.name in (MANIFEST, STATUS, *before) for child in _content(path)):
                _discard(path, before, made)
            raise


def _locked_file(path: Path) -> IO[str]:
    """The `.lock` file, locked until it is closed, with this process's name in it."""
    while True:
        path.mkdir(parents=True, exist_ok=True)
        lock = (path / LOCK).open("a+", encoding="utf-8", errors="replace")
        try:
            if fcntl is not None:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            lock.seek(0)
            holder = lock.read(200) or "another process"
            lock.close()
            raise ConfigError(
                f"{path} is in use by {holder}; wait until it ends, or give another --out to start a new run"
            ) from error
        except OSError as error:
            logger.warning("%s is on a file system without locks (%s): start one run in it at a time", path, error)
        with suppress(FileNotFoundError):  # the holder before may have removed the file as it left
            if os.path.samestat(os.fstat(lock.fileno()), (path / LOCK).stat()):
                lock.truncate(0)
                lock.write(f"process {os.getpid()} on {platform.node() or 'an unnamed host'}")
                lock.flush()
                return lock
        lock.close()


def _discard(path: Path, before: set[str], made: list[Path]) -> None:
    """Remove what a run that never started made; what was there before stays."""
    for name in set(FOLDERS) - before:
        shutil.rmtree(path / name, ignore_errors=True)
    for name in {MANIFEST, STATUS, LOCK} - before:
        (path / name).unlink(missing_ok=True)
    for folder in made:
        with suppress(OSError):  # someone else put something in it
            folder.rmdir()


def is_result(path: str | os.PathLike[str]) -> bool:
    """Whether a file is the JSON of a report or a study; False for one that cannot be read."""
    try:
        with open(path, "rb") as file:
            return _RESULT.match(file.read(64)) is not None
    except OSError:
        return False
