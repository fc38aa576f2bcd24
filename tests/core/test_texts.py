"""Token texts: the behaviour of a tuple, made of one string."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from builders import make_trajectory
from hypothesis import given
from hypothesis import strategies as st

from deltah.core.align import TokenTexts
from deltah.errors import InvalidValueError

TEXTS = st.lists(st.text(max_size=4), max_size=8).map(tuple)
BOUND = st.none() | st.integers(-10, 10)


@given(TEXTS, BOUND, BOUND, st.sampled_from([None, 1, 2, -1, -3]))
def test_behaves_as_the_tuple_of_its_texts(texts: tuple[str, ...], start: int, stop: int, step: int | None) -> None:
    lazy = TokenTexts.of(texts)
    assert list(lazy) == list(texts)
    assert lazy == texts
    assert texts == lazy
    assert lazy[start:stop:step] == texts[start:stop:step]
    assert [lazy[t] for t in range(-len(texts), len(texts))] == list(texts + texts)
    assert lazy.join(start, stop) == "".join(texts[start:stop])
    assert pickle.loads(pickle.dumps(lazy)) == lazy
    assert eval(repr(lazy)) == lazy
    assert TokenTexts.of(lazy) is lazy


def test_offsets_count_characters() -> None:
    lazy = TokenTexts("naïve🙂!", [2, 6, 6, 7])
    assert tuple(lazy) == ("na", "ïve🙂", "", "!")
    assert (lazy.joined, lazy.ends.tolist(), len(lazy)) == ("naïve🙂!", [2, 6, 6, 7], 4)
    assert lazy.join(1, 3) == "ïve🙂"
    assert lazy.index("!") == 3


def test_differs_from_other_borders_other_texts_and_lists() -> None:
    lazy = TokenTexts.of(("ab", "c"))
    assert lazy != ("a", "bc")
    assert lazy != TokenTexts.of(("a", "bc"))
    assert lazy != ["ab", "c"]
    with pytest.raises(IndexError):
        lazy[2]


def test_offsets_are_a_copy_that_cannot_be_written() -> None:
    ends = np.array([1, 2])
    lazy = TokenTexts("ab", ends)
    ends[0] = 2
    assert lazy[0] == "a"
    with pytest.raises(ValueError, match="read-only"):
        lazy.ends[0] = 2


@pytest.mark.parametrize("ends", [[1], [1, 4], [3, 2, 3], [-1, 3], [[3]], []])
def test_offsets_must_fit_the_text(ends: list[int]) -> None:
    with pytest.raises(InvalidValueError, match="token ends"):
        TokenTexts("abc", ends)


@pytest.mark.parametrize("texts", [tuple("abcdefgh"), list("abcdefgh"), TokenTexts.of("abcdefgh")])
def test_trajectory_gives_the_text_of_a_span(texts: object) -> None:
    trajectory = make_trajectory([[1.0, 2.0, 3.0, 4.0]], token_texts=texts)
    assert trajectory.text(2, 5) == "cde"
    assert trajectory.text(4, 99) == "efgh"
    assert pickle.loads(pickle.dumps(trajectory)).text(0, 1) == "a"
    assert trajectory.token_texts == tuple("abcdefgh")


def test_text_needs_token_texts() -> None:
    with pytest.raises(InvalidValueError, match="'t' carries no token texts"):
        make_trajectory([[1.0]]).text(0, 1)
