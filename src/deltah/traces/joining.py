"""The stage that joins API calls into conversations.

A call continues the call whose reply ends its history. Histories are compared by a running hash over what the user and
the assistant said, and the place of tool results: clients drop thinking, shorten old results and put the time into
system messages. Where no history matches, a session id that the line carries decides. Several calls that continue one
are a fork: the longest path (of equals, the last) is the conversation, every other branch a trajectory of its own in
which the shared history is context only, so that nothing is counted twice and nothing is lost.
"""

from __future__ import annotations

import json
import math
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Final

import msgspec

from deltah.traces.conversation import COST, ApiCall, Conversation, Facts, LoggedMessage, message_text
from deltah.traces.importing import finite
from deltah.traces.openai_schema import FunctionCall, Message

DURATION_FROM: Final = "duration_s_from"
GAP: Final = "gap between API calls"
"""Metadata key and its value where no line states durations: the client's own work, or a pause, is in them."""
MAX_OPEN_BYTES = 256 * 2**20
_LAST_WORD: Final = ("prediction", "golden_answers", "outcome")
"""Facts that later API calls of a conversation correct."""
_MESSAGE_BYTES = 400  # in memory beside its text, roughly


@dataclass(eq=False, slots=True)
class _Node:
    """One API call in the tree of its conversation; `new` are messages of its request that its parent does not hold."""

    api_call: ApiCall
    new: list[LoggedMessage]
    parent: _Node | None
    tree: _Tree
    key: int
    depth: int
    n_children: int = 0


@dataclass(eq=False, slots=True)
class _Tree:
    """A conversation with its forks; nodes in the order of the log, without a parent those of the first request."""

    number: int
    request: int | None
    """Identifies its first request, see `_request`."""
    nodes: list[_Node] = field(default_factory=list)
    n_bytes: int = 0


