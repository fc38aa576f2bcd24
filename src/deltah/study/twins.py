"""The JSON twins of reports, told from logs by what they hold: a folder of logs may hold both."""

from __future__ import annotations

import json
import os
import re
from typing import Final

_OPENING: Final = re.compile(rb'\{"schema_version":\d+,"title":"')
"""No record of traces begins so; it saves reading the rest of a large log."""
_PARTS: Final = frozenset({"arms", "evaluations", "overview", "viewer"})


def is_report_twin(path: str | os.PathLike[str]) -> bool:
    """Whether a file is what `deltah.study.write_report` puts beside a page; False for one that cannot be read."""
    if not os.path.isfile(path):
        return False
    try:
        with open(path, "rb") as file:
            if _OPENING.match(file.read(64)) is None:
                return False
            file.seek(0)
            held = json.load(file)
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(held, dict) and held.keys() >= _PARTS
