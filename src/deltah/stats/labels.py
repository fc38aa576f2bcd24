"""Quality labels of calls: the study's own, documents that results should hold, and columns of a user or a probe.

A file of columns is CSV or JSON lines with `trajectory`, `call` and further columns. Numbers and booleans are kept (yes
is 1, no is 0); an empty cell, null and NaN mean "not known". Columns without a number and those that `deltah score
--out` writes are left out; one that mixes numbers and words is refused, as a typing error would be a missing label.
"""

from __future__ import annotations

import csv
import math
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np

from deltah.calls.schema import TABLES
from deltah.core.types import FloatArray, Trajectory
from deltah.errors import DataError, InvalidValueError
from deltah.jsonlines import read_json_objects
from deltah.tasks import Task
from deltah.text_format import agreeing, count
from deltah.tools.search import Document

CallKey: TypeAlias = tuple[str, str]
"""(trajectory id, call id)."""
CallValues: TypeAlias = Mapping[CallKey, Mapping[str, float]]
"""What is known of single calls, by column name; an absent entry is not known."""

OWN_COLUMNS: Final = frozenset(("delta_h", *(column.name for column in TABLES["calls"])))
"""Columns of `deltah score --out`: signals already, never labels."""
_WORDS: Final = {"true": 1.0, "yes": 1.0, "false": 0.0, "no": 0.0, **dict.fromkeys(("", "nan", "na", "none", "null"))}
"""Cells of CSV files that are no numbers, in lower case; None: not known."""


class Label(NamedTuple):
    """A label of the study itself: its value in the table of calls, and why no call may have one."""

    meaning: str
    sql: str | None = None
    missing: str | None = None


