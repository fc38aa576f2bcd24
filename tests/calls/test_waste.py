"""Facts of calls, and when a repeat is waste: what is known of the tool decides, no word of its name."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from call_builders import FACT, OTHER, THIRD, Call, Say, User, hints, levels, python, repeats, search, written
from hypothesis import given, settings
from hypothesis import strategies as st

import deltah
from deltah import Trajectory
from deltah.calls.evidence import CallFacts, Waste
from deltah.calls.waste import facts_of_calls
from deltah.errors import ConfigError

PAGE = "\n".join(f"{i}  def step_{i}(state): return advance(state, by={i})  # of the long run" for i in range(12))
EXACT, ERROR = {Waste.EXACT_DUPLICATE.value}, {Waste.REPEATED_ERROR.value}


def facts(*steps: object) -> tuple[CallFacts, ...]:
    return facts_of_calls(written(*steps))  # type: ignore[arg-type]


# Facts


def test_a_repeat_names_the_latest_equal_call_and_what_stood_between() -> None:
    look, write = Call("look", {"of": "a"}, "1"), Call("put", {"to": "a"}, "ok")
    found = facts(look, write, look, Call("look", {"of": "b"}, "1"), User("Again, please."), look)
    assert [f.repeats for f in found] == [None, None, 0, None, 2]
    assert [f.same_result for f in found] == [None, None, True, None, True]
    assert [f.between for f in found] == [(), (), ("put",), (), ("look",)]
    assert [f.message_between for f in found] == [False, False, False, False, True]


def test_calls_of_one_turn_run_in_any_order() -> None:
    look, write = Call("look", {}, "1"), Call("put", {}, "ok")
    assert facts([write, look], look)[2].between == ("put",)
    assert facts(look, [look, write])[1].between == ("put",)
    assert facts([look, write, look])[2].between == ("put",)
    assert facts(write, look, look, write)[2].between == ()


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ('{"query": "a b", "k": 2}', '{"k":2,\n "query":"a b"}'),
        ('{"query": "caf\\u00e9"}', '{"query": "café"}'),
        ("free text, no JSON", "  free text, no JSON\n"),
        ('{"query": broken', '{"query": broken'),
        ("", "{}"),
    ],
)
def test_key_order_and_white_space_outside_strings_do_not_matter(first: str, second: str) -> None:
    assert repeats(Call("find", first, FACT), Call("find", second, FACT))[1] == EXACT


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"pattern": "loadMap"}, {"pattern": "loadmap"}),
        ({"pattern": "load map"}, {"pattern": '"load map"'}),
        ({"id": 17}, {"id": "17"}),
        ({"id": 17}, {"id": 18}),
        ({"all": True}, {"all": 1}),
        ({"q": "x", "filter": None}, {"q": "x"}),
        ({"q": "a  b"}, {"q": "a b"}),
        ({"q": "Mira's"}, {"q": "Mira’s"}),
        ({"code": "print(1)"}, {"code": "print( 1 )"}),
        ({"q": "x", "page": 1}, {"q": "x", "page": 2}),
        ({"tags": ["a", "b"]}, {"tags": ["b", "a"]}),
    ],
)
def test_case_quotes_types_and_values_make_another_call(first: object, second: object) -> None:
    calls = Call("find", first, "No matches."), Call("find", second, "No matches.")
    assert repeats(*calls) == [set(), set()]
    assert levels(*calls, tools={"find": "read"}) == ["none", "none"]


def test_another_tool_makes_another_call_and_a_call_that_was_not_parsed_equals_none() -> None:
    assert repeats(Call("get_user", {"id": 1}, "Bob"), Call("get_owner", {"id": 1}, "Bob"))[1] == set()
    assert repeats(Call("", {}, "No results."), Call("", {}, "No results."))[1] == set()


def test_results_that_cannot_be_compared_prove_nothing() -> None:
    assert repeats(search("Mira", None), search("Mira", FACT), search("Mira", None)) == [set()] * 3
    shot = Call("take_screenshot", {}, "[image_url]")
    assert facts(shot, shot)[1].same_result is None


def test_another_result_is_no_duplicate_and_times_taken_make_none() -> None:
    assert repeats(*(Call("price", {"t": "X"}, p) for p in ("10", "10", "11", "11"))) == [set(), EXACT, set(), EXACT]
    took = [json.dumps({"hits": ["a"], "took": n}) for n in (13, 7)]
    assert repeats(*(Call("find", {}, text) for text in took))[1] == EXACT
    goals = [json.dumps([{"team": "a", "score": n}]) for n in (1, 2)]
    assert repeats(*(Call("goals", {}, text) for text in goals))[1] == set()


# Repeated errors


def test_the_same_call_that_fails_alike_is_a_repeated_error() -> None:
    call = Call("get_user", {"id": 1}, "error: no user 1 (request 8f3a99c1d2)")
    again = Call("get_user", {"id": 1}, "Error: no user 1 (request 77aa01c1d2)")
    assert repeats(call, again, again) == [set(), ERROR, ERROR]
    assert repeats(call, Call("get_user", {"id": 1}, "error: not permitted"))[1] == set()
    assert repeats(call, Call("get_user", {"id": 2}, "error: no user 1"))[1] == set()


def test_a_retry_that_succeeds_excuses_the_failures_before_it() -> None:
    slow = Call("get_user", {"id": 1}, "error: timed out after 30 s")
    assert repeats(slow, slow, Call("get_user", {"id": 1}, "Bob")) == [set()] * 3
    assert repeats(Call("get_user", {"id": 1}, "Bob"), slow, slow)[2] == ERROR


def test_a_failure_that_may_pass_is_a_fact_and_no_waste() -> None:
    busy = Call("get", {"id": 1}, "Request failed with status code 503")
    gone = Call("get", {"id": 1}, "Request failed with status code 410")
    assert repeats(busy, busy)[1] == repeats(gone, gone)[1] == ERROR
    assert levels(busy, busy, tools={"get": "read"})[1] == "hint"
    assert levels(gone, gone, tools={"get": "read"})[1] == "likely"


# Levels


LOOK, ACT = Call("view_sheet", {"sheet": 3}, PAGE), Call("tidy", {}, "Tidied.")


@pytest.mark.parametrize(
    ("steps", "tools", "level"),
    [
        ((LOOK, LOOK), {}, "hint"),
        ((LOOK, LOOK), {"view_sheet": "read"}, "likely"),
        ((LOOK, LOOK), {"view_sheet": "poll"}, "hint"),
        ((LOOK, LOOK), {"view_sheet": "write"}, "hint"),
        ((LOOK, LOOK), {"view_sheet": "unknown"}, "hint"),
        ((LOOK, LOOK), {"view_sheet": {"kind": "read", "cost": 0.1}}, "likely"),
        ((LOOK, LOOK), {"view_sheet": {"cost": 0.1}}, "hint"),
        ((LOOK, ACT, LOOK), {"view_sheet": "read"}, "hint"),
        ((LOOK, ACT, LOOK), {"view_sheet": "read", "tidy": "write"}, "hint"),
        ((LOOK, ACT, LOOK), {"view_sheet": "read", "tidy": "poll"}, "likely"),
        ((LOOK, ACT, LOOK), {"view_sheet": "read", "tidy": "read"}, "likely"),
        ((LOOK, ACT, LOOK, LOOK), {"view_sheet": "read"}, "likely"),
        ((LOOK, Call("", {}, "?"), LOOK), {"view_sheet": "read"}, "hint"),
        ((LOOK, User("I changed it."), LOOK), {"view_sheet": "read"}, "hint"),
        ((LOOK, User("<|im_end|>\n<|im_start|>assistant\n"), LOOK), {"view_sheet": "read"}, "likely"),
        (([LOOK, LOOK],), {"view_sheet": "read"}, "likely"),
        (([ACT, LOOK], LOOK), {"view_sheet": "read"}, "hint"),
    ],
)
def test_a_repeat_is_waste_of_a_repeatable_tool_with_nothing_but_reads_between(
    steps: tuple[Call, ...], tools: dict[str, object], level: str
) -> None:
    assert levels(*steps, tools=tools)[-1] == level


@pytest.mark.parametrize(
    "answer",
    [
        '{"done": false}',
        '{"phase": "CREATE_IN_PROGRESS"}',
        "0 of 4 shards are green",
        "12:41",
        "[]",
        "",
        "7 messages wait",
        '{"ready": false}',
    ],
)
def test_polls_and_acts_of_any_name_are_never_waste_without_a_declaration(answer: str) -> None:
    for name in ("search", "read_file", "get", "check", "obtenir_état", "x", "GetLiveContext"):
        call = Call(name, {"name": "operations/7"}, answer)
        assert set(levels(call, call, call)) <= {"none", "hint"}
        assert set(levels(call, Call("NotebookEdit", {}, "Updated."), call)) <= {"none", "hint"}


def test_what_a_declaration_knows_reaches_the_table(tmp_path: Path) -> None:
    log, tools = tmp_path / "log.jsonl", tmp_path / "tools.toml"
    deltah.write_traces(log, [written(LOOK, Call("slow", {}, "fine", 31.0), LOOK, Call("slow", {}, "fine", 2.0))])
    tools.write_text('view_sheet = {kind = "read", cost = 0.5}\nslow = {kind = "poll", timeout = 30}\nlost = "read"\n')
    table = deltah.read_calls(log, tools=tools)
    rows = table.sql("SELECT tool, status, waste, redundant, waste_level FROM calls").fetchall()
    # The slow call ran into its limit of 30 s: an error, and so its second call repeats no answer.
    assert [(r[0], r[1]) for r in rows] == [
        ("view_sheet", "ok"),
        ("slow", "error"),
        ("view_sheet", "ok"),
        ("slow", "ok"),
    ]
    assert rows[2][3:] == (True, "likely")
    assert "exact_duplicate" not in rows[3][2]
    assert table.costs.prices.per_call == {"view_sheet": 0.5}
    known = "SELECT tool, kind, kind_from, calls, repeats, repeated, changed FROM tools ORDER BY tool"
    assert table.sql(known).fetchall() == [("slow", "poll", "declared", 2, 0, 0, 0), ("view_sheet", "read", "declared", 2, 1, 1, 0)]  # fmt: skip  # noqa: E501


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('find = "reed"', "tool 'find' is of kind 'reed'; expected one of read, poll, write, unknown"),
        (
            'find = {kind = "read", price = 1}',
            "'find' has an unknown key 'price'; the keys are kind, cost, timeout",
        ),
        ("find = 3", "tool 'find' is 3; expected one of read, poll, write, unknown, or a table with a kind"),
        ('find = {kind = "read", cost = -1}', "tool 'find': cost is -1"),
        ('find = {kind = "read", timeout = "9"}', "tool 'find': timeout is '9'"),
        ("find: read", "no TOML"),
        (None, "cannot read it"),
    ],
)
def test_a_wrong_declaration_is_one_clear_error(text: str | None, said: str, tmp_path: Path) -> None:
    file, log = tmp_path / "tools.toml", tmp_path / "log.jsonl"
    deltah.write_traces(log, [written(LOOK)])
    if text is not None:
        file.write_text(text)
    with pytest.raises(ConfigError, match="--tools") as caught:
        deltah.read_calls(log, tools=file)
    assert said in str(caught.value)


def logged(n: int, *, changes: bool = False, echo: bool = False, questions: int = 99) -> list[Trajectory]:
    """Trajectories with the same 25 calls and a repeat of one; answers that `echo` say no more than the call."""
    rows = []
    for i in range(n):
        calls = []
        for k in range(25):
            answer = f"Stored item{k} well." if echo else f"item{k} lies on shelf {k * k + 7} beside {k}-{k + 1}."
            answer += " Now." if changes and (i, k) == (n - 1, 3) else ""
            calls.append(Call("probe_shelf", {"item": f"item{k}"}, answer))
        t = written(*calls, calls[0])
        fields = {name: getattr(t, name) for name in t.__dataclass_fields__}
        rows.append(Trajectory(**fields | {"id": f"t{i}", "question": f"What of shelf {i % questions}?"}))
    return rows


@pytest.mark.parametrize(
    ("n", "options", "kind", "level"),
    [
        (10, {}, "read", "likely"),  # 10 x 26 - 25 = 235 repeats of 25 calls for 10 questions
        (9, {}, "unknown", "hint"),  # too few questions
        (40, {"questions": 9}, "unknown", "hint"),
        (10, {"changes": True}, "unknown", "hint"),
        (10, {"echo": True}, "unknown", "hint"),  # it may as well store the item again
    ],
)
def test_a_tool_is_measured_repeatable_over_many_trajectories_only(
    n: int, options: dict[str, bool], kind: str, level: str
) -> None:
    table = deltah.CallTable.of(logged(n, **options))
    assert table.sql("SELECT kind FROM tools").fetchall() == [(kind,)]
    last = table.sql("SELECT DISTINCT waste_level FROM calls WHERE index = 26").fetchall()
    assert last == [(level,)]


def test_a_measured_change_outweighs_an_annotation_and_not_the_user(tmp_path: Path) -> None:
    definition = {"name": "probe_shelf", "annotations": {"readOnlyHint": True, "idempotentHint": True}}
    log = tmp_path / "log.jsonl"
    rows = []
    for answers in (("a", "a"), ("b",)):
        messages: list[dict[str, object]] = [{"role": "user", "content": "?"}]
        for i, answer in enumerate(answers):
            call = {"id": f"{i}", "type": "function", "function": {"name": "probe_shelf", "arguments": "{}"}}
            messages.append({"role": "assistant", "content": None, "tool_calls": [call]})
            messages.append({"role": "tool", "tool_call_id": f"{i}", "content": answer})
        rows.append({"messages": [*messages, {"role": "assistant", "content": "End."}], "tools": [definition]})
    levels_of = "SELECT waste_level FROM calls WHERE repeats IS NOT NULL"
    log.write_text(json.dumps(rows[0]) + "\n")
    assert deltah.read_calls(log).sql(levels_of).fetchall() == [("likely",)]
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = deltah.read_calls(log)
    assert table.sql("SELECT kind, kind_from, changed FROM tools").fetchall() == [("poll", "measured", 1)]
    assert table.sql(levels_of).fetchall() == [("hint",)]
    assert deltah.read_calls(log, tools={"probe_shelf": "read"}).sql(levels_of).fetchall() == [("likely",)]


@pytest.mark.parametrize(
    ("annotations", "level"),
    [
        ({"readOnlyHint": True, "idempotentHint": True}, "likely"),
        ({"readOnlyHint": True}, "hint"),  # it changes nothing, and may yet be a clock or a queue
        ({"readOnlyHint": False, "idempotentHint": True}, "hint"),
        ({"title": "Look"}, "hint"),
        ("odd", "hint"),
    ],
)
@pytest.mark.parametrize("nested", [False, True])
def test_annotations_of_the_logs_tool_definitions_count(
    annotations: object, level: str, nested: bool, tmp_path: Path
) -> None:
    tool: dict[str, object] = {"name": "look", "annotations": annotations}
    call = {"id": "a", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    turn = [
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "a", "content": "4 cups"},
    ]
    request = {"messages": [{"role": "user", "content": "?"}, *turn, *turn]}
    request["tools"] = [{"type": "function", "function": tool} if nested else tool, "odd", {"function": 3}]
    reply = {"choices": [{"message": {"role": "assistant", "content": "Four."}}]}
    (tmp_path / "log.jsonl").write_text(json.dumps({"request": request, "response": reply}) + "\n")
    table = deltah.read_calls(tmp_path / "log.jsonl")
    assert table.sql("SELECT waste_level FROM calls ORDER BY index").fetchall()[1] == (level,)


# Hints


def test_a_result_that_the_user_gave_already_is_in_context() -> None:
    read = Call("read_file", {"path": "notes"}, PAGE)
    assert hints(read, question=f"Notes:\n{PAGE}\n", hint=Waste.RESULT_IN_CONTEXT) == [True]
    assert hints(Say(PAGE), read, hint=Waste.RESULT_IN_CONTEXT) == [False]


def test_passages_from_several_results_in_another_order_are_in_context() -> None:
    steps = search("a", f"{FACT}\n{OTHER}"), search("b", f"{THIRD}\n{OTHER}"), search("c", f"{THIRD}\n{FACT}")
    assert hints(*steps, hint=Waste.RESULT_IN_CONTEXT) == [False, False, True]
    listed = search("d", f"[1] {OTHER}\n[2] {FACT}")
    assert hints(*steps, listed, hint=Waste.RESULT_IN_CONTEXT)[3]
    records = [json.dumps([{"text": text} for text in texts]) for texts in ((FACT, OTHER, THIRD), (OTHER, FACT))]
    assert hints(search("a", records[0]), search("b", records[1]), hint=Waste.RESULT_IN_CONTEXT)[1]


def test_short_answers_and_one_new_word_are_not_in_context() -> None:
    for first, second in ((FACT, FACT), ("ok", "ok"), (PAGE, PAGE.replace("step_7", "step_x"))):
        assert not hints(search("a", first), search("b", second), hint=Waste.RESULT_IN_CONTEXT)[1]
    plan = "plan: free\nseats: 9\n" + "\n".join(f"feature {i}: on" for i in range(20))
    other = plan.replace("free", "pro").replace("9", "5")
    calls = [Call("get_plan", {"user": u}, text) for u, text in (("a", plan), ("b", other))]
    assert not hints(*calls, hint=Waste.RESULT_IN_CONTEXT)[1]


def test_a_similar_query_is_a_near_duplicate_if_it_brought_nothing() -> None:
    both = f"{FACT}\n{OTHER}"
    first, second = search("Mira Kovel current home town", both), search("current Mira Kovel home town address", both)
    assert hints(first, second, hint=Waste.NEAR_DUPLICATE) == [False, True]
    assert levels(first, second, tools={"search": "read"})[1] == "hint"
    assert not hints(first, search("Tessen Paper staff", both), hint=Waste.NEAR_DUPLICATE)[1]
    assert not hints(first, search("census of 2020", both), search("census of 2010", both), hint=Waste.NEAR_DUPLICATE)[
        2
    ]


# Hostile records


def test_no_calls_no_facts() -> None:
    assert facts_of_calls(written()) == ()
    assert facts_of_calls(Trajectory(id="t", segments=())) == ()


@pytest.mark.parametrize(
    "arguments",
    [
        "",
        "null",
        "[1, 2]",
        '"text"',
        "{",
        "\ud800",
        '{"a": "\\ud800"}',
        "\x00",
        '{"n": ' + "9" * 5000 + "}",
        "[" * 5000,
    ],
)
def test_odd_arguments_are_compared_as_text(arguments: str) -> None:
    call = Call("x", arguments, "the same answer")
    assert repeats(call, call)[1] == EXACT


@pytest.mark.parametrize("depth", [50, 500, 900, 950, 990])
def test_deep_arguments_do_not_overflow(depth: int) -> None:
    call = Call("get", '{"a": ' + "[" * depth + "]" * depth + "}", "the same answer")
    assert repeats(call, call)[1] == EXACT


TEXT = st.text(max_size=40)
CALLS = st.lists(
    st.tuples(
        st.sampled_from(["search", "python", "read_file", "write_file", ""]),
        st.one_of(TEXT, st.dictionaries(st.sampled_from(["query", "code", "x"]), st.one_of(TEXT, st.integers()))),
        st.one_of(st.none(), TEXT, st.sampled_from([FACT, OTHER, "error: down", "pending", "ok", PAGE])),
    ),
    max_size=8,
)


@settings(max_examples=150, deadline=None)
@given(CALLS)
def test_any_record_gives_facts_of_each_call_that_only_the_past_and_retries_decide(
    raw: list[tuple[str, object, str]],
) -> None:
    steps = [Call(*call) for call in raw]
    whole, cut = (repeats(*part) for part in (steps, steps[:-1]))
    assert len(whole) == len(steps)
    assert not whole or not whole[0]
    for now, before in zip(whole, cut, strict=False):
        assert now <= before
    assert set(levels(*steps)) <= {"none", "hint"}


def test_large_texts_and_many_calls_take_linear_time() -> None:
    def seconds(n: int) -> float:
        steps = [search(f"query number {i} about {i * 7}", f"{FACT} {i}\n{OTHER} {i % 50}") for i in range(n)]
        trajectory, best = written(*steps), float("inf")
        for _ in range(3):
            start = time.process_time()
            facts_of_calls(trajectory)
            best = min(best, time.process_time() - start)
        return best

    small, large = seconds(125), seconds(1000)
    assert large < 30 * small
    big = "word " * 200_000
    assert repeats(Call("read_file", {"x": big}, big), Call("read_file", {"x": big}, big))[1] == EXACT


def test_a_python_call_of_the_lab_is_compared_like_any_other() -> None:
    assert levels(python("2 + 3", "5"), python("2 + 3", "5")) == ["none", "hint"]
