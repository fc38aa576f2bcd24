"""A task: a question, the answers that count as right, and how to grade."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from deltah.core.types import Scalar
from deltah.errors import DataError, InvalidValueError
from deltah.jsonlines import read_json_objects
from deltah.tasks.graders import GRADERS, hash_answer, last_boxed


@dataclass(frozen=True, kw_only=True)
class Task:
    """One question with its gold answers."""

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
    """Read a task file, JSONL or Parquet; an error names file, row and field. docs/formats.md lists the fields."""
    name = os.fspath(path)
    tasks: list[Task] = []
    taken: set[str] = set()
    for number, row in task_rows(name):
        task = task_from_row(row, f"{name}:{number}", _identifier(row, number, taken, f"{name}:{number}"))
        taken.add(task.id)
        tasks.append(task)
    if not tasks:
        raise DataError(
            f"{name}: the file holds no task; expected one row per task, for example "
            '{"question": "...", "answer": "..."}'
        )
    return tasks


def task_rows(name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows of a JSONL or Parquet file with their numbers, counted from 1."""
    with suppress(OSError), open(name, "rb") as stream:  # the reader of JSONL says what is wrong with the path
        if stream.read(len(_PARQUET_MAGIC)) == _PARQUET_MAGIC:
            return _parquet_rows(name)
    return read_json_objects(name)


def _parquet_rows(name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    import duckdb

    number = 0
    try:
        with duckdb.connect() as database:
            found = database.execute("FROM read_parquet($file)", {"file": name})
            columns = [column[0] for column in found.description or ()]
            for number, values in enumerate(iter(found.fetchone, None), start=1):
                yield number, dict(zip(columns, values, strict=True))
    except duckdb.Error as error:
        reason = str(error).strip().splitlines()[0]
        raise DataError(f"{name}: the Parquet file is damaged after row {number} ({reason}); write it again") from error


def _identifier(row: Mapping[str, Any], number: int, taken: set[str], where: str) -> str:
    """The row's id, or its number where it has none of its own."""
    given = row.get("id", "")
    if isinstance(given, bool) or not isinstance(given, str | int | None):
        raise DataError(f"{where}: field 'id' is {_got(given)}; expected a string or an integer")
    identifier = str(given)
    if given in (None, "") or identifier in taken:
        identifier = f"line-{number}"
    while identifier in taken:
        identifier += "'"
    return identifier


def task_from_row(row: Mapping[str, Any], where: str, identifier: str) -> Task:
    """Task of one row of a task file."""
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
    prompt = row.get("prompt")
    texts = {name: row.get(name) for name in ("question", "problem")} | {"extra_info.question": extra.get("question")}
    if isinstance(prompt, str):
        texts["prompt"] = prompt
    for name, text in texts.items():
        if text is not None:
            return _text(text, name, where)
    if prompt is None:
        raise DataError(f"{where}: no field 'question'; {_EXPECTED}; got the fields {sorted(row)}")
    messages = prompt if isinstance(prompt, list) else []
    asked = [m.get("content") for m in messages if isinstance(m, Mapping) and m.get("role") == "user"]
    if not asked:
        raise DataError(
            f"{where}: field 'prompt' is {_got(prompt)}; expected a list of messages with one of the user, "
            '[{"role": "user", "content": "..."}]'
        )
    return _text(asked[-1], "prompt[user].content", where)


def _answers(row: Mapping[str, Any], where: str) -> tuple[tuple[str, ...], bool]:
    """Gold answers, and whether one has the mark of a math data set."""
    name, value = _raw_answers(row, where)
    values = value if isinstance(value, list) else [value]
    if not values:
        raise DataError(f"{where}: field {name!r} is an empty list; expected one answer or more")
    found = [_answer(item, name, where) for item in values]
    return tuple(dict.fromkeys(answer for answer, _ in found)), any(marked for _, marked in found)


def _raw_answers(row: Mapping[str, Any], where: str) -> tuple[str, Any]:
    """Name and content of the field with the answers."""
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
    """One gold answer, and whether it has the mark of a math data set."""
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
    if row.get("kind") is not None:
        return _known_grader(row["kind"], where)
    ability, source = str(row.get("ability") or "").lower(), str(row.get("data_source") or "").lower()
    problem = row.get("question") is None and row.get("problem") is not None
    mathematical = marked or problem or ability == "math" or _MATH_SOURCES.search(source)
    return "math" if mathematical else "qa"


def _known_grader(kind: Any, where: str) -> str:
    """Refuse a kind that is no registered grader. A data file never names a module: importing it could run any code."""
    paths = (f"{entry.value.__module__}:{entry.value.__qualname__}" for entry in GRADERS.values())
    if not isinstance(kind, str) or not (kind in GRADERS or kind in paths):
        raise DataError(
            f"{where}: field 'kind' is {_got(kind)}: unknown grader; choose one of: {', '.join(GRADERS)}; or register "
            "one of your own with @deltah.GRADERS.register(...)"
        )
    return kind


def _supporting(row: Mapping[str, Any], where: str) -> tuple[str, ...]:
    ids = row.get("supporting")
    if ids is None:
        return ()
    if not isinstance(ids, list) or not all(isinstance(i, str | int) and not isinstance(i, bool) for i in ids):
        raise DataError(f"{where}: field 'supporting' is {_got(ids)}; expected a list of document ids")
    return tuple(str(i) for i in ids)


def _metadata(source: Mapping[str, Any]) -> dict[str, Scalar]:
    """Entries of a mapping that are text or numbers, without the fields of the format."""
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
    """The beginning of a value, for a message."""
    return "null" if value is None else f"{value!r:.60}"
