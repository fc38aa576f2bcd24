"""Logs whose clients rewrote the history come out as the logs of clients that did not.

Every case makes conversations, logs them as API calls, rewrites the histories as clients do, adds ids and interleaves
the calls. What cannot be told apart in principle is not asked for: conversations that say the same word for word are
interchangeable, and rollouts of one question keep in each turn something that only they say.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deltah.core.types import Trajectory
from deltah.traces.conversation import to_trajectory
from deltah.traces.joining import Joiner

from .chat import assistant, call, decode, import_as, line, result, token, user

Message = dict[str, Any]
HABITS = (
    "drop text", "null text", "strip", "cut", "drop thinking", "reprint arguments", "repair arguments", "add calls",
    "move calls", "remove calls", "drop instructions", "change instructions", "results as user",
    "split turns", "merge turns",
)  # fmt: skip
FORGETTING = ("cut off", "summarise")
"""Habits that remove turns; tried alone, as with others too little may be left."""
SESSIONS = ("none", "conversation", "request", "all")
FIELDS = ("session_id", "trace_id", "metadata", "user")
IDS = ("none", "unique", "count in turn", "count in conversation")
WORDS = ("harbour", "ferry", "né", "größer", "北港", "🚢", "tide", "mole", "quay", "pier")


def spelled(dialect: str, calls: list[tuple[str, dict[str, str]]]) -> str:
    """Calls as a model writes them, where the server has no parser."""
    named = [(name, json.dumps(arguments)) for name, arguments in calls]
    if dialect == "hermes":
        return "".join(
            f'\n<tool_call>\n{{"name": "{name}", "arguments": {text}}}\n</tool_call>' for name, text in named
        )
    if dialect == "qwen3-coder":
        pairs = [
            (name, "".join(f"<parameter={k}>\n{v}\n</parameter>\n" for k, v in arguments.items()))
            for name, arguments in calls
        ]
        return "".join(f"\n<tool_call>\n<function={n}>\n{p}</function>\n</tool_call>" for n, p in pairs)
    if dialect == "mistral":
        return "[TOOL_CALLS]" + json.dumps([{"name": name, "arguments": arguments} for name, arguments in calls])
    if dialect == "kimi":
        inner = "".join(
            f"<|tool_call_begin|>functions.{name}:{i}<|tool_call_argument_begin|>{text}<|tool_call_end|>"
            for i, (name, text) in enumerate(named)
        )
        return f"<|tool_calls_section_begin|>{inner}<|tool_calls_section_end|>"
    if dialect == "deepseek":
        inner = "".join(f"<｜tool▁call▁begin｜>{name}<｜tool▁sep｜>{text}<｜tool▁call▁end｜>" for name, text in named)
        return f"<｜tool▁calls▁begin｜>{inner}<｜tool▁calls▁end｜>"
    name, arguments = calls[0]
    return "<|python_tag|>" + json.dumps({"name": name, "parameters": arguments})


DIALECTS = ("hermes", "qwen3-coder", "mistral", "kimi", "deepseek", "llama")


@dataclass
class Talk:
    """One conversation as it was: messages with the log-probabilities of the replies."""

    number: int
    messages: list[Message]
    habits: frozenset[str]


class Maker:
    """Makes conversations from a seed."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.n_said = 0

    def words(self, least: int = 1) -> str:
        return " ".join(self.rng.choices(WORDS, k=self.rng.randint(least, 4)))

    def tokens(self, text: str) -> list[Message]:
        found = []
        while text:
            n = self.rng.randint(2, 30)
            p = self.rng.randint(40, 95) / 100
            found.append(token(text[:n], (p, 1 - p)))
            text = text[n:]
        return found

    def turn(
        self, number: int, n_calls: int, ids: str, dialect: str | None, n_so_far: int
    ) -> tuple[Message, list[Message]]:
        """A reply and its results; its words, arguments and unique ids are said nowhere else."""
        self.n_said += 1
        mark = f"{'αβγδε'[self.n_said % 5]}{self.n_said}"
        text = "" if n_calls and self.rng.random() < 0.3 else f"{mark} {self.words()}"
        if self.rng.random() < 0.3 and text:
            text = f"<think>{self.words()}\n{mark}</think>\n\n{text} "
        calls = [
            (self.rng.choice(("search", "open_page")), {"q": f"{mark} {self.words()} {i}", "site": self.words()})
            for i in range(n_calls)
        ]
        if dialect == "llama":
            calls = calls[:1]
        named = {
            "none": lambda i: None,
            "unique": lambda i: f"call_{self.rng.randrange(16**12):012x}z9q{self.n_said}",
            "count in turn": lambda i: f"call_{i}",
            "count in conversation": lambda i: f"functions.search:{n_so_far + i}",
        }[ids]
        call_ids = [named(i) for i in range(len(calls))]
        results = [result(f"{self.words()} {mark} {i}", id) for i, id in enumerate(call_ids)]
        if dialect is not None and calls:
            text += spelled(dialect, calls)
            return assistant(self.tokens(text), content=text), results
        entries = [call(name, json.dumps(arguments), id) for (name, arguments), id in zip(calls, call_ids, strict=True)]
        reply = assistant(self.tokens(text), content=text) | ({"tool_calls": entries} if entries else {})
        if self.rng.random() < 0.2:
            reply["reasoning_content"] = self.words()
        return reply, results

    def talk(self, number: int, question: str, habits: frozenset[str], ids: str, dialect: str | None) -> Talk:
        messages: list[Message] = [user(f"  {question}\n")]
        if self.rng.random() < 0.6:
            messages.insert(0, {"role": "system", "content": "Use tools."})
        n_turns, n_calls_so_far = self.rng.randint(1, 6), 0
        for k in range(n_turns):
            is_last = k == n_turns - 1
            n_calls = 0 if is_last and self.rng.random() < 0.8 else self.rng.choice((0, 1, 1, 1, 2, 3))
            reply, results = self.turn(number, n_calls, ids, dialect, n_calls_so_far)
            n_calls_so_far += len(results)
            messages.append(reply)
            if not is_last:
                messages += results or [user(self.rng.choice(("And then?", self.words())))]
        return Talk(number, messages, habits)


