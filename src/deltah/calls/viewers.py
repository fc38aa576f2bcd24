"""The way back: scores of calls as the viewers of logs take them, beside the rows that `CallTable.write` writes.

* Phoenix (`*.annotations.json`): the body of `POST /v1/span_annotations`, for logs of spans. A call's signal and its
  waste are annotations of the span that ran the tool, or else of the one that issued the call.
* Inspect (`*.eval`): a copy of the one log that was read, with a score `deltah` in each sample, added as an edit.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from typing import Any, Final, TypeAlias

from deltah.calls.table import CallTable, check_suffix
from deltah.core.registry import Registry
from deltah.errors import ConfigError, DataError
from deltah.runs import nan_to_none
from deltah.text_format import count
from deltah.traces.spans import SPAN_OF

Writer: TypeAlias = Callable[[CallTable, Path], int]
VIEWERS: Final[Registry[Writer]] = Registry("viewer")
"""What writes the scores of a table of calls for a viewer, and gives their number.

`ending` is that of the file's name.
"""
_CALLS: Final = """
    SELECT c.trajectory, c.call, c.tool, c.round, c.signal, c.value, c.lower, c.upper, c.unit, c.verdict,
        array_to_string(c.waste, ', ') AS waste, c.waste_level, t.metadata
    FROM calls c JOIN trajectories t USING (key) ORDER BY key, c."index"
"""


def check_name(path: Path) -> None:
    """Refuse a name that nothing can write."""
    if _writer_of(path) is None:
        try:
            check_suffix(path)
        except ConfigError as error:
            endings = ", ".join(entry.options["ending"] for entry in VIEWERS.values())
            raise ConfigError(f"{error}, or for a viewer in {endings}") from error


def write_scores(table: CallTable, path: Path) -> int:
    """Write rows, or scores for a viewer, by the ending of the name; the file appears when it is complete.

    Args:
        table: The calls.
        path: File to write.

    Returns:
        The number of rows or scores.

    Raises:
        ConfigError: if the ending is unknown, or the logs are not of the kind that the viewer shows.
        DataError: if the file cannot be written.
    """
    writer = _writer_of(path)
    if writer is None:
        return table.write(path)
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        n_scores = writer(table, temporary)
        temporary.replace(path)
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror or error}; choose another place") from error
    finally:
        with suppress(OSError):
            temporary.unlink()
    return n_scores


def _writer_of(path: Path) -> Writer | None:
    return next((entry.value for entry in VIEWERS.values() if path.name.endswith(entry.options["ending"])), None)


def _rows(table: CallTable) -> list[dict[str, Any]]:
    found = table.sql(_CALLS)
    return [nan_to_none(dict(zip(found.columns, row, strict=True))) for row in found.fetchall()]


def _in_words(row: dict[str, Any]) -> str:
    """One line on a call: its signal with bounds and verdict, and its waste."""
    parts = []
    if row["value"] is not None:
        bounds = [f"{row[name]:+.4f}" if row[name] is not None else "unknown" for name in ("lower", "upper")]
        verdict = row["verdict"].replace("_", " ")
        parts.append(f"{row['signal']} {row['value']:+.4f} {row['unit']} in [{', '.join(bounds)}]: {verdict}")
    if row["waste"] and row["waste_level"] != "none":
        level = "hint" if row["waste_level"] == "hint" else f"{row['waste_level']} waste"
        parts.append(f"{level}: {row['waste'].replace('_', ' ')}")
    return "; ".join(parts) or "no entropies, no waste"


@VIEWERS.register("phoenix", title="Phoenix", meaning="Annotations of spans", ending=".annotations.json")
def phoenix(table: CallTable, path: Path) -> int:
    """Annotations of the spans of calls."""
    notes = [note for row in _rows(table) for note in _annotations(row)]
    if not notes:
        raise ConfigError(f"--out {path.name}: no call comes from a span; expected logs of OpenTelemetry's spans")
    path.write_text(json.dumps({"data": notes}, indent=1), encoding="utf-8")
    return len(notes)


def _annotations(row: dict[str, Any]) -> list[dict[str, Any]]:
    span = json.loads(row["metadata"] or "{}").get(f"{SPAN_OF}{row['call']}")
    if span is None:
        return []
    common = {"span_id": span.rpartition("/")[2], "annotator_kind": "CODE", "identifier": "deltah"}
    notes: list[dict[str, Any]] = []
    if row["waste_level"] is not None:
        notes.append({"name": "waste", "result": {"label": row["waste_level"], "explanation": _in_words(row)}})
    if row["verdict"] is not None and row["signal"] is not None:
        score = {} if row["value"] is None else {"score": row["value"]}
        notes.append(
            {"name": row["signal"], "result": {"label": row["verdict"], "explanation": _in_words(row)} | score}
        )
    return [common | note for note in notes]


@VIEWERS.register("inspect", title="Inspect View", meaning="Copy of a log with a score in each sample", ending=".eval")
def inspect(table: CallTable, path: Path) -> int:
    """Score edits of the samples of a log."""
    try:
        from inspect_ai.log import ProvenanceData, edit_score, read_eval_log, write_eval_log
        from inspect_ai.scorer import ScoreEdit
    except ImportError as error:
        raise ConfigError("--out with a name in .eval needs Inspect: pip install inspect-ai") from error
    logs = [] if table.log is None else [source.path for source in table.log.reader.sources]
    if len(logs) != 1:
        raise ConfigError(f"--out with a name in .eval: expected one log of Inspect, got {count(len(logs), 'file')}")
    log = read_eval_log(logs[0])
    samples = {f"{sample.id}/{sample.epoch}": sample for sample in log.samples or ()}
    n_scores = 0
    for name, group in groupby(_rows(table), key=lambda row: row["trajectory"]):
        sample, rows = samples.get(name), list(group)
        if sample is None:
            raise ConfigError(f"{logs[0]} has no sample {name!r}; expected the log of Inspect that the calls are from")
        measured = [row["value"] for row in rows if row["value"] is not None]
        value = {
            "calls": len(rows),
            "reduced": sum(row["verdict"] == "reduced" for row in rows) if measured else None,
            f"mean {rows[0]['signal'] or 'signal'}": sum(measured) / len(measured) if measured else None,
            "waste": sum(row["waste_level"] in ("certified", "likely") for row in rows),
        }
        lines = [f"{row['round']}. {row['tool']}: {_in_words(row)}" for row in rows]
        made = ProvenanceData(author="deltah", reason="change of entropy and waste of each tool call")
        edit = ScoreEdit(value=value, explanation="\n".join(lines), metadata={}, provenance=made)
        edit_score(log, sample.id, "deltah", edit, recompute_metrics=False, epoch=sample.epoch)
        n_scores += 1
    write_eval_log(log, str(path), format="eval")
    return n_scores
