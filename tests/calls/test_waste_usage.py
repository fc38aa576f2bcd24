"""Results that were never used: what counts as a use, and where nothing is claimed."""

from __future__ import annotations

import re

import pytest
from call_builders import FACT, OTHER, THIRD, Call, Say, hints, python, search, written
from hypothesis import given
from hypothesis import strategies as st

from deltah import Segment, SegmentKind, ToolCall, Trajectory
from deltah.calls import waste
from deltah.calls.evidence import Waste
from deltah.calls.waste import facts_of_calls, split_words


def test_a_result_of_which_nothing_is_said_is_unused() -> None:
    assert hints(search("Mira", FACT), search("Ilse", OTHER), end="In Quillport.") == [True, False]


@pytest.mark.parametrize("end", ["In Larkholm.", "Larkholm's", "(larkholm)", "employer: Tessen", "Tessens Papier"])
def test_one_new_word_in_another_form_is_a_use(end: str) -> None:
    assert hints(search("Mira", FACT), end=end) == [False]


def test_use_in_a_later_call_or_in_the_graded_answer_counts() -> None:
    assert hints(search("Mira", FACT), search("Larkholm", THIRD), end="Done.")[0] is False
    t = written(search("Mira", FACT), end="Done.")
    fields = {name: getattr(t, name) for name in t.__dataclass_fields__}
    assert not facts_of_calls(Trajectory(**fields | {"prediction": "Larkholm"}))[0].waste


def test_a_confirmed_guess_is_a_use() -> None:
    assert hints(Say("I think she lives in Larkholm."), search("Mira", FACT), end="So it is Larkholm.") == [False]
    known = "Tessen Paper was founded in Larkholm by Mira."
    assert hints(search("a", FACT), search("b", f"{known} {OTHER}"), end="Tessen Paper it is.")[1] is False


def test_words_of_the_question_and_of_the_call_are_no_use() -> None:
    assert hints(search("Larkholm", FACT), end="Mira Kovel? I looked for Larkholm.") == [True]


def test_numbers_and_scripts_without_spaces() -> None:
    assert hints(python("1", "1234567 sheep of Velmora"), end="It is 1,234,567.") == [False]
    assert hints(python("1", "1234567 sheep of Velmora"), end="I do not know.") == [True]
    assert hints(search("a", "東京は日本の首都です"), end="答えは東京です。") == [False]


def test_unused_is_not_claimed_where_it_cannot_be_known() -> None:
    assert hints(search("Mira", FACT), end=None) == [False]
    assert hints(search("Mira", None), search("Mira", "error: down")) == [False, False]
    assert hints(Call("write_file", {"path": "a"}, "Wrote bytes."), python("7 * 8", "56")) == [False, False]
    assert hints(search("a", FACT), search("b", FACT), end="Nothing.") == [True, False]


def test_unused_is_not_claimed_where_later_text_is_unknown() -> None:
    segments = (
        Segment(kind=SegmentKind.REASONING, start=0, stop=5, turn=0),
        Segment(kind=SegmentKind.RESULT, start=5, stop=9, turn=0),
        Segment(kind=SegmentKind.REASONING, start=9, stop=12, turn=1),
    )
    call = ToolCall(id="a", name="search", arguments="{}", turn=0, result=FACT)
    assert not facts_of_calls(Trajectory(id="t", segments=segments, calls=(call,)))[0].waste
    texts = ("well", " let", " me", " see", " now", "<r>", ".", ".", "</r>", "I", " give", " up")
    known = Trajectory(id="t", segments=segments, calls=(call,), token_texts=texts)
    assert facts_of_calls(known)[0].waste == {Waste.RESULT_UNUSED}


@given(st.text(st.characters(max_codepoint=127)))
def test_ascii_texts_are_cut_as_a_pattern_would(text: str) -> None:
    assert split_words(text) == re.findall(r"[^\W_]+", text.casefold())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Running, runners RUN.", ["runnin", "runner", "run"]),
        ("1,234,567 and 1023.5 but 0.25 or .5", ["123456", "and", "1023", "but", "or"]),
        ("v2.10 of Straße_7", ["v2", "of", "strass", "7"]),
    ],
)
def test_words_are_short_and_lower_case_and_decimals_fall_away(text: str, words: list[str]) -> None:
    assert waste._words(text) == words