def rewritten(messages: list[Message], habits: frozenset[str], rng: random.Random) -> list[Message]:
    """A history as a client with some habits sends it."""
    sent: list[Message] = []
    for i, message in enumerate(messages):
        one = {k: v for k, v in message.items() if k != "logprobs"}
        role = one["role"]
        if role == "system":
            if "drop instructions" in habits and len(messages) > 2:
                continue
            if "change instructions" in habits:
                one["content"] += f" It is {rng.random()}."
        elif role == "assistant":
            following = [m for m in messages[i + 1 :] if m["role"] == "tool"]
            rewrite_turn(one, habits, [m.get("tool_call_id") for m in following])
        elif role == "tool" and "results as user" in habits:
            one = user(f"<tool_response>\n{one['content']}\n</tool_response>")
        sent.append(one)
    sent = regrouped(sent, habits)
    turns = [i for i, one in enumerate(sent) if one["role"] == "assistant"]
    if habits.isdisjoint(FORGETTING) or len(turns) < 2:
        return sent
    first = (
        [user(f"So far: {len(turns)} steps.")] if "summarise" in habits else sent[:1] * (sent[0]["role"] == "system")
    )
    return first + sent[turns[-1] if "summarise" in habits else rng.choice(turns[-2:]) :]


def regrouped(messages: list[Message], habits: frozenset[str]) -> list[Message]:
    """A history with a turn for each call, or with one turn for all that follow without a word of the user."""
    sent: list[Message] = []
    for i, one in enumerate(messages):
        calls = one.get("tool_calls") or []
        results = [m for m in messages[i + 1 : i + 1 + len(calls)] if m["role"] == "tool"]
        if "split turns" in habits and len(calls) > 1 and len(results) == len(calls):
            parts = zip(calls, results, strict=True)
            sent += [m for part, found in parts for m in (one | {"content": None, "tool_calls": [part]}, found)]
            sent[-2 * len(calls)]["content"] = one["content"]
            del messages[i + 1 : i + 1 + len(calls)]
        elif "merge turns" in habits and calls and sent and sent[-1]["role"] == "tool":
            at = max(k for k, m in enumerate(sent) if m["role"] == "assistant")
            text = " ".join(m["content"].strip() for m in (sent[at], one) if (m["content"] or "").strip())
            sent[at] = sent[at] | {"content": text, "tool_calls": sent[at].get("tool_calls", []) + calls}
        else:
            sent.append(one)
    return sent


