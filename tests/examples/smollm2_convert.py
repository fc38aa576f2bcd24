"""The conversion script of examples/smollm2 as a module, for its tests."""

from __future__ import annotations

import importlib.util
from pathlib import Path

_SPEC = importlib.util.spec_from_file_location(
    "smollm2_convert", Path(__file__).parents[2] / "examples" / "smollm2" / "convert.py"
)
assert _SPEC is not None
assert _SPEC.loader is not None
convert = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(convert)
