"""Task files: every format of the field, and one clear error for every fault."""

from __future__ import annotations

import gzip
import json
import pickle
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from deltah.errors import DataError, InvalidValueError
from deltah.jsonlines import zstd
from deltah.tasks import Task, read_tasks


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_parquet(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    pyarrow = pytest.importorskip("pyarrow")  # writes what the readers' own library did not
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path)
    return path


def read_one(tmp_path: Path, row: object) -> Task:
    (task,) = read_tasks(write(tmp_path / "t.jsonl", row))
    return task


FLASHRAG = {
    "id": "test_0",
    "question": " who got the first nobel prize in physics ",
    "golden_answers": ["Wilhelm Conrad Röntgen", "Röntgen"],
    "metadata": {"level": "easy", "supporting_facts": {"title": ["a"]}},
}
GSM8K = {"question": "How many?", "answer": "She has 3 * 4 = <<3*4=12>>12.\n#### 1,012"}
VERL = {
    "data_source": "searchR1_nq",
    "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Answer: who?"}],
    "ability": "fact-reasoning",
    "reward_model": {"style": "rule", "ground_truth": {"target": ["Ada", "Ada L."]}},
    "extra_info": {"index": 7, "split": "test"},
}
VERL_GSM8K = {
    "data_source": "openai/gsm8k",
    "prompt": [{"role": "user", "content": "How many? Let's think step by step."}],
    "ability": "math",
    "reward_model": {"style": "rule", "ground_truth": "72"},
    "extra_info": {"index": 0, "split": "train", "question": "How many?", "answer": "#### 72"},
}


def test_flashrag(tmp_path: Path) -> None:
    task = read_one(tmp_path, FLASHRAG)
    assert task.question == "who got the first nobel prize in physics"
    assert (task.id, task.golden_answers) == ("test_0", ("Wilhelm Conrad Röntgen", "Röntgen"))
    assert (task.kind, dict(task.metadata)) == ("qa", {"level": "easy"})


def test_gsm8k(tmp_path: Path) -> None:
    task = read_one(tmp_path, GSM8K)
    assert (task.id, task.golden_answers, task.kind) == ("line-1", ("1012",), "math")


def test_math_solutions(tmp_path: Path) -> None:
    task = read_one(tmp_path, {"problem": "Half of 1?", "answer": "It is $\\boxed{\\frac{1}{2}}$.", "level": 3})
    assert (task.golden_answers, task.kind, dict(task.metadata)) == (("\\frac{1}{2}",), "math", {"level": 3})


@pytest.mark.parametrize(
    ("answer", "golden"),
    [
        ("Oslo", ("Oslo",)),
        (42, ("42",)),
        (42.0, ("42",)),
        (0.25, ("0.25",)),
        (10**30, (str(10**30),)),
        (["a", "b", "a", 3], ("a", "b", "3")),
        ("#5 of ###", ("#5 of ###",)),
    ],
)
def test_answers(tmp_path: Path, answer: object, golden: tuple[str, ...]) -> None:
    task = read_one(tmp_path, {"question": "?", "answer": answer})
    assert (task.golden_answers, task.kind) == (golden, "qa")


def test_verl_rows_as_parquet_and_as_json_lines(tmp_path: Path) -> None:
    for path in (write_parquet(tmp_path / "t.parquet", [VERL]), write(tmp_path / "t.jsonl", VERL)):
        (task,) = read_tasks(path)
        assert (task.question, task.golden_answers, task.kind) == ("Answer: who?", ("Ada", "Ada L."), "qa")
        assert task.metadata["split"] == "test"
        assert task.metadata["data_source"] == "searchR1_nq"


def test_verl_gsm8k_takes_the_plain_question(tmp_path: Path) -> None:
    (task,) = read_tasks(write_parquet(tmp_path / "t.parquet", [VERL_GSM8K]))
    assert (task.question, task.golden_answers, task.kind) == ("How many?", ("72",), "math")


@pytest.mark.parametrize("truth", ["5", 5, ["5"], {"target": "5"}, {"target": ["5"]}])
def test_forms_of_ground_truth(tmp_path: Path, truth: object) -> None:
    row = {"prompt": [{"role": "user", "content": "?"}], "reward_model": {"ground_truth": truth}}
    assert read_one(tmp_path, row).golden_answers == ("5",)


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({}, "qa"),
        ({"data_source": "lighteval/MATH"}, "math"),
        ({"data_source": "aime_2024"}, "math"),
        ({"data_source": "aftermath_trivia"}, "qa"),
        ({"data_source": "openai/gsm8k", "kind": "qa"}, "qa"),
        ({"kind": "math"}, "math"),
        ({"ability": "MATH"}, "math"),
    ],
)
def test_kind(tmp_path: Path, fields: dict[str, str], kind: str) -> None:
    assert read_one(tmp_path, {"question": "?", "answer": "x", **fields}).kind == kind


def test_compressed_files(tmp_path: Path) -> None:
    plain = write(tmp_path / "t.jsonl", FLASHRAG, GSM8K)
    (tmp_path / "t.jsonl.gz").write_bytes(gzip.compress(plain.read_bytes()))
    (tmp_path / "t.jsonl.zst").write_bytes(zstd.compress(plain.read_bytes()))
    expected = read_tasks(plain)
    assert read_tasks(tmp_path / "t.jsonl.gz") == read_tasks(str(tmp_path / "t.jsonl.zst")) == expected


