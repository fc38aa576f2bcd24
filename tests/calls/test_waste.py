"""Every class of waste, every exemption, and hostile records."""

from __future__ import annotations

import json
import time

import pytest
from call_builders import FACT, OTHER, QUESTION, THIRD, Call, Say, User, classes, python, search, written
from hypothesis import given, settings
from hypothesis import strategies as st

from deltah import Trajectory
from deltah.calls.waste import Waste, WasteLevel, waste_level, waste_of_calls
from deltah.core.signals import Verdict

PAGE = "\n".join(f"{i}  def step_{i}(state): return advance(state, by={i})" for i in range(12))
EXACT, NEAR, CONTEXT, ERROR = ({w.value} for w in list(Waste)[:4])


# Exact duplicates


def test_a_repeated_call_with_the_same_answer_is_a_duplicate_and_its_result_in_context() -> None:
    assert classes(search("Mira Kovel", FACT), search("Mira Kovel", FACT)) == [set(), EXACT | CONTEXT]


def test_a_short_answer_makes_a_duplicate_but_is_never_in_context() -> None:
    assert classes(python("2 + 3", "5"), python("2 + 3", "5")) == [set(), EXACT]
    assert classes(python("2 + 3", "5"), python("1 + 4", "5")) == [set(), set()]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ('{"query": "a b", "k": 2}', '{"k":2,\n "query":"a b"}'),
        ('{"query": "caf\\u00e9"}', '{"query": "café"}'),
        ("free text, no JSON", "  free text, no JSON\n"),
        ('{"query": broken', '{"query": broken'),
    ],
)
def test_key_order_and_white_space_outside_strings_do_not_matter(first: str, second: str) -> None:
    assert classes(Call("find", first, FACT), Call("find", second, FACT))[1] >= EXACT


@pytest.mark.parametrize(("first", "second"), [({"id": 17}, {"id": 18}), ({"all": True}, {"all": 1})])
def test_other_values_make_another_call(first: object, second: object) -> None:
    assert classes(Call("get_user", first, "Bob"), Call("get_user", second, "Bob")) == [set(), set()]


def test_another_tool_makes_another_call() -> None:
    assert classes(Call("get_user", {"id": 1}, "Bob"), Call("get_owner", {"id": 1}, "Bob"))[1] == set()


def test_equal_calls_of_one_turn_are_duplicates_but_their_result_was_not_in_context() -> None:
    assert classes([search("Mira", FACT), search("Mira", FACT)]) == [set(), EXACT]


def test_a_repeated_search_that_finds_nothing_again_is_a_duplicate() -> None:
    assert classes(search("x", "No results."), search("x", "No results.")) == [set(), EXACT]
    assert classes(search("x", "[]"), search("x", "[]")) == [set(), EXACT]


# Exemptions from duplicates


def test_an_unanswered_call_proves_nothing() -> None:
    assert classes(search("Mira", None), search("Mira", FACT), search("Mira", None)) == [set()] * 3


def test_a_source_that_changes_has_no_duplicates() -> None:
    assert classes(*(Call("get_price", {"t": "X"}, p) for p in ("10", "10", "11", "11"))) == [set()] * 4


@pytest.mark.parametrize(
    "state",
    [
        "pending",
        "Job 17 is still running",
        '{"status": "running", "job": 17}',
        "40% complete",
        "Not ready, try again later",
    ],
)
def test_polling_is_no_duplicate(state: str) -> None:
    poll = Call("get_job", {"id": 17}, state)
    assert classes(poll, poll, Call("get_job", {"id": 17}, "finished: 3 files")) == [set()] * 3
    assert classes(poll, poll, poll) == [set()] * 3


def test_a_film_that_is_called_running_is_no_poll() -> None:
    film = "The Running Man is a film of 1987, directed by Paul Michael Glaser."
    assert classes(search("running man", film), search("running man", film))[1] == EXACT | CONTEXT


def test_time_that_passes_between_two_looks_makes_the_second_one_new() -> None:
    look = Call("get_job", {"id": 17}, "state: idle")
    assert classes(look, Call("wait", {"seconds": 5}, "waited"), look)[2] == set()
    assert classes(look, Call("bash", {"command": "sleep 5"}, ""), look)[2] == set()


