"""What a probe says of groups of calls on the embedded agent, and claims about it; a part of pilot_lab.py.

A call is *needed* if it is the first to return a value of the question's plan that the agent has not learned by heart;
*answering* if that value is the answer; a *repeat* if the same call was made before. Means and their differences have
95 % intervals, bootstrap over questions.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from coldstart.evaluate import first_returns

from deltah import Trajectory
from deltah.lab.questions import Question
from deltah.stats.bootstrap import interval, ratio, ratio_replicates

FORMS = {"sentence": ("--answer-template", "sentence"), "answer alone": ()}
"""How the gold answer is elicited: after the agent's own sentence, or in the default form."""
GROUPS = ("needed", "needed, answering", "needed, before the answer", "first, not needed", "repeat")
COLUMNS = ("gain_placebo", "gain_none", "useful", "beats_placebo", "beats_none", "delta_h_placebo", "delta_h_none")
Rows = list[dict[str, Any]]
Forms = dict[str, Rows]
"""Rows of the calls of one seed that were probed in each form, each with the key `groups`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A statement about the mean of a probe's column in two sets of calls, first less second."""

    text: str
    column: str
    first: tuple[str, str]
    """Form and group."""
    second: tuple[str, str]
    sign: int
    """Of the difference that the text claims; 0: no difference."""


CLAIMS = (
    Claim(
        text="Needed calls are useful more often than first calls that were not needed",
        column="useful",
        first=("sentence", "needed"),
        second=("sentence", "first, not needed"),
        sign=1,
    ),
    Claim(
        text="Needed calls are useful more often than repeats",
        column="useful",
        first=("sentence", "needed"),
        second=("sentence", "repeat"),
        sign=1,
    ),
    Claim(
        text="Only the call that brings the answer is credited: needed calls before it are useful less often",
        column="useful",
        first=("sentence", "needed, answering"),
        second=("sentence", "needed, before the answer"),
        sign=1,
    ),
    Claim(
        text="A placebo is not neutral: repeats beat theirs as often as needed calls do",
        column="beats_placebo",
        first=("sentence", "needed"),
        second=("sentence", "repeat"),
        sign=0,
    ),
    Claim(
        text="The form matters: without its sentence the same answering calls are useful less often",
        column="useful",
        first=("answer alone", "needed, answering"),
        second=("sentence", "needed, answering"),
        sign=-1,
    ),
    Claim(
        text="Placebo-controlled ΔH is the same for needed calls and repeats",
        column="delta_h_placebo",
        first=("sentence", "needed"),
        second=("sentence", "repeat"),
        sign=0,
    ),
)


def groups_of(trajectory: Trajectory, question: Question) -> dict[str, set[str]]:
    """Groups of every answered call, by its id."""
    found = first_returns(question.plan, [call.result for call in trajectory.calls])
    seen, groups = set[tuple[str, str]](), dict[str, set[str]]()
    for call, steps in zip(trajectory.calls, found, strict=True):
        repeat = (call.name, call.arguments) in seen
        seen.add((call.name, call.arguments))
        if call.result is None:
            continue
        if steps:
            answering = question.plan[-1] in steps
            groups[call.id] = {"needed", "needed, answering" if answering else "needed, before the answer"}
        else:
            groups[call.id] = {"repeat" if repeat else "first, not needed"}
    return groups


def probed_rows(path: Path, groups: dict[tuple[str, str], set[str]]) -> Rows:
    with path.open(encoding="utf-8") as file:
        rows = [row for row in map(json.loads, file) if row["reason"] is None]
    return [{**row, "groups": groups[row["trajectory"], row["call"]]} for row in rows]


def group_rows(scope: str, parts: Sequence[Forms]) -> Rows:
    """Means of a probe's columns by group of calls."""
    found = []
    for form in FORMS:
        for group in GROUPS:
            chosen = members(parts, form, group)
            means = {column: mean(chosen, column) for column in COLUMNS}
            found.append({"scope": scope, "form": form, "group": group, "n": len(chosen), **means})
    return found


def members(parts: Sequence[Forms], form: str, group: str) -> Rows:
    return [row for part in parts for row in part[form] if group in row["groups"]]


def mean(rows: Rows, column: str) -> list[float]:
    """Mean with its 95 % interval, clustered by question."""
    sums = by_question([rows], column)
    low, high = interval(ratio_replicates(sums[:, 0], sums[:, 1])[:, 0], len(sums))
    return [round(x, 4) for x in (float(ratio(*sums.sum(axis=0)[:, 0])), low, high)]


def mean_difference(first: Rows, second: Rows, column: str) -> list[float]:
    """Difference of two means with its interval; questions are drawn once for both."""
    sums = by_question([first, second], column)
    draws = ratio_replicates(sums[:, 0], sums[:, 1])
    value = ratio(*sums.sum(axis=0))
    low, high = interval(draws[:, 0] - draws[:, 1], len(sums))
    return [round(x, 4) for x in (float(value[0] - value[1]), low, high)]


def by_question(sets: Iterable[Rows], column: str) -> np.ndarray:
    """(Q, 2, S) sums and counts of each question in S sets of rows."""
    listed = list(sets)
    sums: dict[str, np.ndarray] = {}
    for s, rows in enumerate(listed):
        for row in rows:
            if row[column] is not None:
                sums.setdefault(row["question"], np.zeros((2, len(listed))))[:, s] += float(row[column]), 1.0
    return np.array(list(sums.values())).reshape(-1, 2, len(listed))


def claim_row(claim: Claim, scopes: dict[str, Sequence[Forms]]) -> dict[str, Any]:
    """The claim's difference in each set of seeds."""
    found = {
        scope: mean_difference(members(parts, *claim.first), members(parts, *claim.second), claim.column)
        for scope, parts in scopes.items()
    }
    return {"text": claim.text, "column": claim.column, "sign": claim.sign, "differences": found}
