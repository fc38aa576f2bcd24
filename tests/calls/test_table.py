"""The table of calls: values by hand, both relations, any number of processes, files, and documentation in step."""

from __future__ import annotations

import csv
import gc
import json
import math
import re
import sys
import warnings
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest
from builders import make_trajectory

from deltah import CallTable, Segment, SegmentKind, ToolCall, Trajectory, read_calls, score, write_traces
from deltah.calls.savings import Costs, Prices
from deltah.calls.schema import TABLES, TOOLS, rows_of
from deltah.calls.waste import facts_of_calls
from deltah.errors import ConfigError, DataError, DataWarning, InvalidValueError, MissingDependencyError

MEASURED = make_trajectory([[2.0, 1.0], [0.5], [0.75]], id="a", outcome=1.0, question="Where?", metadata={"split": "x"})
ROOT = Path(__file__).parents[2]


def unmeasured(arguments: str = "{}") -> Trajectory:
    segments = (Segment(kind=SegmentKind.REASONING, start=0, stop=0, turn=0, text="x"),)
    calls = (ToolCall(id="c", name="f", arguments=arguments, turn=0, result="r", duration_s=0.5),)
    return Trajectory(id="b", segments=segments, calls=calls)


def rows(relation: duckdb.DuckDBPyRelation) -> list[dict[str, Any]]:
    return [dict(zip(relation.columns, row, strict=True)) for row in relation.fetchall()]