def test_an_acknowledgement_proves_nothing_unless_the_tool_only_looks() -> None:
    assert classes(Call("notify", {"x": 1}, "OK"), Call("notify", {"x": 1}, "OK"))[1] == set()
    assert classes(python("x = 5", ""), python("x = 5", ""))[1] == set()
    assert classes(Call("check_door", {}, "ok"), Call("check_door", {}, "ok"))[1] == EXACT


@pytest.mark.parametrize(
    "call",
    [
        Call("press_key", {"key": "Down"}, "moved to the next row"),
        Call("browser", {"action": "scroll", "by": 300}, "scrolled by 300"),
        Call("send_email", {"to": "a@b.c"}, "message queued for a@b.c"),
        Call("next_page", {}, "page shown"),
        Call("roll_dice", {"sides": 6}, "4"),
        Call("bash", {"command": "echo x >> log.txt; wc -l log.txt"}, "1 log.txt"),
        Call("bash", {"command": "submit flag{x}"}, "Wrong flag!"),
        Call("bash", {"command": "FOO=1 ./deploy | tail -1"}, "deployed to the test server"),
        Call("execute_sql", {"sql": "UPDATE t SET a = a + 1; SELECT a FROM t"}, "7"),
        python("import random; print(random.random())", "0.5"),
        python("open('a', 'w').write('x')", "1"),
    ],
)
def test_calls_that_act_are_no_duplicates(call: Call) -> None:
    assert classes(call, call) == [set(), set()]


def test_a_look_after_a_change_is_new_whatever_it_shows() -> None:
    read, edit = Call("read_file", {"path": "a.py"}, PAGE), Call("edit_file", {"path": "a.py", "new": "x"}, "Edited.")
    assert classes(read, edit, read) == [set(), set(), set()]
    changed = Call("read_file", {"path": "a.py"}, PAGE.replace("step_3", "turn_3"))
    assert classes(read, edit, changed) == [set(), set(), set()]
    assert classes(read, edit, changed, changed)[3] == EXACT | CONTEXT


def test_a_test_run_after_a_fix_is_new_even_if_it_fails_alike() -> None:
    run = Call("bash", {"command": "pytest -q"}, "1 failed: test_step_3")
    fix = Call("bash", {"command": "sed -i s/3/4/ a.py"}, "")
    assert classes(run, fix, run)[2] == set()
    assert classes(run, Call("bash", {"command": "ls"}, "a.py"), run)[2] == EXACT


def test_a_change_that_was_refused_changes_nothing() -> None:
    read = Call("read_file", {"path": "a.py"}, PAGE)
    refused = Call("edit_file", {"path": "a.py", "old": "zzz"}, "Error: text not found")
    assert classes(read, refused, read)[2] == EXACT | CONTEXT


def test_a_look_that_the_user_may_have_asked_for_is_new() -> None:
    look = Call("get_order", {"id": 7}, "order 7: not paid")
    assert classes(look, User("I have paid now, please look again."), look)[1] == set()


def test_template_tokens_between_turns_are_no_user_message() -> None:
    look = Call("get_order", {"id": 7}, "order 7: not paid")
    assert classes(look, User("<|im_end|>\n<|im_start|>assistant\n"), look)[1] == EXACT


def test_pictures_cannot_be_compared() -> None:
    shot = Call("take_screenshot", {}, "[image_url]")
    assert classes(shot, shot)[1] == set()


@pytest.mark.parametrize(
    "command",
    [
        "ls -la src | grep -v test",
        "cat a.py 2>/dev/null; sed -n 3,9p a.py",
        "git log --oneline | head -3",
        "python reproduce.py",
        "TZ=UTC pytest -q 2>&1 | tail -3",
        "SELECT a FROM t WHERE b > 3",
        "curl -s http://localhost:8000/state",
    ],
)
def test_commands_that_only_look_or_compute_are_duplicates(command: str) -> None:
    call = Call("bash", {"command": command}, "3 lines of output")
    assert classes(call, call)[1] == EXACT


# Result in context


