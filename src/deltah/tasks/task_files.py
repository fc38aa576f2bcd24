"""A task: a question, the answers that count as right, and how to grade."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from deltah.core.types import Scalar
from deltah.errors import DataError, DeltahError, InvalidValueError
from deltah.jsonlines import read_json_objects
from deltah.tasks.graders import GRADERS, hash_answer, last_boxed


@dataclass(frozen=True, kw_only=True)
class Task:
    """One question with its gold answers.

    Raises:
        InvalidValueError: if the question or an answer is blank, no answer is given, or the kind is unknown.
    """

    id: str
    """Unique in its file."""
    question: str
    golden_answers: tuple[str, ...]
    """Any of them is right."""
    kind: str = "qa"
    """Its grader: a name in `GRADERS`, or `package.module:function`."""
    supporting: tuple[str, ...] = ()
    """Ids of the documents that hold the answer; empty where the source does not say."""
    metadata: Mapping[str, Scalar] = field(default_factory=dict)
    """Flat facts of the source (data set, split, level)."""

    def __post_init__(self) -> None:
        GRADERS.resolve(self.kind)
        object.__setattr__(self, "golden_answers", tuple(self.golden_answers))
        object.__setattr__(self, "supporting", tuple(self.supporting))
        if not self.question.strip():
            raise InvalidValueError(f"task {self.id!r}: the question is blank")
        if not self.golden_answers or not all(answer.strip() for answer in self.golden_answers):
            raise InvalidValueError(f"task {self.id!r}: needs one or more answers, none of them blank")


_PARQUET_MAGIC = b"PAR1"
_PARQUET_ROWS = 1024
"""Rows fetched at once."""
_MATH_SOURCES = re.compile(r"(?:^|[^a-z])(?:gsm8k|math\w*|aime\w*|amc\w*|olympiadbench|deepscaler|dapo)(?:$|[^a-z])")
_FORMAT_FIELDS = frozenset(
    {"id", "question", "problem", "prompt", "answer", "golden_answers", "reward_model", "kind", "supporting"}
    | {"metadata", "extra_info"}
)
_MAX_EXACT_FLOAT = 2.0**53
_EXPECTED = (
    "expected fields 'question' and 'answer' or 'golden_answers', or verl's 'prompt' and 'reward_model.ground_truth'"
)


def read_tasks(path: str | os.PathLike[str]) -> list[Task]:
    """Read a task file; the module docstring says which fields are read how.

    Raises:
        DataError: if the file cannot be read, holds no task, or a row breaks the format; names file, row and field.
    """
    name = os.fspath(path)
    tasks: list[Task] = []
    taken: set[str] = set()
    for number, row in task_rows(name):
        task = task_from_row(row, f"{name}:{number}", _identifier(row, number, taken, f"{name}:{number}"))
        taken.add(task.id)
        tasks.append(task)
    if not tasks:
        raise DataError(
            f"{name}: the file holds no task; expected one row a task, for example "
            '{"question": "...", "answer": "..."}'
        )
    return tasks


def task_rows(name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows of a JSONL or Parquet file with their numbers, counted from 1."""
    try:
        with open(name, "rb") as stream:
            parquet = stream.read(len(_PARQUET_MAGIC)) == _PARQUET_MAGIC
    except OSError as error:
        raise DataError(f"{name}: cannot read it ({error.strerror or error}); check the path") from error
    return _parquet_rows(name) if parquet else read_json_objects(name)