def test_ids_are_unique(tmp_path: Path) -> None:
    row = {"question": "?", "answer": "x"}
    rows = [row | {"id": 5}, row, row | {"id": "5"}, row | {"id": "line-5"}, row, row | {"id": ""}]
    ids = [task.id for task in read_tasks(write(tmp_path / "t.jsonl", *rows))]
    assert ids == ["5", "line-2", "line-3", "line-5", "line-5'", "line-6"]


def test_supporting_documents(tmp_path: Path) -> None:
    assert read_one(tmp_path, {"question": "?", "answer": "x", "supporting": ["d1", 2]}).supporting == ("d1", "2")


MESSAGES = [{"role": "user", "content": "?"}]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"answer": "x"},
            r"t\.jsonl:2: no field 'question'; expected fields 'question' and .* got the fields \['answer'\]",
        ),
        ({"question": "?"}, r":2: no field 'answer'; expected"),
        ({"question": 5, "answer": "x"}, "field 'question' is 5; expected text"),
        ({"question": " ", "answer": "x"}, "field 'question' is ' '"),
        ({"question": "?", "answer": ""}, "field 'answer' is ''"),
        ({"question": "?", "answer": True}, "field 'answer' is True"),
        ({"question": "?", "answer": float("nan")}, "field 'answer' is nan; expected a finite number"),
        ({"question": "?", "answer": "work ####"}, "nothing after its '####'"),
        ({"question": "?", "golden_answers": []}, "field 'golden_answers' is an empty list"),
        ({"question": "?", "golden_answers": ["a", None]}, "field 'golden_answers' is null"),
        ({"question": "?", "golden_answers": {"a": 1}}, "field 'golden_answers' is \\{'a': 1\\}"),
        (
            {"question": "?", "answer": "x", "kind": "maths"},
            "'maths': unknown grader; choose one of: qa, em, math",
        ),
        ({"question": "?", "answer": "x", "kind": ["qa"]}, "field 'kind' is \\['qa'\\]"),
        ({"question": "?", "answer": "x", "id": 1.5}, "field 'id' is 1.5"),
        ({"question": "?", "answer": "x", "supporting": "d1"}, "field 'supporting' is 'd1'"),
        ({"question": "?", "answer": "x", "metadata": [1]}, "field 'metadata' is \\[1\\]"),
        ({"prompt": [], "answer": "x"}, "field 'prompt' is \\[\\]"),
        ({"prompt": [{"role": "system", "content": "?"}], "answer": "x"}, "one of the user"),
        ({"prompt": [{"role": "user", "content": [{"type": "image"}]}], "answer": "x"}, r"prompt\[user\]\.content"),
        ({"prompt": MESSAGES, "reward_model": {"ground_truth": {"x": 1}}}, "has no 'target'"),
        ({"prompt": MESSAGES, "reward_model": {}}, "no field 'answer'"),
        ({"prompt": MESSAGES, "reward_model": "72"}, "field 'reward_model' is '72'; expected an object"),
        ([1], "got a JSON list"),
    ],
)
def test_a_wrong_field_names_file_line_and_field(tmp_path: Path, row: object, message: str) -> None:
    path = write(tmp_path / "t.jsonl", {"question": "?", "answer": "x"}, row)
    with pytest.raises(DataError, match=message):
        read_tasks(path)


def test_unreadable_files(tmp_path: Path) -> None:
    empty, broken, text = tmp_path / "empty.jsonl", tmp_path / "t.parquet", tmp_path / "t.csv"
    empty.touch()
    broken.write_bytes(b"PAR1 and nothing of the sort")
    text.write_text("question,answer\n")
    for path, message in (
        (empty, "holds no task"),
        (broken, "Parquet file is damaged"),
        (text, r"t\.csv:1: the line is not JSON"),
        (tmp_path / "none", "cannot read it"),
        (tmp_path, "cannot read it"),
    ):
        with pytest.raises(DataError, match=message):
            read_tasks(path)


def test_a_task_is_checked_and_survives_pickling() -> None:
    task = Task(id="t", question="?", golden_answers=("x",), kind="math", metadata={"level": 1})
    assert task.kind == "math"
    assert pickle.loads(pickle.dumps(task)) == task
    good: dict[str, Any] = {"id": "t", "question": "?", "golden_answers": ("x",)}
    bad: list[dict[str, Any]] = [{"golden_answers": ()}, {"golden_answers": (" ",)}, {"question": ""}]
    for fields in bad:
        with pytest.raises(InvalidValueError, match="task 't'"):
            Task(**(good | fields))
    with pytest.raises(InvalidValueError, match="unknown grader 'poem'; choose one of: qa, em, math"):
        Task(**(good | {"kind": "poem"}))


def test_a_task_file_names_registered_graders_alone(tmp_path: Path) -> None:
    """A file that is downloaded may not choose which function runs."""
    for kind in ("os:system", "this:s"):
        with pytest.raises(DataError, match=f"'{kind}': unknown grader; choose one of: .* register one of your own"):
            read_one(tmp_path, {"question": "?", "answer": "x", "kind": kind})
    assert "this" not in sys.modules  # which prints a poem when it is imported
    found = read_one(tmp_path, {"question": "?", "answer": "x", "kind": "deltah.tasks.graders:token_f1"})
    assert found.kind == "deltah.tasks.graders:token_f1"
