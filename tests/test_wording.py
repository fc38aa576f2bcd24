"""Counts in sentences."""

from __future__ import annotations

import pytest

from deltah.text_format import agreeing, count, share


@pytest.mark.parametrize(
    ("n", "noun", "text"),
    [
        (0, "file", "0 files"),
        (1, "file", "1 file"),
        (1, "trajectory", "1 trajectory"),
        (1_394, "trajectory", "1,394 trajectories"),
        (2, "query", "2 queries"),
        (2, "key", "2 keys"),
    ],
)
def test_a_noun_goes_with_its_number(n: int, noun: str, text: str) -> None:
    assert count(n, noun) == text


def test_other_plurals_verbs_and_parts() -> None:
    assert count(2, "retry or fork", "retries or forks") == "2 retries or forks"
    assert (agreeing(1, "is", "are"), agreeing(0, "is", "are")) == ("is", "are")
    assert share(1, 88, "call") == "1 of 88 calls"
    assert share(1, 1, "call") == "1 of 1 call"