def rewrite_turn(one: Message, habits: frozenset[str], ids: list[str | None]) -> None:
    is_spelled = spell_out(one, habits, ids)
    if "drop thinking" in habits:
        one.pop("reasoning_content", None)
        one["content"] = one["content"].rpartition("</think>")[2].lstrip()
    if "strip" in habits:
        one["content"] = one["content"].strip()
    thought, tag, text = one["content"].rpartition("</think>")
    if "cut" in habits and not is_spelled and len(text.split()) > 1:
        one["content"] = thought + tag + text[: len(text) - len(text.split()[-1]) - 1]
    for entry in one.get("tool_calls", ()):
        function = entry["function"]
        if "reprint arguments" in habits:
            function["arguments"] = json.dumps(dict(reversed(json.loads(function["arguments"]).items())), indent=2)
        if "repair arguments" in habits:
            function["arguments"] = json.dumps({"query": "repaired"})
    if one.get("tool_calls") and not is_spelled and habits & {"drop text", "null text"}:
        one["content"] = "" if "drop text" in habits else None
    if "remove calls" in habits:
        one.pop("tool_calls", None)


def spell_out(one: Message, habits: frozenset[str], ids: list[str | None]) -> bool:
    """Add the calls that a text spells, and take them out of it; returns whether the text still spells some."""
    written = () if one.get("tool_calls") else decode(line([user("?"), dict(one)])).calls
    if not written or not habits & {"add calls", "move calls"}:
        return bool(written)
    one["tool_calls"] = [call(c.name, c.arguments, ids[i] or f"call_{i}") for i, c in enumerate(written)]
    if "move calls" in habits:
        starts = [one["content"].find(mark) for mark in ("\n<tool_call>", "[TOOL", "<|", "<｜")]
        one["content"] = one["content"][: min(at for at in starts if at >= 0)]
    return "move calls" not in habits


def lines_of(talk: Talk, session: str, field: str, rng: random.Random) -> list[Message]:
    lines = []
    for i, message in enumerate(talk.messages):
        if message["role"] != "assistant":
            continue
        history = rewritten(talk.messages[:i], talk.habits, rng)
        reply = {k: v for k, v in message.items() if k != "logprobs"}
        choice = {"index": 0, "message": reply, "logprobs": message["logprobs"], "finish_reason": "stop"}
        one: Message = {"request": {"messages": history}, "response": {"id": f"r{talk.number}", "choices": [choice]}}
        id = {"conversation": f"s{talk.number}", "request": f"t{rng.random()}", "all": "me", "none": None}[session]
        if id is not None:
            if field == "user":
                one["request"]["user"] = id
            else:
                one |= {"metadata": {"session_id": id}} if field == "metadata" else {field: id}
        lines.append(one)
    return lines


def summary(t: Trajectory) -> str:
    """What has to be the same."""
    kinds = [(s.kind.value, s.start, s.stop, s.turn) for s in t.segments if s.stop > s.start]
    calls = [(c.name, c.arguments, c.turn, (c.result or "").strip()) for c in t.calls]
    entropies = None if t.entropy is None else [round(float(h), 9) for h in t.entropy]
    return repr((t.question, "".join(t.token_texts or ()), kinds, calls, entropies))