def test_a_result_that_the_user_gave_already_is_in_context() -> None:
    prompt = f"{QUESTION}\nNotes:\n{PAGE}\n"
    assert classes(Call("read_file", {"path": "notes"}, PAGE), question=prompt) == [CONTEXT]


def test_documents_in_another_order_from_several_results_are_in_context() -> None:
    steps = search("a", f"{FACT}\n{OTHER}"), search("b", THIRD), search("c", f"{THIRD}\n{FACT}")
    assert classes(*steps) == [set(), set(), CONTEXT]
    listed = search("d", f"[1] {OTHER}\n[2] {FACT}")
    assert classes(*steps, listed)[3] == CONTEXT


def test_json_documents_are_compared_one_by_one_without_their_scores() -> None:
    def hits(*texts: str) -> str:
        return json.dumps([{"text": text, "score": 0.1 * len(text)} for text in texts])

    assert classes(search("a", hits(FACT, OTHER)), search("b", hits(OTHER)))[1] == CONTEXT
    assert classes(search("a", hits(FACT, OTHER)), search("b", hits(THIRD)))[1] == set()


def test_one_new_word_is_enough_to_be_new() -> None:
    assert classes(search("a", FACT), search("b", FACT.replace("Larkholm", "Velmora")))[1] == set()
    status = Call("get_config", {"of": "b"}, PAGE.replace("by=7", "by=8"))
    assert classes(Call("get_config", {"of": "a"}, PAGE), status)[1] == set()


def test_a_number_that_is_cut_short_is_new() -> None:
    assert classes(search("a", "The town of Larkholm has a population of 12345"), search("b", "The town of Larkholm has a population of 123"))[1] == set()  # fmt: skip  # noqa: E501


def test_facts_stitched_from_several_records_are_new_to_a_keyed_look_up() -> None:
    def record(plan: str, seats: int) -> str:
        return f"plan: {plan}\nseats: {seats}\n" + "\n".join(f"feature {i}: enabled for all members" for i in range(6))

    calls = [Call("get_plan", {"user": u}, record(p, n)) for u, p, n in (("a", "pro", 5), ("b", "free", 9), ("c", "pro", 9))]  # fmt: skip  # noqa: E501
    assert classes(*calls)[2] == set()


def test_a_shorter_piece_of_a_file_is_in_context() -> None:
    part = "\n".join(PAGE.split("\n")[3:9])
    assert (
        classes(Call("read_file", {"p": "a"}, PAGE), Call("read_file", {"p": "a", "lines": "3-9"}, part))[1] == CONTEXT
    )


@pytest.mark.parametrize(
    "result",
    ["ok", "42", "True", "No results found for your query. Please try again with other words."],
)
def test_short_and_empty_answers_are_never_in_context(result: str) -> None:
    assert classes(search("a", result), search("b", result))[1] == set()


def test_the_same_traceback_of_other_code_is_not_in_context() -> None:
    text = "Traceback (most recent call last):\n" + "\n".join(f"  line {i} of the program" for i in range(12))
    assert classes(python("import a", text), python("import b", text))[1] == set()


def test_what_the_policy_said_itself_is_no_context() -> None:
    assert classes(Say(FACT), search("Mira", FACT)) == [set()]


# Errors


def test_the_same_call_that_fails_alike_is_a_repeated_error() -> None:
    call = Call("get_user", {"id": 1}, "error: no user 1 (request 8f3a99c1d2)")
    again = Call("get_user", {"id": 1}, "Error: no user 1 (request 77aa01c1d2)")
    assert classes(call, again, again) == [set(), ERROR, ERROR]


def test_other_arguments_or_another_error_are_no_repeated_error() -> None:
    call = Call("get_user", {"id": 1}, "error: no such user")
    assert classes(call, Call("get_user", {"id": 2}, "error: no such user"))[1] == set()
    assert classes(call, Call("get_user", {"id": 1}, "error: server is down"))[1] == set()


def test_a_retry_that_succeeds_is_no_waste() -> None:
    slow = Call("get_user", {"id": 1}, "error: timed out after 30 s")
    assert classes(slow, Call("get_user", {"id": 1}, "Bob")) == [set(), set()]
    assert classes(slow, slow, Call("get_user", {"id": 1}, "Bob")) == [set()] * 3
    assert classes(slow, Call("get_user", {"id": 1}, "Bob"), slow)[2] == ERROR


