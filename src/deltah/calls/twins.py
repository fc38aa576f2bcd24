"""Results of deltah told from logs by what they hold: a folder of logs may hold the twin of a page, or a study."""

from __future__ import annotations

import json
import os
import re
from typing import Final

_REPORT: Final = (re.compile(rb'\{"schema_version":\d+,"title":"'), frozenset({"arms", "evaluations", "viewer"}))
_STUDY: Final = (re.compile(rb'\{\s*"schema_version": ?\d+,\s*"level": ?'), frozenset({"associations", "positions"}))
"""How a file begins, as no record of traces does (it saves reading the rest of a large log), and what it then holds."""


def is_report_twin(path: str | os.PathLike[str]) -> bool:
    """Whether a file is what `deltah.calls.write_report` puts beside a page; False for one that cannot be read."""
    return _holds(path, *_REPORT)


def is_result(path: str | os.PathLike[str]) -> bool:
    """Whether a file is the twin of a page or the JSON of a study; False for one that cannot be read."""
    return is_report_twin(path) or _holds(path, *_STUDY)


def _holds(path: str | os.PathLike[str], opening: re.Pattern[bytes], names: frozenset[str]) -> bool:
    if not os.path.isfile(path):
        return False
    try:
        with open(path, "rb") as file:
            if opening.match(file.read(64)) is None:
                return False
            file.seek(0)
            held = json.load(file)
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(held, dict) and held.keys() >= names
