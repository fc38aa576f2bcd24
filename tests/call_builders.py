"""Trajectories made of written turns, for tests that look at what was called and said."""

from __future__ import annotations

import json
from typing import NamedTuple

from deltah import Segment, SegmentKind, ToolCall, Trajectory
from deltah.calls.evidence import REPEATS, Waste
from deltah.calls.table import CallTable
from deltah.calls.waste import facts_of_calls
from deltah.core.types import CallStatus

QUESTION = "Where does Mira Kovel live?"
FACT = "Mira Kovel lives in Larkholm and works for Tessen Paper."
OTHER = "Ilse Varga lives in Quillport and works for Solvi Glass."
THIRD = "Orin Tade lives in Ostbridge and works for Arden Optics."


class Call(NamedTuple):
    """One call: tool, arguments (encoded unless they are text), result."""

    name: str
    arguments: object
    result: str | None
    duration_s: float | None = None


class Say(NamedTuple):
    """Reasoning that opens the next turn."""

    text: str


class User(NamedTuple):
    """A message of the user between turns."""

    text: str


Step = Call | Say | User | list[Call]


def search(query: str, result: str | None) -> Call:
    return Call("search", {"query": query}, result)


def python(code: str, result: str | None) -> Call:
    return Call("python", {"code": code}, result)


def written(*steps: Step, question: str | None = QUESTION, end: str | None = "That is all.") -> Trajectory:
    """One trajectory of text without tokens. A list of calls is one turn; `end` is the last message, None: cut off."""
    segments, calls, turn = [Segment(kind=SegmentKind.PROMPT, start=0, stop=0, turn=0, text="Answer.")], [], 0

    def add(kind: SegmentKind, text: str) -> None:
        segments.append(Segment(kind=kind, start=0, stop=0, turn=turn, text=text))

    for step in steps:
        if isinstance(step, Say):
            add(SegmentKind.REASONING, step.text)
            continue
        if isinstance(step, User):
            add(SegmentKind.PROMPT, step.text)
            continue
        group = step if isinstance(step, list) else [step]
        for call in group:
            arguments = call.arguments if isinstance(call.arguments, str) else json.dumps(call.arguments)
            add(SegmentKind.CALL, f"{call.name}({arguments})")
            calls.append(
                ToolCall(
                    id=f"c{len(calls)}",
                    name=call.name,
                    arguments=arguments,
                    turn=turn,
                    result=call.result,
                    status=CallStatus.of(call.result),
                    duration_s=call.duration_s,
                )
            )
        for call in group:
            if call.result is not None:
                add(SegmentKind.RESULT, call.result)
        turn += 1
    if end is not None:
        add(SegmentKind.REASONING, end)
    return Trajectory(id="t", segments=tuple(segments), calls=tuple(calls), question=question)


def repeats(*steps: Step, **options: str | None) -> list[set[str]]:
    """Classes of every call that say it repeats one."""
    found = facts_of_calls(written(*steps, **options))  # type: ignore[arg-type]
    return [{waste.value for waste in facts.waste.intersection(REPEATS)} for facts in found]


def hints(*steps: Step, hint: Waste = Waste.RESULT_UNUSED, **options: str | None) -> list[bool]:
    """Whether each call carries the hint."""
    return [hint in facts.waste for facts in facts_of_calls(written(*steps, **options))]  # type: ignore[arg-type]


def levels(*steps: Step, tools: dict[str, object] | None = None) -> list[str]:
    """Waste level of every call, without entropies."""
    table = CallTable.of([written(*steps)], tools=tools)
    return [level for (level,) in table.sql("SELECT waste_level FROM calls ORDER BY index").fetchall()]