def test_a_refused_change_that_is_tried_again_is_a_repeated_error() -> None:
    book = Call("book_flight", {"n": 1}, "Error: payment does not add up")
    assert classes(book, Call("think", {"thought": "hm"}, ""), book)[2] == ERROR
    assert classes(book, Call("update_card", {"n": 2}, "Card 2 is set."), book)[2] == set()


# Verdicts


@pytest.mark.parametrize("label", [*Verdict, None])
@pytest.mark.parametrize("waste", [set(), {Waste.RESULT_UNUSED}, {Waste.EXACT_DUPLICATE}, set(Waste)])
def test_verdicts(waste: set[Waste], label: Verdict | None) -> None:
    if label is Verdict.REDUCED or not waste:
        expected = WasteLevel.NONE
    elif waste == {Waste.RESULT_UNUSED}:
        expected = WasteLevel.HINT
    else:
        expected = WasteLevel.CERTIFIED if label is Verdict.NOT_REDUCED else WasteLevel.LIKELY
    assert waste_level(frozenset(waste), label) is expected


# Hostile records


def test_no_calls_no_waste() -> None:
    assert waste_of_calls(written()) == ()
    assert waste_of_calls(Trajectory(id="t", segments=())) == ()


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
    for name in ("search", "python", "", "x"):
        call = Call(name, arguments, "the same answer")
        assert classes(call, call)[1] >= EXACT


@pytest.mark.parametrize("depth", [50, 500, 900, 950, 990])
def test_deep_arguments_do_not_overflow(depth: int) -> None:
    call = Call("get", '{"a": ' + "[" * depth + "]" * depth + "}", "the same answer")
    assert classes(call, call)[1] == EXACT


TEXT = st.text(max_size=40)
CALLS = st.lists(
    st.tuples(
        st.sampled_from(["search", "python", "read_file", "write_file", "bash", "get_x", ""]),
        st.one_of(
            TEXT, st.dictionaries(st.sampled_from(["query", "code", "page", "x"]), st.one_of(TEXT, st.integers()))
        ),
        st.one_of(st.none(), TEXT, st.sampled_from([FACT, OTHER, "error: down", "pending", "ok", PAGE])),
    ),
    max_size=8,
)


@settings(max_examples=150, deadline=None)
@given(CALLS)
def test_any_record_gives_one_set_a_call_and_the_first_call_repeats_nothing(raw: list[tuple[str, object, str]]) -> None:
    steps = [Call(*call) for call in raw]
    found = waste_of_calls(written(*steps))
    assert len(found) == len(steps)
    repeats = {Waste.EXACT_DUPLICATE, Waste.NEAR_DUPLICATE, Waste.REPEATED_ERROR}
    assert not found or not found[0] & repeats
    for waste, call in zip(found, steps, strict=True):
        assert call.result is not None or not waste
        assert not waste & repeats or Waste.REPEATED_ERROR in waste or call.name != "write_file"


@settings(max_examples=100, deadline=None)
@given(CALLS)
def test_waste_depends_on_the_past_only_but_for_retries_and_changing_sources(
    raw: list[tuple[str, object, str]],
) -> None:
    """Cutting a trajectory can only add repeats: what came later may have excused them, never accused."""
    steps = [Call(*call) for call in raw]
    whole, cut = (classes(*part) for part in (steps, steps[:-1]))
    for now, before in zip(whole, cut, strict=False):
        assert now <= before


def test_large_texts_and_many_calls_take_linear_time() -> None:
    def seconds(n: int) -> float:
        steps = [search(f"query number {i} about {i * 7}", f"{FACT} {i}\n{OTHER} {i % 50}") for i in range(n)]
        trajectory, best = written(*steps), float("inf")
        for _ in range(3):
            start = time.process_time()
            waste_of_calls(trajectory)
            best = min(best, time.process_time() - start)
        return best

    small, large = seconds(125), seconds(1000)
    assert large < 30 * small
    big = "word " * 200_000
    assert classes(Call("read_file", {"x": big}, big), Call("read_file", {"x": big}, big))[1] == EXACT | CONTEXT
