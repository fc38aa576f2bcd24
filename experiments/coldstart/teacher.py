"""The scripted teacher: a noisy agent that calls its tools more often than it needs to, as real agents do.

For each step of a question's plan it says aloud what it believes, then decides whether to look it up. A known value is
believed rightly most of the time; for an unknown one it says a uniformly random guess of the right kind. It verifies
what it knows, searches for the wrong thing, repeats a call whose answer it has just read, re-checks at the end,
sometimes answers from memory, and sometimes answers wrongly. Before *every* call it restates what it believes then.

That the belief is spoken is a choice of format, and it creates the signal that the lab studies: a guess is a
high-entropy piece of text, a copied result is not. The teacher itself never sees an entropy or any label of a call.
Tool results in its traces come from the real tools.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import numpy as np

from deltah.lab.questions import NUMBER_LIMIT, Compute, Lookup, Question, Step
from deltah.lab.world import PARTS, POPULATION_RANGE, SCHEMAS, Kind, Relation, pick

Message: TypeAlias = dict[str, Any]
Tools: TypeAlias = Mapping[str, Callable[[str], str]]

THINK: Final = "I think {claim}."
CHECK: Final = "Let me check."
CHECK_AGAIN: Final = "Let me check again."
FOUND: Final = "So {claim}."
NOT_FOUND: Final = "That is not it."
GUESS: Final = "I guess it is {value}."
COMPUTED: Final = "{words} is {value}"
PHRASES: Final = (THINK, CHECK, CHECK_AGAIN, FOUND, NOT_FOUND, GUESS, COMPUTED)
"""Everything the teacher says beside facts, names and numbers."""

STATEMENTS: Final[Mapping[Relation, str]] = {
    Relation.BIRTHPLACE: "{s} was born in {v}",
    Relation.EMPLOYER: "{s} works for {v}",
    Relation.SEAT: "{s} is based in {v}",
    Relation.COUNTRY: "{s} is in {v}",
    Relation.POPULATION: "{s} has {v} thousand people",
    Relation.COIN: "{s} uses the {v}",
}
"""A fact as a sentence without its full stop; `{s}` is the subject, `{v}` the value."""

QUERY_WORD: Final[Mapping[Kind, str]] = {
    Kind.PERSON: "",
    Kind.CITY: " city",
    Kind.COMPANY: " company",
    Kind.COUNTRY: " country",
}
"""What a query adds to a name, so that the document about it comes before those that mention it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherConfig:
    """Habits of the teacher, as probabilities. They set how often the agent calls after the cold start."""

    verify_known: float = 0.9
    """Looks up a value it knows."""
    wrong_belief: float = 0.08
    """Believes something false about a value it knows."""
    trust_guess: float = 0.08
    """Answers an unknown value from memory, with a guess."""
    wrong_query: float = 0.22
    """Searches too broadly or for another entity before it searches rightly."""
    repeat: float = 0.46
    """Repeats the call it has just made, again and again with this probability (geometric)."""
    recheck: float = 0.6
    """Makes its last call once more before it answers."""
    parallel: float = 0.3
    """Looks up both cities of a combined population in one turn."""
    wrong_answer: float = 0.04
    """Answers something other than what it found."""
    max_calls: int = 5
    """No call that the plan does not need is made after this many."""


def search_query(step: Lookup) -> str:
    """The query that finds the document of a lookup."""
    return step.subject + QUERY_WORD[SCHEMAS[step.relation].subject]


def claim(step: Step, value: str) -> str:
    """What a step asserts, as a sentence without its full stop."""
    if isinstance(step, Compute):
        return COMPUTED.format(words=step.words, value=value)
    return STATEMENTS[step.relation].format(s=step.subject, v=value)


def random_name(kind: Kind, rng: np.random.Generator) -> str:
    """A uniformly random name of a kind, whether or not it exists in some world: what a guess sounds like."""
    first, second = PARTS[kind]
    return f"{pick(first, rng)} {pick(second, rng)}"


def guess(step: Step, rng: np.random.Generator) -> str:
    """A uniformly random value of the kind that a step gives."""
    if isinstance(step, Compute):
        return str(rng.integers(1, NUMBER_LIMIT))
    kind = SCHEMAS[step.relation].value
    return str(rng.integers(*POPULATION_RANGE)) if kind is Kind.NUMBER else random_name(kind, rng)


def _call(name: str, argument: str) -> Message:
    key = {"search": "query", "python": "code"}[name]
    return {"type": "function", "function": {"name": name, "arguments": {key: f" {argument}"}}}


@dataclass(slots=True)
class _Script:
    """The conversation so far, and what the teacher will say before its next call."""

    tools: Tools
    messages: list[Message]
    said: list[str] = field(default_factory=list)
    n_calls: int = 0

    def say(self, sentence: str) -> None:
        self.said.append(sentence)

    def call(self, *calls: tuple[str, str]) -> list[str]:
        """Issue the calls of one turn and run the tools."""
        tool_calls = [_call(name, argument) for name, argument in calls]
        self.messages.append({"role": "assistant", "content": " ".join(self.said), "tool_calls": tool_calls})
        results = [self.tools[name](f" {argument}") for name, argument in calls]
        for (name, _), result in zip(calls, results, strict=True):
            self.messages.append({"role": "tool", "name": name, "content": result})
        self.said, self.n_calls = [], self.n_calls + len(calls)
        return results

    def answer(self, value: str) -> list[Message]:
        text = " ".join(self.said)
        self.messages.append({"role": "assistant", "content": f"{text}<answer> {value}</answer>"})
        return self.messages


