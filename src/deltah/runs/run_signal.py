"""How the run that traces lie in scored its calls: a trace carries entropies, not the margin they were judged by."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from deltah.core.signals import SignalConfig
from deltah.errors import DataError
from deltah.runs.directory import RunDirectory


def signal_of(path: str | os.PathLike[str]) -> SignalConfig:
    """Signal configuration of the nearest run directory around a file or folder; the method's defaults outside of one.

    `deltah.score(trajectory, deltah.signal_of(path))` gives what the run logged.

    Raises:
        DataError: if that run's configuration cannot be read.
    """
    for folder in (Path(path), *Path(path).resolve().parents):
        if (folder / "run.json").exists():
            return run_signal(RunDirectory(folder).config)
    return SignalConfig()


def run_signal(config: Mapping[str, Any]) -> SignalConfig:
    """How a run of this configuration scored its calls; the method's defaults where it does not say.

    Raises:
        DataError: if the configuration names a signal or an option that does not exist.
    """
    try:
        return msgspec.convert(config.get("signal") or {}, SignalConfig)
    except msgspec.ValidationError as error:
        raise DataError(f"the run's signal configuration cannot be read: {error}") from error