def is_blurred(habits: frozenset[str], ids: str) -> bool:
    """Whether of some turns nothing is left but their place, or of the history that leads to them."""
    if not habits.isdisjoint(FORGETTING):
        return True
    if ids == "unique":
        return {"remove calls", "results as user"} <= habits
    return bool(habits & {"repair arguments", "remove calls"})


def check(seed: int, *habits_of_all: str) -> None:
    rng = random.Random(seed)
    maker = Maker(rng)
    session, field = rng.choice(SESSIONS), rng.choice(FIELDS)
    plans = []
    for _ in range(rng.randint(1, 5)):
        habits = frozenset(habits_of_all or rng.sample(HABITS, rng.choice((0, 1, 1, 2, 4))))
        dialect = rng.choice((None, None, *DIALECTS))
        ids = "none" if dialect else rng.choice(IDS)
        if "split turns" in habits:
            habits -= {"merge turns"}
        if "repair arguments" in habits and ids != "unique":
            habits -= {"split turns", "merge turns"}  # nothing is left by which the calls are known
        plans.append((habits, ids, dialect))
    # Where nothing but the place of a turn is left, questions tell conversations apart.
    is_blurred_somewhere = any(is_blurred(habits, ids) for habits, ids, _ in plans)
    talks: list[Talk] = []
    for number, (habits, ids, dialect) in enumerate(plans):
        question = f"Where is {number}?" if is_blurred_somewhere else rng.choice(("Where?", "Where is it?", "When?"))
        talks.append(maker.talk(number, question, habits, ids, dialect))
        if rng.random() < 0.15 and not is_blurred_somewhere:
            talks.append(Talk(len(plans) + number, talks[-1].messages, habits))
    queues = [lines_of(talk, session, field, rng) for talk in talks]
    joiner = Joiner()
    while any(queues):
        queue = rng.choice([q for q in queues if q])
        assert not joiner.add(import_as("openai", json.dumps(queue.pop(0)).encode()))
    found = Counter(summary(to_trajectory(one)) for one in joiner.finish())
    expected = Counter(summary(decode(line(talk.messages))) for talk in talks)
    assert found == expected, (seed, session, field, plans, joiner.weakly_joined, joiner.n_unjoined)


@pytest.mark.parametrize("habit", [*HABITS, *FORGETTING])
def test_each_habit_alone(habit: str) -> None:
    for seed in range(12):
        check(seed, habit)


def test_lost_lines_never_mix_conversations() -> None:
    """A quarter of the API calls is not in the log; every other is in one trajectory, with calls of its talk alone."""
    for seed in range(100):
        rng = random.Random(seed)
        maker, session, field = Maker(rng), rng.choice(SESSIONS), rng.choice(FIELDS)
        kept = []
        for number in range(4):
            dialect, habits = rng.choice((None, *DIALECTS)), frozenset(rng.sample(HABITS, rng.choice((0, 1, 3))))
            talk = maker.talk(number, f"Where is {number}?", habits, "none" if dialect else rng.choice(IDS), dialect)
            for i, one in enumerate(lines_of(talk, session, field, rng)):
                one["metadata"] = one.get("metadata", {}) | {f"talk {number}": True}
                kept += [(i + rng.random(), one)] * (rng.random() < 0.75)
        joiner = Joiner()
        for _, one in sorted(kept, key=lambda entry: entry[0]):
            joiner.add(import_as("openai", json.dumps(one).encode()))
        facts = [one.facts.metadata for one in joiner.finish()]
        assert sum(one.get("n_requests", 1) for one in facts) == len(kept)
        assert all(sum(key.startswith("talk ") for key in one) == 1 for one in facts), (seed, session, facts)


@settings(max_examples=40, deadline=None)
@given(st.integers(min_value=1000))
def test_any_mix_of_habits(seed: int) -> None:
    check(seed)


@pytest.mark.slow
def test_a_thousand_rewritten_logs() -> None:
    for seed in range(1000):
        check(seed)