def read(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    if path.suffix == ".csv":
        with path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    return rows(duckdb.read_parquet(str(path)))


def test_calls_by_hand() -> None:
    first, second, third = rows(CallTable.of([MEASURED, unmeasured()], tools={"search": "read"}).calls)
    assert (first["trajectory"], first["verdict"], second["verdict"]) == ("a", "reduced", "not_reduced")
    assert [first[key] for key in ("value", "lower", "upper", "unit")] == [-1.0, -1.0, -1.0, "nats"]
    assert [second[key] for key in ("entropy_before", "entropy_after")] == [0.5, 0.75]
    assert [first[key] for key in ("index", "round", "calls_in_round", "tokens_before", "turn")] == [1, 1, 1, 2, 0]
    assert (first["waste"], first["waste_level"]) == ([], "none")
    assert (second["waste"], second["waste_level"]) == (["exact_duplicate"], "certified")
    assert {third[key] for key in ("value", "verdict", "signal", "unit", "outcome", "correct", "call_tokens")} == {None}
    assert (third["duration_s"], third["duration_is_gap"], third["key"]) == (0.5, False, 1)
    assert (first["cluster"], third["cluster"]) == ("question:Where?", "id:b")


def test_rows_have_the_declared_columns() -> None:
    row, calls = rows_of(MEASURED, score(MEASURED), facts_of_calls(MEASURED))
    assert set(row) == {column.name for column in TABLES["trajectories"]}
    computed_later = {"cost", "cost_with_cache", "waste_level"}
    assert set(calls[1]) | computed_later == {column.name for column in TABLES["calls"]}  # the first repeats none
    assert set(calls[1]) - set(calls[0]) == {"repeats", "same_result", "between", "message_between"}


def test_what_a_call_costs_by_hand(tmp_path: Path) -> None:
    """Two calls of 2 tokens with results of 3, in turns 0 and 1 of 3: read twice and once; then 3 characters."""
    table = CallTable.of([MEASURED, unmeasured()])
    first, second, third = rows(table.calls)
    names = ("own_tokens", "result_tokens", "prompt_tokens", "repeated_prompt_tokens", "tokens_estimated")
    assert [first[key] for key in names] == [2.0, 3.0, 10.0, 5.0, False]
    assert [second[key] for key in names] == [2.0, 3.0, 5.0, 0.0, False]
    assert [third[key] for key in names] == [0.75, 0.25, 0.0, 0.0, True]
    paid = "SELECT cost * 1e6, cost_with_cache * 1e6 FROM calls"
    assert table.sql(paid).fetchall() == [(None, None)] * 3
    table.price(Costs(prices=Prices(input_per_million=2.0, output_per_million=8.0, per_call={"f": 0.5e-6})))
    by_hand = [2 * 8 + 10 * 2, 2 * 8 + 5 * 2, 0.75 * 8 + 0.5]
    np.testing.assert_allclose([cost for cost, _ in table.sql(paid).fetchall()], by_hand)
    assert [cost is None for _, cost in table.sql(paid).fetchall()] == [True, False, False], "nothing is read again"
    prices = Prices(input_per_million=2.0, cached_input_per_million=1.0, output_per_million=8.0)
    write_traces(tmp_path / "t.jsonl", [MEASURED])
    read_table = read_calls(tmp_path / "t.jsonl", costs=Costs(prices=prices))
    np.testing.assert_allclose(read_table.sql(paid).fetchall(), [(36, 31), (26, 26)])


def test_trajectories_by_hand() -> None:
    table = CallTable.of([MEASURED, unmeasured(), make_trajectory([[1.0]], id="n")])
    first, second, third = rows(table.trajectories)
    counts = [first[key] for key in ("calls", "rounds", "sampled_tokens", "margin")]
    assert (counts, first["grader"]) == ([2, 2, 10, 0.0], "stated")
    assert [first[key] for key in ("segments", "segment_tokens", "entropies", "entropy_sum")] == [3, 4, 3, 2.75]
    assert (second["signal"], second["sampled_tokens"], second["calls"]) == (None, None, 1)
    assert (third["calls"], third["entropies"], third["entropy_sum"]) == (0, 1, 1.0)
    assert len(table) == 3
    assert table.sql("SELECT metadata->>'split' FROM trajectories WHERE key = $key", key=0).fetchall() == [("x",)]


def test_parallel_calls_share_the_round_and_unanswered_ones_have_no_value() -> None:
    t = make_trajectory([[2.0], [1.0], [3.0]], calls_per_round=[2, 1])
    assert CallTable.of([t]).sql("SELECT round, value FROM calls").fetchall() == [(1, -1.0), (1, -1.0), (2, 2.0)]
    cut = make_trajectory([[2.0], [1.0], [0.5]], unanswered_last=True)
    found = CallTable.of([cut]).sql("SELECT value, verdict, status FROM calls").fetchall()
    assert found == [(-1.0, "reduced", "ok"), (None, "undefined", "unanswered")]


def test_an_unknown_bound_is_null() -> None:
    state = {name: getattr(MEASURED, name) for name in MEASURED.__dataclass_fields__}
    upper = [math.nan if math.isnan(h) else math.inf for h in state["entropy"]]
    open_above = Trajectory(**(state | {"entropy_lower": MEASURED.entropy, "entropy_upper": upper}))
    assert CallTable.of([open_above]).sql("SELECT DISTINCT upper, verdict FROM calls").fetchall() == [
        (None, "undecided")
    ]


def test_signals_must_fit_their_trajectories() -> None:
    with pytest.raises(InvalidValueError, match="1 signals for 2"):
        CallTable.of([MEASURED, MEASURED], [score(MEASURED)])
    with pytest.raises(InvalidValueError, match="in the order of the"):
        CallTable.of([unmeasured()], [score(MEASURED)])


def test_rows_can_be_added_after_a_query_and_relations_outlive_the_table() -> None:
    table = CallTable.of([MEASURED])
    assert len(table) == 2
    table.add(unmeasured(), None)
    relation = table.calls
    del table
    gc.collect()
    assert [row["key"] for row in rows(relation)] == [0, 0, 1]


def test_a_query_that_is_still_read_hinders_no_other() -> None:
    pytest.importorskip("pyarrow")
    table = CallTable.of([MEASURED])
    open_result = table.calls.to_arrow_reader()
    table.add(unmeasured(), None)
    assert (len(table), open_result.read_all().num_rows) == (3, 2)


FRAMES = {"df": ("pandas",), "pl": ("polars", "pyarrow"), "arrow": ("pyarrow",)}


@pytest.mark.parametrize("method", FRAMES)
def test_calls_as_a_data_frame(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in FRAMES[method]:
        pytest.importorskip(package)
    table = CallTable.of([MEASURED])
    found = getattr(table, method)()
    assert found.shape == (2, len(TABLES["calls"]))
    assert found["value"].to_pylist() if method == "arrow" else list(found["value"]) == [-1.0, 0.25]
    for package in FRAMES[method]:
        monkeypatch.setitem(sys.modules, package, None)
    needed, missing = " and ".join(FRAMES[method]), " ".join(FRAMES[method])
    with pytest.raises(
        MissingDependencyError, match=f"^.{method}.. needs {needed}; install with: pip install {missing}$"
    ):
        getattr(table, method)()


def trajectories(start: int, n: int) -> list[Trajectory]:
    rng = np.random.default_rng(start)
    return [
        make_trajectory(
            rng.gamma(1.0, 1.0, (int(rng.integers(1, 5)), 3)).tolist(),
            half_width=0.3 * (i % 2),
            id=f"t{i}",
            outcome=float(rng.integers(0, 2)),
            metadata={"task_id": i // 3},
        )
        for i in range(start, start + n)
    ]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A log of several kinds of files, one record damaged."""
    logs = tmp_path / "logs"
    write_traces(logs / "a.jsonl", trajectories(0, 40))
    write_traces(logs / "b.parquet", trajectories(40, 40))
    write_traces(logs / "c.jsonl.gz", trajectories(80, 40))
    with (logs / "a.jsonl").open("a") as file:
        file.write('{"segments": "broken"\n')
    return logs


def test_the_number_of_processes_changes_nothing(folder: Path) -> None:
    one, two = (read_calls(folder, workers=workers) for workers in (1, 2))
    assert one.log is not None
    assert two.log is not None
    assert one.log.reader.problems == two.log.reader.problems != ()
    for name in TABLES:
        query = f"SELECT * EXCLUDE (key), dense_rank() OVER (ORDER BY key) FROM {name}"
        assert one.sql(query).fetchall() == two.sql(query).fetchall()
    names = [row[0] for row in one.sql("SELECT trajectory FROM trajectories").fetchall()]
    assert names == [t.id for i in (0, 40, 80) for t in trajectories(i, 40)]
    assert one.sql("SELECT count(DISTINCT key) FROM trajectories").fetchall() == [(120,)]
    files = one.sql("SELECT file, count(*) FROM trajectories GROUP BY file ORDER BY file").fetchall()
    assert files == [(str(path), 40) for path in sorted(folder.iterdir())]


def test_calls_joined_over_files_have_the_first_as_theirs(tmp_path: Path) -> None:
    def api_call(*history: str) -> str:
        spoken = [{"role": "user" if i % 2 == 0 else "assistant", "content": said} for i, said in enumerate(history)]
        reply = {"choices": [{"message": {"role": "assistant", "content": f"{history[-1]}!"}}]}
        return json.dumps({"request": {"messages": spoken}, "response": reply}) + "\n"

    (tmp_path / "1.jsonl").write_text(api_call("One?"))
    (tmp_path / "2.jsonl").write_text(api_call("One?", "One?!", "Two?") + api_call("Three?"))
    found = read_calls(tmp_path).sql("SELECT question, file FROM trajectories ORDER BY question").fetchall()
    assert found == [("One?", str(tmp_path / "1.jsonl")), ("Three?", str(tmp_path / "2.jsonl"))]


def test_a_log_gives_the_rows_of_its_trajectories(folder: Path) -> None:
    listed = [t for i in (0, 40, 80) for t in trajectories(i, 40)]
    found, expected = read_calls(folder), CallTable.of(listed)
    for name in TABLES:
        query = f"SELECT * EXCLUDE (key, file) FROM {name}"
        assert found.sql(query).fetchall() == expected.sql(query).fetchall()


def test_grades_reach_every_process_and_their_matches_are_counted(folder: Path, tmp_path: Path) -> None:
    grades = tmp_path / "grades.jsonl"
    grades.write_text("".join(json.dumps({"id": f"t{i}", "score": 0.25}) + "\n" for i in range(0, 120, 2)))
    table = read_calls(folder, answers=str(grades), workers=2)
    found = table.sql("SELECT count(*), avg(outcome) FROM trajectories WHERE matched").fetchall()
    assert found == [(60, 0.25)]
    grades.write_text(grades.read_text().replace("0.25", "0.75"))
    again = read_calls(folder, answers=str(grades), workers=1)
    assert again.sql("SELECT avg(outcome) FROM trajectories WHERE matched").fetchall() == [(0.75,)]


def test_without_looking_for_waste_there_is_none(folder: Path) -> None:
    table = read_calls(folder, waste=False)
    assert table.sql("SELECT DISTINCT waste, waste_level FROM calls").fetchall() == [(None, None)]


def test_a_problem_in_another_process_stops_strict_reading(folder: Path) -> None:
    with pytest.raises(DataError, match=r"a\.jsonl, line 41"):
        read_calls(folder, workers=2, strict=True)


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_files_have_the_same_rows(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / "new" / f"it's calls{suffix}"
    assert CallTable.of([MEASURED, unmeasured()]).write(path) == 3
    first, second, third = read(path)
    assert tuple(first) == tuple(column.name for column in TABLES["calls"])
    assert [float(first[key]) for key in ("value", "lower", "upper")] == [-1.0] * 3
    assert second["waste"] == ("exact_duplicate" if suffix == ".csv" else ["exact_duplicate"])
    assert {third[key] for key in ("value", "verdict", "signal", "outcome")} <= {None, ""}
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_hostile_arguments_stay_one_cell(tmp_path: Path, suffix: str) -> None:
    hostile = '\'; DROP \x00\x1b[31m\u202e\ud800 "x"\r\n, ' + "y" * 3_000_000
    CallTable.of([unmeasured(hostile)]).write(tmp_path / f"c{suffix}")
    csv.field_size_limit(10**7)
    [row] = read(tmp_path / f"c{suffix}")
    assert row["arguments"] == hostile.replace("\ud800", "?")


def test_no_call_gives_an_empty_file(tmp_path: Path) -> None:
    for suffix in (".jsonl", ".csv", ".parquet"):
        assert CallTable.of([make_trajectory([[1.0]], id="n")]).write(tmp_path / f"c{suffix}") == 0
        assert read(tmp_path / f"c{suffix}") == []


def test_wrong_targets_are_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\.jsonl, \.csv or \.parquet"):
        CallTable.of([]).write(tmp_path / "c.xlsx")
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot write"):
        CallTable.of([]).write(tmp_path / "file" / "c.csv")


def test_the_documentation_lists_every_column_and_its_queries_run() -> None:
    text = (ROOT / "docs" / "table.md").read_text(encoding="utf-8")
    assert CallTable.of([MEASURED]).sql("FROM tools").columns == [column.name for column in TOOLS]
    for columns in (*TABLES.values(), TOOLS):
        rows = [f"| `{c.name}` | {c.type} | {c.unit} | {c.meaning} |" for c in columns]
        assert "\n".join(["| column | type | unit | meaning |", "| --- | --- | --- | --- |", *rows]) in text
    table = CallTable.of([MEASURED, unmeasured()])
    (queries,) = re.findall(r"```sql\n(.*?)```", text, re.DOTALL)
    for query in queries.split("\n\n"):
        table.sql(query).fetchall()


def test_records_that_are_lost_are_told_of_once(tmp_path: Path) -> None:
    """Line 2 is cut off, line 4 no object, and 5 is of no known format: 3 of 5 lines are lost."""
    spoken = '{"messages": [{"role": "user", "content": "%s"}, {"role": "assistant", "content": "yes"}]}'
    lines = [spoken % "one?", spoken[:40], spoken % "two?", "[7]", '{"colour": "red"}']
    (tmp_path / "log.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.warns(DataWarning) as warned:
        table = read_calls(tmp_path / "log.jsonl")
    [said] = [str(warning.message) for warning in warned]
    assert said.startswith("3 records could not be read; 2 trajectories could. First: ")
    assert f"First: {tmp_path}/log.jsonl, line 2: not valid JSON" in said
    assert said.endswith("all are in .problems")
    assert warned[0].filename == __file__
    assert [problem.line for problem in table.problems] == [2, 4, 5]
    assert repr(table) == "<CallTable: 0 calls of 2 trajectories; .df() .pl() .arrow() .sql()>"
    assert table.notes == ["No trajectory has a tool call, so there is nothing to score."]
    assert (CallTable().problems, CallTable().notes) == ([], [])


def test_a_log_without_losses_warns_of_nothing(tmp_path: Path) -> None:
    write_traces(tmp_path / "t.jsonl", [make_trajectory([[1.0], [0.5]])])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_calls(tmp_path / "t.jsonl").problems == []


@pytest.mark.parametrize("content", ["", "# deltah\n\nA page of text.\n", "{}\n"])
def test_what_holds_no_trajectory_is_an_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "README.md").write_text(content)
    for paths in (tmp_path / "README.md", iter([str(tmp_path / "README.md")])):
        with pytest.raises(DataError, match=r"no trajectory could be read from \S+README\.md; "):
            read_calls(paths)