class Joiner:
    """Takes API calls in the order of the log, gives conversations when they are over, or outgrow `max_bytes`."""

    def __init__(self, max_bytes: int = MAX_OPEN_BYTES) -> None:
        self.max_bytes = max_bytes
        self.n_unjoined = 0
        self.n_branches = 0
        self._trees: OrderedDict[int, _Tree] = OrderedDict()
        """Open conversations by their number, the longest waiting first."""
        self._ends: defaultdict[int, list[_Node]] = defaultdict(list)
        self._last_of_session: dict[str, _Node] = {}
        self._begun: dict[int, _Tree] = {}
        """Open conversations with a session, by their first request."""
        self._names: Counter[str] = Counter()
        self._n_bytes = 0
        self._n_trees = 0

    def add(self, api_call: ApiCall) -> list[Conversation]:
        """Take one API call; return the conversations that had to be closed for lack of room."""
        seed = hash(api_call.facts.session)
        hashes = _running_hashes(api_call.history, seed)
        parent, known = self._parent(api_call, hashes)
        if parent is None and any(said.message.role == "assistant" for said in api_call.history):
            self.n_unjoined += 1
            metadata = api_call.facts.metadata | {"unjoined": True}
            api_call = replace(api_call, facts=replace(api_call.facts, metadata=metadata))
        key = hash((hashes[-1] if hashes else seed, _spoken(api_call.reply.message)))
        node = self._insert(api_call, api_call.history[known:], parent, key)
        self._trees.move_to_end(node.tree.number)
        closed: list[Conversation] = []
        while self._n_bytes > self.max_bytes and len(self._trees) > 1:
            closed += self._close(next(iter(self._trees)))
        return closed

    def finish(self) -> Iterator[Conversation]:
        """Yield every conversation that is still open, in the order they began."""
        for number in sorted(self._trees):
            yield from self._close(number)

    def _parent(self, api_call: ApiCall, hashes: Sequence[int]) -> tuple[_Node | None, int]:
        """The API call that this one continues, and how many messages of its history that one accounts for."""
        turns = [i for i, said in enumerate(api_call.history) if said.message.role == "assistant"]
        session = api_call.facts.session
        for i in reversed(turns):
            if ends := self._ends.get(hashes[i]):
                # Of equal histories take the latest that nothing has continued yet.
                return next((n for n in reversed(ends) if n.n_children == 0), ends[-1]), i + 1
            if session is not None and (last := self._last_of_session.get(session)) is not None:
                # A first request may hold turns of its own, as examples or a greeting: sent again it continues nothing.
                return (None, 0) if _request(api_call) in self._begun else (last, turns[-1] + 1)
        return None, 0

    def _insert(self, api_call: ApiCall, new: list[LoggedMessage], parent: _Node | None, key: int) -> _Node:
        tree = self._tree(api_call) if parent is None else parent.tree
        # The history is in the parent's nodes; kept here it would make the memory quadratic.
        depth = 0 if parent is None else parent.depth + 1
        node = _Node(replace(api_call, history=[]), new, parent, tree, key, depth)
        if parent is not None:
            parent.n_children += 1
        tree.nodes.append(node)
        self._ends[key].append(node)
        if api_call.facts.session is not None:
            self._last_of_session[api_call.facts.session] = node
        size = sum(map(_size, [*new, api_call.reply, *api_call.after]))
        tree.n_bytes += size
        self._n_bytes += size
        return node

    def _tree(self, api_call: ApiCall) -> _Tree:
        """The conversation that an API call without a parent begins, or tries to begin once more."""
        request = _request(api_call)
        tree = None if request is None else self._begun.get(request)
        # One request sent without end must not hold the memory of all others.
        if tree is None or tree.n_bytes > self.max_bytes // 2:
            tree = _Tree(self._n_trees, request)
            self._trees[tree.number] = tree
            self._n_trees += 1
            if request is not None:
                self._begun[request] = tree
        return tree

    def _close(self, number: int) -> Iterator[Conversation]:
        tree = self._trees.pop(number)
        self._n_bytes -= tree.n_bytes
        for node in tree.nodes:
            self._ends[node.key].remove(node)
            if not self._ends[node.key]:
                del self._ends[node.key]
            session = node.api_call.facts.session
            if session is not None and self._last_of_session.get(session) is node:
                del self._last_of_session[session]
        if tree.request is not None and self._begun.get(tree.request) is tree:
            del self._begun[tree.request]
        leaves = [node for node in tree.nodes if node.n_children == 0]
        main = max(reversed(leaves), key=lambda node: node.depth)
        told: set[_Node] = set()
        name = self._name(_path(main)[0].api_call.facts)
        yield _conversation(_path(main), told, name)
        self.n_branches += len(leaves) - 1
        for i, leaf in enumerate((leaf for leaf in leaves if leaf is not main), start=1):
            yield _conversation(_path(leaf), told, f"{name}/branch-{i}" if name is not None else None)

    def _name(self, facts: Facts) -> str | None:
        """The session's id, numbered from its second conversation on; else the id of the first API call."""
        if facts.session is None:
            return facts.id
        self._names[facts.session] += 1
        count = self._names[facts.session]
        return facts.session if count == 1 else f"{facts.session}#{count}"


def _path(leaf: _Node) -> list[_Node]:
    path = [leaf]
    while path[-1].parent is not None:
        path.append(path[-1].parent)
    return path[::-1]


def _conversation(path: Sequence[_Node], told: set[_Node], name: str | None) -> Conversation:
    """The messages along a path; what an earlier conversation holds is context."""
    said, has_gaps = list[LoggedMessage](), False
    own = [node for node in path if node not in told]
    for node in path:
        repeated = node in told
        # The results that lead to a branch answer calls of the shared history; a first request sent again is shared.
        context = repeated or (node is own[0] and bool(told))
        timed = _timed(node)
        has_gaps |= timed is not node.new and not context
        said += [replace(message, context=context) for message in timed]
        said.append(replace(node.api_call.reply, context=repeated))
    said += path[-1].api_call.after  # of others it stands in the next history
    told.update(own)
    facts = _merged_facts([node.api_call.facts for node in own], name)
    if has_gaps:
        facts = replace(facts, metadata=facts.metadata | {DURATION_FROM: GAP})
    return Conversation(said, facts, own[0].api_call.where)