_NO_EVIDENCE: Final = "no result holds a supporting document; give the --tasks and the --corpus of these trajectories"
LABELS: Final = {
    "correct": Label(
        "the trajectory's outcome is 1, the same for all its calls",
        sql="correct",
        missing="no trajectory is graded; give a task file that holds their questions with --tasks, or log an outcome",
    ),
    "executed": Label("the tool answered without an error", sql="status = 'ok'"),
    "gold_evidence": Label("the result holds a supporting document of the task", missing=_NO_EVIDENCE),
    "new_evidence": Label(
        "the result holds a supporting document that no earlier call of the trajectory returned", missing=_NO_EVIDENCE
    ),
    "not_redundant": Label(
        "no repeat of an earlier call of a repeatable tool, with the same result and nothing but reads between",
        sql="NOT redundant",
    ),
    "useful": Label(
        "counterfactual, probed calls only: the real result made the gold answer more than twice as likely (gain "
        "above log 2) as no result does, and as an unrelated one does"
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Supporting documents of each task, as word sequences by document id.

    A result holds a document if it has all its letters and digits in order, in any case. A trajectory belongs to a task
    by `metadata["task_id"]`, else by the text of its question. `missing` counts ids that the corpus lacks.
    """

    by_id: dict[str, dict[str, str]]
    by_question: dict[str, dict[str, str]]
    missing: int

    @classmethod
    def of(cls, tasks: Iterable[Task], documents: Iterable[Document]) -> Evidence:
        """Look up the supporting documents of tasks; an InvalidValueError if the corpus holds none."""
        listed = [task for task in tasks if task.supporting]
        wanted = {name for task in listed for name in task.supporting}
        contents = {d.id: words(d.contents) for d in documents if d.id in wanted}
        known = [(t, found) for t in listed if (found := {i: contents[i] for i in t.supporting if contents.get(i)})]
        if not known:
            raise InvalidValueError(
                f"no task has a supporting document in the corpus ({len(listed)} tasks name some); give the corpus "
                "whose ids stand in the tasks' field 'supporting'"
            )
        return cls(
            by_id={task.id: found for task, found in known},
            by_question={task.question.strip(): found for task, found in known},
            missing=len(wanted - contents.keys()),
        )

    def found(self, trajectory: Trajectory) -> FloatArray:
        """(C, 2) whether each result holds a supporting document, and a new one; NaN where the task names none."""
        documents = self.by_id.get(str(trajectory.metadata.get("task_id")))
        documents = documents or self.by_question.get((trajectory.question or "").strip())
        if documents is None:
            return np.full((trajectory.n_calls, 2), np.nan)
        rows, seen = list[tuple[bool, bool]](), set[str]()
        for call in trajectory.calls:
            result = words(call.result or "")
            held = {i for i, text in documents.items() if text in result}
            rows.append((bool(held), bool(held - seen)))
            seen |= held
        return np.array(rows, dtype=np.float64)

    def notes(self, label: FloatArray) -> Iterator[str]:
        """Notes on (N,) labels made of these documents."""
        if self.missing:
            are = agreeing(self.missing, "is", "are")
            yield f"{count(self.missing, 'supporting document')} of the tasks {are} not in the corpus."
        if np.isnan(label).all():
            yield "No call could be matched with a supporting document: the traces may belong to other tasks."


def words(text: str) -> str:
    """Letters and digits in lower case, one space around every word; empty without any."""
    found = re.findall(r"[^\W_]+", text.casefold())
    return f" {' '.join(found)} " if found else ""


def evidence_labels(tool: np.ndarray, found: FloatArray) -> dict[str, FloatArray]:
    """(N,) labels; NaN for tools that never returned any evidence: they are no retrievers."""
    found[~np.isin(tool, np.unique(tool[found[:, 0] == 1.0]))] = np.nan
    return {"gold_evidence": found[:, 0], "new_evidence": found[:, 1]}


def given_values(
    calls: Sequence[CallKey], values: CallValues, names: Iterable[str], what: str
) -> tuple[dict[str, FloatArray], list[str]]:
    """(N,) columns of a file that have a value, NaN where a call has none; a note on rows of other calls."""
    known_calls = set(calls)
    lost = [key for key in values if key not in known_calls]
    if len(lost) == len(values):
        such = f", such as trajectory {lost[0][0]!r}, call {lost[0][1]!r}" if lost else ""
        raise InvalidValueError(
            f"no row of {what} belongs to a call of the traces{such}; give the traces it was made of"
        )
    found = {name: np.array([values.get(key, {}).get(name, np.nan) for key in calls]) for name in names}
    belong = f"{count(len(lost), 'row')} of {what} {agreeing(len(lost), 'belongs', 'belong')} to no call of the traces"
    return {name: column for name, column in found.items() if np.isfinite(column).any()}, [belong] if lost else []


def own_names(columns: CallValues) -> list[str]:
    """Names of a user's labels; one of `LABELS` is refused."""
    names = list(dict.fromkeys(name for row in columns.values() for name in row))
    if clash := sorted(set(names) & set(LABELS)):
        own = f"the labels have a column {clash[0]!r}, the name of a label that the study makes itself"
        raise InvalidValueError(f"{own}; give the column another name")
    return names


def read_call_values(
    path: str | os.PathLike[str], *, only: Collection[str] | None = None
) -> dict[CallKey, dict[str, float]]:
    """Columns of calls (default: all but `OWN_COLUMNS`) in a .csv file, or in JSON lines under any other name."""
    name = os.fspath(path)
    is_csv = name.lower().endswith(".csv")
    lines, columns = dict[CallKey, int](), dict[str, dict[CallKey, Any]]()
    for line, row in _csv_rows(name) if is_csv else _json_rows(name):
        where = f"{name}:{line}"
        trajectory, call = key = (_identifier(row, "trajectory", where), _identifier(row, "call", where))
        if (first := lines.setdefault(key, line)) != line:
            known = f"call {call!r} of trajectory {trajectory!r} is already on line {first}"
            raise DataError(f"{where}: {known}; keep one row per call")
        for column, value in row.items():
            if column not in OWN_COLUMNS if only is None else column in only:
                columns.setdefault(column, {})[key] = _number(value, is_csv)
    found: dict[CallKey, dict[str, float]] = {key: {} for key in lines}
    for column, values in columns.items():
        numeric = any(isinstance(value, float) for value in values.values())
        for key, value in values.items() if numeric else ():
            if isinstance(value, float):
                found[key][column] = value
            elif value is not None:
                raise DataError(
                    f"{name}:{lines[key]}: column {column!r} is {value!r:.60}, elsewhere a number; "
                    "expected a finite number, true or false, or nothing"
                )
    if not any(found.values()):
        raise DataError(
            f"{name}: no column of numbers or booleans beside 'trajectory' and 'call'; expected one row per call, "
            "for example: trajectory,call,good"
        )
    return found


def _number(value: Any, is_csv: bool) -> Any:
    """A value as a finite number; None where it is not known; anything else as it stands."""
    number = value
    if is_csv:
        word = (value or "").strip().lower()
        try:
            number = _WORDS[word] if word in _WORDS else float(word)
        except ValueError:
            return value
    if not isinstance(number, bool | int | float):
        return number
    return None if math.isnan(number) else str(value) if math.isinf(number) else float(number)


def _identifier(row: Mapping[str, Any], column: str, where: str) -> str:
    value = row.get(column)
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
        got = f"is {value!r:.60}" if column in row else f"is missing; got the columns {sorted(map(str, row))}"
        raise DataError(f"{where}: column {column!r} {got}; expected the ids that `deltah score --out` writes")
    return str(value)


def _json_rows(name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows of JSON lines; a file that does not begin as such may have been meant as something else."""
    line = 0
    try:
        for line, row in read_json_objects(name):
            yield line, row
    except DataError as error:
        if line or isinstance(error.__cause__, OSError):
            raise
        raise DataError(
            f"{name}: its first row is not a JSON object, and its name does not end in .csv; expected one row per "
            'call, either JSON lines such as {"trajectory": "a", "call": "c0", "good": 1}, or comma-separated text '
            "with the header trajectory,call,good in a file that ends in .csv"
        ) from error


def _csv_rows(name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows of a CSV file with a header, and the line each ends on."""
    try:
        with Path(name).open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            for row in reader:
                if None in row:
                    raise DataError(
                        f"{name}:{reader.line_num}: the row has more cells than the header; quote cells with commas"
                    )
                yield reader.line_num, row
    except OSError as error:
        raise DataError(f"{name}: cannot read it ({error.strerror or error}); check the path") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{name}: not readable as CSV in UTF-8 ({error}); save it as comma-separated text") from error
