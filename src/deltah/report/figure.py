"""The plane of outcome and calls as a picture of its own, for a README: the page's chart with its colours inside."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path
from typing import Final

from deltah.errors import InvalidValueError
from deltah.report.build import build
from deltah.report.charts import plane, plane_limits, with_classes
from deltah.report.data import ReportData
from deltah.runs.directory import write_atomic

_SCALE: Final = 1.4


def write_plane(data: ReportData, out: Path, *, evaluation: str = "sampled") -> None:
    """Write the plane of one evaluation as an SVG file that follows the viewer's light or dark theme.

    Raises:
        InvalidValueError: if the report has no such evaluation.
    """
    payload = build(data)
    panels = [panel for panel in payload["plane"] if panel["evaluation"] == evaluation]
    if not panels:
        raise InvalidValueError(f"no graded evaluation {evaluation!r}; there are {', '.join(payload['evaluations'])}")
    drawing = str(plane(panels[0], with_classes(payload["arms"]), plane_limits(panels)))
    box = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', drawing)
    width, height = (float(side) * _SCALE for side in box.groups()) if box else (728.0, 515.0)
    opening = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}"'
    background = '<rect width="100%" height="100%" fill="var(--bg)"/>'
    inside = f"</title><style>{_style()}</style>{background}"
    styled = drawing.replace("<svg", opening, 1).replace("</title>", inside, 1)
    write_atomic(out, styled + "\n")


def _style() -> str:
    """The page's colours and chart rules."""
    css = (resources.files("deltah.report") / "templates" / "style.css").read_text(encoding="utf-8")
    colours = css[: css.index("}\n}\n") + 4]
    rules = [line for line in css.splitlines() if re.match(r"\.(chart|grid|mark|a\d)|line\.", line)]
    return colours + "\n".join(rules)