@dataclass(frozen=True, slots=True)
class _Teacher:
    question: Question
    config: TeacherConfig
    rng: np.random.Generator
    script: _Script

    def happens(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def belief(self, step: Step) -> str:
        """What the teacher believes before it has looked."""
        if step.known and not self.happens(self.config.wrong_belief):
            return step.value
        return guess(step, self.rng)

    def right_call(self, step: Step) -> tuple[str, str]:
        return ("python", step.code) if isinstance(step, Compute) else ("search", search_query(step))

    def wrong_query(self, step: Lookup) -> str:
        """A query for half of the name, or for an entity that shares half of it."""
        kind = SCHEMAS[step.relation].subject
        first, second = step.subject.split(" ", 1)
        other_first, other_second = random_name(kind, self.rng).split(" ", 1)
        return pick((first, second, f"{first} {other_second}", f"{other_first} {second}"), self.rng)

    def look_up(self, step: Step, value: str) -> None:
        """Say the belief, call the right tool, repeat the call while the habit lasts."""
        found = False
        if isinstance(step, Lookup) and self.happens(self.config.wrong_query) and self.may_call:
            self.script.say(f"{THINK.format(claim=claim(step, value))} {CHECK}")
            (result,) = self.script.call(("search", self.wrong_query(step)))
            found = any(line.startswith(step.subject) for line in result.splitlines())
            if not found:
                self.script.say(NOT_FOUND)
                value = self.belief(step)
        if not found:
            self.script.say(f"{THINK.format(claim=claim(step, value))} {CHECK}")
            self.script.call(self.right_call(step))
        while self.happens(self.config.repeat) and self.may_call:
            self.again(step)
        self.script.say(FOUND.format(claim=claim(step, step.value)))

    @property
    def may_call(self) -> bool:
        """Whether a call that the plan does not need is still within the limit."""
        return self.script.n_calls < self.config.max_calls

    def again(self, step: Step) -> None:
        """Make a call once more."""
        self.script.say(f"{FOUND.format(claim=claim(step, step.value))} {CHECK_AGAIN}")
        self.script.call(self.right_call(step))

    def look_up_together(self, steps: tuple[Step, ...]) -> None:
        """Look up several values in one turn."""
        for step in steps:
            self.script.say(THINK.format(claim=claim(step, self.belief(step))))
        self.script.say(CHECK)
        self.script.call(*(self.right_call(step) for step in steps))
        for step in steps:
            self.script.say(FOUND.format(claim=claim(step, step.value)))

    def take(self, step: Step) -> str | None:
        """Settle one step; None if the teacher gives up looking and guesses the answer."""
        value = self.belief(step)
        if step.known and not self.happens(self.config.verify_known):
            self.script.say(THINK.format(claim=claim(step, value)))
            return value
        if not step.known and self.happens(self.config.trust_guess):
            return None
        self.look_up(step, value)
        return step.value

    def guess_answer(self) -> list[Message]:
        value = guess(self.question.plan[-1], self.rng)
        self.script.say(GUESS.format(value=value))
        return self.script.answer(value)

    def solve(self) -> list[Message]:
        plan = self.question.plan
        if isinstance(plan[-1], Compute) and len(plan) > 1 and self.happens(self.config.parallel):
            self.look_up_together(plan[:-1])
            plan = plan[-1:]
        for step in plan:
            value = self.take(step)
            if value is None:
                return self.guess_answer()
            if value != step.value:  # A false belief that was not verified: the chain ends where it leads.
                return self.script.answer(value) if step is plan[-1] else self.guess_answer()
        step = plan[-1]
        if self.script.n_calls and self.may_call and self.happens(self.config.recheck):
            self.again_last(step)
        wrong = self.happens(self.config.wrong_answer)
        return self.script.answer(guess(step, self.rng) if wrong else step.value)

    def again_last(self, step: Step) -> None:
        """Re-check the last step, in place of the sentence that was to end the conversation."""
        self.script.said.pop()
        self.again(step)
        self.script.say(FOUND.format(claim=claim(step, step.value)))


def rollout(question: Question, tools: Tools, config: TeacherConfig, rng: np.random.Generator) -> list[Message]:
    """Answer one question as the teacher does.

    Args:
        question: A task with its plan.
        tools: `search` and `python` by name, as the agent will have them.
        config: The teacher's habits.
        rng: Source of every choice.

    Returns:
        The conversation: user, then assistant (with `tool_calls`) and tool messages, then the answer.
    """
    script = _Script(tools=tools, messages=[{"role": "user", "content": question.task.question}])
    return _Teacher(question, config, rng, script).solve()


def count_calls(messages: list[Message]) -> int:
    """Tool calls of a conversation."""
    return sum(len(message.get("tool_calls") or ()) for message in messages)