def _timed(node: _Node) -> list[LoggedMessage]:
    """New messages of an API call; results that came between two timed API calls share the time between them."""
    results = [said for said in node.new if said.message.role == "tool"]
    if node.parent is None or not results:
        return node.new
    gap = node.api_call.facts.started_at - node.parent.api_call.facts.ended_at
    if not gap >= 0 or any(said.message.duration_s is not None for said in results):
        return node.new
    timed = {id(s): msgspec.structs.replace(s.message, duration_s=gap / len(results)) for s in results}
    return [replace(said, message=timed.get(id(said), said.message)) for said in node.new]


def _running_hashes(history: Sequence[LoggedMessage], seed: int) -> list[int]:
    """Entry i identifies what was said up to and including message i."""
    hashes, current = [], seed
    for said in history:
        if said.message.role not in ("system", "developer"):
            current = hash((current, _spoken(said.message)))
        hashes.append(current)
    return hashes


def _request(api_call: ApiCall) -> int | None:
    """Identifies what was asked under a session, word for word, instructions included; None without a session."""
    if api_call.facts.session is None or not api_call.history:
        return None
    asked = [(said.message.role, said.message.content) for said in api_call.history]
    return hash((api_call.facts.session, *((role, c if isinstance(c, str) else _canonical(c)) for role, c in asked)))


def _spoken(message: Message) -> tuple[object, ...]:
    """What identifies a message in a history."""
    if message.role == "assistant":
        calls = [call.function or FunctionCall() for call in message.tool_calls or []]
        if message.function_call is not None:
            calls.append(message.function_call)
        text = message_text(message.content).rpartition("</think>")[2].strip()
        return ("assistant", text, *((call.name, _canonical(call.arguments)) for call in calls))
    if message.role == "user":
        return ("user", message_text(message.content).strip())
    return ("result",)


def _canonical(arguments: object) -> str:
    """Arguments as text that does not depend on spacing: clients parse and print them again."""
    try:
        return json.dumps(json.loads(arguments) if isinstance(arguments, str) else arguments, sort_keys=True)
    except (ValueError, RecursionError):
        return str(arguments).strip()


def _size(said: LoggedMessage) -> int:
    message = said.message
    text = len(message_text(message.content)) + len(message.reasoning_content or "")
    calls = sum(len(str(call.function.arguments)) for call in message.tool_calls or [] if call.function is not None)
    return _MESSAGE_BYTES + said.tokens.nbytes + text + calls


def _merged_facts(parts: Sequence[Facts], name: str | None) -> Facts:
    """Facts of a conversation from those of its API calls, in order: the last word on grades, the first on all else."""
    stated = {f.name: [v for part in parts if (v := getattr(part, f.name)) not in (None, ())] for f in fields(Facts)}
    merged = {key: values[-1 if key in _LAST_WORD else 0] for key, values in stated.items() if values}
    metadata = {key: value for part in parts for key, value in part.metadata.items()}
    if len({(part.sampling_temperature, part.logprobs_mode) for part in parts}) > 1:
        # Entropies of different temperatures must not pass for one measurement.
        for key in ("sampling_temperature", "logprobs_mode"):
            merged[key] = None
            metadata.pop(key, None)
        metadata["mixed_sampling"] = True
    if len(parts) > 1:
        metadata["n_requests"] = len(parts)
    if COST in metadata:
        metadata[COST] = math.fsum(finite(part.metadata.get(COST)) or 0.0 for part in parts)
    return Facts(
        **merged
        | {
            "id": name,
            "top_logprobs": max(stated["top_logprobs"], default=None),
            "finish_reason": parts[-1].finish_reason,
            "n_without_logprobs": sum(part.n_without_logprobs for part in parts),
            "metadata": metadata,
        }
    )
