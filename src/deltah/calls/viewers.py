"""The way back: scores of calls as the viewers of logs take them, beside the rows that `CallTable.write` writes."""

from __future__ import annotations

import json
from itertools import groupby
from pathlib import Path
from typing import Any, Final

from deltah.calls.table import CallTable, check_suffix
from deltah.errors import ConfigError, DataError
from deltah.runs import nan_to_none, replacing
from deltah.text_format import count
from deltah.traces.spans import SPAN_OF

_CALLS: Final = """
    SELECT c.trajectory, c.call, c.tool, c.round, c.signal, c.value, c.lower, c.upper, c.unit, c.verdict,
        array_to_string(c.waste, ', ') AS waste, c.waste_level, t.metadata
    FROM calls c JOIN trajectories t USING (key) ORDER BY key, c."index"
"""


def check_name(path: Path) -> None:
    """Refuse a name that nothing can write."""
    if not path.name.endswith(tuple(_WRITERS)):
        try:
            check_suffix(path)
        except ConfigError as error:
            raise ConfigError(f"{error}, or for a viewer in {', '.join(_WRITERS)}") from error


def write_scores(table: CallTable, path: Path) -> int:
    """Write rows, or scores for a viewer, by the ending of the name; the file appears when it is complete.

    `.annotations.json` is for Phoenix, the body of `POST /v1/span_annotations`: a call's signal and its waste are
    annotations of the span that ran the tool, or else of the one that issued the call. `.eval` is for Inspect: a copy
    of the one log that was read, with a score `deltah` in each sample, added as an edit.

    Args:
        table: The calls.
        path: File to write.

    Returns:
        The number of rows or scores.

    Raises:
        ConfigError: if the ending is unknown, or the logs are not of the kind that the viewer shows.
        DataError: if the file cannot be written.
    """
    writer = next((writer for ending, writer in _WRITERS.items() if path.name.endswith(ending)), None)
    if writer is None:
        return table.write(path)
    found = table.sql(_CALLS)
    rows = [nan_to_none(dict(zip(found.columns, row, strict=True))) for row in found.fetchall()]
    try:
        with replacing(path) as temporary:
            return writer(table, rows, temporary)
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror or error}; choose another place") from error


def _in_words(row: dict[str, Any]) -> str:
    """One line on a call: its signal with bounds and verdict, and its waste."""
    parts = []
    if row["value"] is not None:
        lower, upper = ("unknown" if row[name] is None else f"{row[name]:+.4f}" for name in ("lower", "upper"))
        verdict = row["verdict"].replace("_", " ")
        parts.append(f"{row['signal']} {row['value']:+.4f} {row['unit']} in [{lower}, {upper}]: {verdict}")
    if row["waste"] and row["waste_level"] != "none":
        level = "hint" if row["waste_level"] == "hint" else f"{row['waste_level']} waste"
        parts.append(f"{level}: {row['waste'].replace('_', ' ')}")
    return "; ".join(parts) or "no entropies, no waste"


def _phoenix(table: CallTable, rows: list[dict[str, Any]], path: Path) -> int:
    notes = []
    for row in rows:
        span = json.loads(row["metadata"] or "{}").get(f"{SPAN_OF}{row['call']}")
        if span is None:
            continue
        scored = {} if row["value"] is None else {"score": row["value"]}
        for name, label, score in (("waste", row["waste_level"], {}), (row["signal"], row["verdict"], scored)):
            if name is not None and label is not None:
                result = {"label": label, "explanation": _in_words(row)} | score
                common = {"span_id": span.rpartition("/")[2], "annotator_kind": "CODE", "identifier": "deltah"}
                notes.append(common | {"name": name, "result": result})
    if not notes:
        raise ConfigError("--out with a name in .annotations.json: no call comes from a span; expected logs of spans")
    path.write_text(json.dumps({"data": notes}, indent=1), encoding="utf-8")
    return len(notes)


def _inspect(table: CallTable, rows: list[dict[str, Any]], path: Path) -> int:
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
    groups = {name: list(group) for name, group in groupby(rows, key=lambda row: row["trajectory"])}
    for name, calls in groups.items():
        if name not in samples:
            raise ConfigError(f"{logs[0]} has no sample {name!r}; expected the log of Inspect that the calls are from")
        measured = [row["value"] for row in calls if row["value"] is not None]
        value = {
            "calls": len(calls),
            "reduced": sum(row["verdict"] == "reduced" for row in calls) if measured else None,
            f"mean {calls[0]['signal'] or 'signal'}": sum(measured) / len(measured) if measured else None,
            "waste": sum(row["waste_level"] in ("certified", "likely") for row in calls),
        }
        lines = "\n".join(f"{row['round']}. {row['tool']}: {_in_words(row)}" for row in calls)
        made = ProvenanceData(author="deltah", reason="change of entropy and waste of each tool call")
        edit = ScoreEdit(value=value, explanation=lines, metadata={}, provenance=made)
        edit_score(log, samples[name].id, "deltah", edit, recompute_metrics=False, epoch=samples[name].epoch)
    write_eval_log(log, str(path), format="eval")
    return len(groups)


_WRITERS: Final = {".annotations.json": _phoenix, ".eval": _inspect}
