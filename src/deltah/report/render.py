"""Payload to page: one self-contained HTML file and its JSON twin, written atomically.

The page embeds the very payload the twin holds; templates, style and script are package data. No network, no build
step, no clock: the same input gives the same bytes. A content security policy lets the page's own script run, named by
its hash, and nothing else: neither another script nor any request.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping
from hashlib import sha256
from importlib import resources
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from deltah.errors import DataError, InvalidValueError
from deltah.report import charts, study_section
from deltah.report.build import build
from deltah.report.data import ReportData
from deltah.report.viewer_record import compact_json, script_json
from deltah.runs.directory import write_atomic
from deltah.text_format import count

ENTROPY_LEVELS: Final = (0.02, 0.1, 0.25, 0.5, 0.8, 1.2, 1.8, 2.6)
"""Upper edges in nats of the viewer's colour classes; fixed, so that pages compare."""
TEMPLATES: Final = resources.files("deltah.report") / "templates"


def write_report(data: ReportData, out_html: str | Path) -> None:
    """Write `report.html` and, beside it, `report.json` with the same data.

    Args:
        data: What to show.
        out_html: The page; the twin has the same name with `.json`.

    Raises:
        InvalidValueError: if the name does not end in `.html`.
        DataError: if a file cannot be written.
    """
    out = Path(out_html)
    if out.suffix.lower() != ".html":
        raise InvalidValueError(f"the report's file name is {out.name!r}; expected one that ends in .html")
    payload = build(data)
    page, twin = render(payload), compact_json(payload) + "\n"
    try:
        write_atomic(out, page)
        write_atomic(out.with_suffix(".json"), twin)
    except OSError as error:
        raise DataError(
            f"cannot write {out}: {error.strerror or error}; choose another place or free some space"
        ) from error


def environment() -> Environment:
    """The page's templates, and the functions that they call."""
    templates = Environment(
        loader=PackageLoader("deltah.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.globals["count"] = count
    return templates


def render(payload: Mapping[str, Any]) -> str:
    """The HTML page of a payload."""
    script = viewer_script()
    return (
        environment()
        .get_template("page.html.j2")
        .render(
            p=payload,
            arms=charts.with_classes(payload["arms"]),
            charts=charts,
            study_charts=study_section,
            plane_limits=charts.plane_limits(payload["plane"]) if payload["plane"] else {},
            value_limits=value_limits(payload),
            levels=ENTROPY_LEVELS,
            # Package files and escaped JSON: the only text that enters the page unescaped.
            style=Markup(_source("style.css")),
            script=Markup(script),
            script_hash=b64encode(sha256(script.encode()).digest()).decode(),
            data_json=Markup(script_json(payload)),
            levels_json=Markup(script_json(list(ENTROPY_LEVELS))),
        )
    )


def viewer_script() -> str:
    """The parts of the viewer's script in the order of their names, in one scope of their own."""
    parts = sorted(file.name for file in (TEMPLATES / "viewer").iterdir() if file.name.endswith(".js"))
    return "\n".join(('"use strict";', "{", *(_source(f"viewer/{name}") for name in parts), "}", ""))


def _source(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8")


def value_limits(payload: Mapping[str, Any]) -> tuple[float, float]:
    """Common range of the bars of the mean signal: symmetric, as wide as the groups of ten calls or more need."""
    values = [
        abs(entry["mean"][key])
        for calls in payload["calls"]
        for table in ("by_tool", "by_round")
        for entry in calls[table]
        for key in ("value", "low", "high")
        if entry["mean"][key] is not None and entry["n"] >= 10
    ]
    limit = max(values, default=1.0) or 1.0
    return -limit, limit