def _parquet_rows(name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    import duckdb

    number = 0
    try:
        with duckdb.connect() as database:
            found = database.execute("FROM read_parquet($file)", {"file": name})
            columns = [column[0] for column in found.description or ()]
            while rows := found.fetchmany(_PARQUET_ROWS):
                for values in rows:
                    number += 1
                    yield number, dict(zip(columns, values, strict=True))
    except duckdb.Error as error:
        reason = str(error).strip().splitlines()[0]
        raise DataError(f"{name}: the Parquet file is damaged after row {number} ({reason}); write it again") from error


def _identifier(row: Mapping[str, Any], number: int, taken: set[str], where: str) -> str:
    given = row.get("id")
    if given is not None and (isinstance(given, bool) or not isinstance(given, str | int)):
        raise DataError(f"{where}: field 'id' is {_got(given)}; expected a string or an integer")
    identifier = "" if given is None else str(given)
    if not identifier or identifier in taken:
        identifier = f"line-{number}"
    while identifier in taken:
        identifier += "'"
    return identifier


def task_from_row(row: Mapping[str, Any], where: str, identifier: str) -> Task:
    """Task of one row; the module docstring says which fields are read how."""
    extra = _mapping(row, "extra_info", where)
    answers, marked = _answers(row, where)
    return Task(
        id=identifier,
        question=_question(row, extra, where),
        golden_answers=answers,
        kind=_kind(row, marked, where),
        supporting=_supporting(row, where),
        metadata=_metadata(row) | _metadata(_mapping(row, "metadata", where)) | _metadata(extra),
    )


def _question(row: Mapping[str, Any], extra: Mapping[str, Any], where: str) -> str:
    for name, source in (("question", row), ("problem", row), ("extra_info.question", extra)):
        question = source.get(name.rpartition(".")[2])
        if question is not None:
            return _text(question, name, where)
    prompt = row.get("prompt")
    if prompt is None:
        raise DataError(f"{where}: no field 'question'; {_EXPECTED}; got the fields {sorted(row)}")
    if isinstance(prompt, str):
        return _text(prompt, "prompt", where)
    messages = prompt if isinstance(prompt, list) else []
    asked = [m.get("content") for m in messages if isinstance(m, Mapping) and m.get("role") == "user"]
    if not asked:
        raise DataError(
            f"{where}: field 'prompt' is {_got(prompt)}; expected a list of messages with one of the user, "
            '[{"role": "user", "content": "..."}]'
        )
    return _text(asked[-1], "prompt[user].content", where)


def _answers(row: Mapping[str, Any], where: str) -> tuple[tuple[str, ...], bool]:
    """Gold answers, and whether one bore the mark of a math data set."""
    name, value = _raw_answers(row, where)
    values = value if isinstance(value, list) else [value]
    if not values:
        raise DataError(f"{where}: field {name!r} is an empty list; expected one answer or more")
    found = [_answer(item, name, where) for item in values]
    return tuple(dict.fromkeys(answer for answer, _ in found)), any(marked for _, marked in found)


def _raw_answers(row: Mapping[str, Any], where: str) -> tuple[str, Any]:
    for name in ("golden_answers", "answer"):
        if row.get(name) is not None:
            return name, row[name]
    model = _mapping(row, "reward_model", where)
    truth = model.get("ground_truth")
    if isinstance(truth, Mapping):
        truth = truth.get("target")
        if truth is None:
            raise DataError(
                f"{where}: field 'reward_model.ground_truth' has no 'target'; expected text, a number or a list"
            )
    if truth is None:
        raise DataError(f"{where}: no field 'answer'; {_EXPECTED}; got the fields {sorted(row)}")
    return "reward_model.ground_truth", truth


def _answer(value: Any, name: str, where: str) -> tuple[str, bool]:
    if isinstance(value, int | float) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise DataError(f"{where}: field {name!r} is {value}; expected a finite number or text")
        whole = isinstance(value, float) and value.is_integer() and abs(value) < _MAX_EXACT_FLOAT
        return str(int(value) if whole else value), False
    text = _text(value, name, where)
    if "####" in text:
        answer = hash_answer(text)
        if answer is None:
            raise DataError(f"{where}: field {name!r} has nothing after its '####'; expected the final answer there")
        return re.sub(r"(?<=\d),(?=\d{3})", "", answer), True
    boxed = last_boxed(text)
    return (boxed.strip(), True) if boxed and boxed.strip() else (text, False)


def _kind(row: Mapping[str, Any], marked: bool, where: str) -> str:
    kind = row.get("kind")
    if kind is not None:
        return _known_grader(kind, where)
    ability, source = str(row.get("ability") or "").lower(), str(row.get("data_source") or "").lower()
    problem = row.get("question") is None and row.get("problem") is not None
    mathematical = marked or problem or ability == "math" or _MATH_SOURCES.search(source)
    return "math" if mathematical else "qa"


def _known_grader(kind: Any, where: str) -> str:
    """Refuse a kind that names no grader. A data file may name registered functions alone, or it could run any code."""
    try:
        entry = GRADERS.resolve(str(kind))
    except DeltahError as error:
        raise DataError(f"{where}: field 'kind' is {_got(kind)}: {error}") from error
    if all(entry is not known for known in GRADERS.values()):
        raise DataError(
            f"{where}: field 'kind' is {_got(kind)}, which is not registered as a grader; decorate the function with "
            "@deltah.GRADERS.register(...)"
        )
    return str(kind)


def _supporting(row: Mapping[str, Any], where: str) -> tuple[str, ...]:
    ids = row.get("supporting")
    if ids is None:
        return ()
    if not isinstance(ids, list) or not all(isinstance(i, str | int) and not isinstance(i, bool) for i in ids):
        raise DataError(f"{where}: field 'supporting' is {_got(ids)}; expected a list of document ids")
    return tuple(str(i) for i in ids)


def _metadata(source: Mapping[str, Any]) -> dict[str, Scalar]:
    """Flat entries of a mapping, less the fields with a meaning of their own; what is nested or null is left out."""
    return {k: v for k, v in source.items() if isinstance(v, str | int | float) and k not in _FORMAT_FIELDS}


def _mapping(row: Mapping[str, Any], name: str, where: str) -> Mapping[str, Any]:
    value = row.get(name)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise DataError(f"{where}: field {name!r} is {_got(value)}; expected an object")
    return value


def _text(value: Any, name: str, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{where}: field {name!r} is {_got(value)}; expected text that is not blank")
    return value.strip()


def _got(value: Any) -> str:
    """A value for a message: its kind, and its beginning."""
    if value is None:
        return "null"
    kind = "list" if isinstance(value, Sequence) and not isinstance(value, str) else type(value).__name__
    return f"the {kind} {value!r:.60}"
