"""The stage that joins API calls into conversations.

A call continues the call whose reply ends its history. Histories are compared word for word by a running hash, then by
one that passes over instructions, results, thinking and spacing. Clients also rewrite what they send back: then
`deltah.traces.turns` weighs what is left of a turn, and the best evidence counts that nothing contradicts. Ids of
sessions join, they never keep apart what says the same. Several calls that continue one are a fork: the longest path
(of equals, the last) is the conversation, every other branch a trajectory of its own in which the shared history is
context only, so that nothing is counted twice and nothing is lost.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import reduce
from itertools import chain
from typing import Final, NamedTuple

from deltah.traces.conversation import ApiCall, Conversation, Facts, LoggedMessage, message_text
from deltah.traces.trees import Node, Tree, conversations
from deltah.traces.turns import COUNTED, Claim, Evidence, History, Joined, Trail, Turn, turn_of, verbatim

MAX_OPEN_BYTES = 256 * 2**20
_MESSAGE_BYTES = 400  # in memory beside its text, roughly
_NODE_BYTES = 2000
_MAX_TRIED: Final = 32
"""Replies with one mark that are compared with a turn, and turns of a history, the latest: there may be thousands."""
_SAID, _WORDS, _GIVEN, _ID, _TEXT, _CALLS, _FIRST, _PLACE, _SESSION, _NAMED = range(10)
"""Kinds of marks."""


class _Found(NamedTuple):
    """The API call that another continues, how much of the history it accounts for, and what shows that."""

    parent: Node | None = None
    n_known: int = 0
    trail: Trail = Trail()
    """Up to there."""
    by: Joined | None = None
    """None where the history repeats it word for word, but for spacing and thinking."""


@dataclass(eq=False)
class JoinCounts:
    """What was met while API calls were joined."""

    n_unjoined: int = 0
    """API calls whose history holds an assistant's turn that the log does not."""
    n_repeated: int = 0
    """API calls that the log holds once more, with the response's id: left out."""
    n_branches: int = 0
    """Retries and forks that were not continued, each a trajectory of its own."""
    weakly_joined: Counter[str] = field(default_factory=Counter)
    """API calls whose history was rewritten, by what joined them: values of `deltah.traces.turns.Joined`."""

    @property
    def n_weakly_joined(self) -> int:
        """API calls that were joined although their history does not repeat what was logged."""
        return self.weakly_joined.total()


class Joiner(JoinCounts):
    """Takes API calls in the order of the log, gives conversations when they are over, or outgrow `max_bytes`."""

    def __init__(self, max_bytes: int = MAX_OPEN_BYTES) -> None:
        super().__init__()
        self.max_bytes = max_bytes
        self._trees: OrderedDict[int, Tree] = OrderedDict()
        """Open conversations by their number, the longest waiting first."""
        self._index: defaultdict[int, list[Node]] = defaultdict(list)
        """Replies of open conversations by each of their marks, in the order of the log."""
        self._begun: dict[int, Tree] = {}
        """Open conversations with a session, by their first request."""
        self._names: Counter[str] = Counter()
        self._n_bytes = 0
        self._n_trees = 0
        self._n_nodes = 0

    def add(self, api_call: ApiCall) -> list[Conversation]:
        """Take one API call; return the conversations that had to be closed for lack of room."""
        history = History(api_call.history, api_call.facts.session)
        if self._is_repeated(api_call, history):
            self.n_repeated += 1
            return []
        is_regrouped = False
        if history.turns and not self._under(_SAID, history.said[history.turns[-1]]):
            api_call = replace(api_call, history=self._as_logged(sent := api_call.history))
            if is_regrouped := len(api_call.history) != len(sent):
                history = History(api_call.history, api_call.facts.session)
        # A request may name what it goes on with instead of repeating it: of a kept conversation the last reply.
        named = [] if api_call.facts.continues is None else self._under(_NAMED, api_call.facts.continues)
        found = _Found(named[-1], 0, named[-1].trail) if named else self._find(history)
        if is_regrouped and found.parent is not None and found.by is None:
            found = found._replace(by=Joined.CALLS)
        if found.by is not None:
            self.weakly_joined[found.by.value] += 1
        if found.parent is None and history.turns:
            self.n_unjoined += 1
            metadata = api_call.facts.metadata | {"unjoined": True}
            api_call = replace(api_call, facts=replace(api_call.facts, metadata=metadata))
        node = self._insert(api_call, found, history)
        self._trees.move_to_end(node.tree.number)
        closed: list[Conversation] = []
        while self._n_bytes > self.max_bytes and len(self._trees) > 1:
            closed += self._close(next(iter(self._trees)))
        return closed

    def finish(self) -> Iterator[Conversation]:
        """Yield every conversation that is still open, in the order they began."""
        for number in sorted(self._trees):
            yield from self._close(number)

    def _is_repeated(self, api_call: ApiCall, history: History) -> bool:
        """Whether another record of the session holds the request and its response, of the same id, too."""
        (id, where), session = (api_call.facts.id, api_call.where[:2]), history.session
        nodes = [] if id is None else self._under(_SAID, history.said_with(api_call.reply.message))
        same = (n.api_call for n in nodes[-_MAX_TRIED:] if (n.api_call.facts.id, n.session) == (id, session))
        return any(other.where[:2] != where for other in same)

    def _as_logged(self, sent: Sequence[LoggedMessage]) -> list[LoggedMessage]:
        """A history in which replies that a client split into several turns, or merged into one, are whole again."""
        said, at = list[LoggedMessage](), 0
        while at < len(sent):
            known, at = self._regrouped(sent, at, said) or (sent[at : at + 1], at + 1)
            said += known
        return said

    def _regrouped(
        self, sent: Sequence[LoggedMessage], at: int, before: Sequence[LoggedMessage]
    ) -> tuple[list[LoggedMessage], int] | None:
        """Replies as they were logged, with the results, and where what repeats them ends; None if nothing does."""
        if sent[at].message.role != "assistant":
            return None
        turns = (turn_of(one.message) for one in sent[at : at + 2] if one.message.role == "assistant")
        if (first := next((turn for turn in turns if turn.calls), None)) is None:
            return None
        marks: list[tuple[int, object]] = [(_ID, id) for id in first.ids if not COUNTED.fullmatch(id)]
        marks += [(_FIRST, first.calls[0]), *((_CALLS, first.calls[k:]) for k in range(1, len(first.calls)))]
        is_told = sent[at + 1 : at + 2] and sent[at + 1].message.role != "assistant"
        for node in dict.fromkeys(node for mark in marks for node in self._under(*mark)[: -_MAX_TRIED - 1 : -1]):
            if is_told and node.turn.calls == first.calls:
                return None  # whole as it is
            path = [node]
            while sum(len(one.turn.calls) for one in path) < len(first.calls) and path[0].parent is not None:
                path.insert(0, path[0].parent)
            n_calls, parts, stop = sum(len(one.turn.calls) for one in path), list[Turn](), at
            while stop < len(sent) and (role := sent[stop].message.role) in ("assistant", "tool"):
                if role == "assistant":
                    if sum(len(part.calls) for part in parts) >= n_calls:
                        break
                    parts.append(turn_of(sent[stop].message))
                stop += 1
            if len(parts) + len(path) > 2 and self._repeat(parts, path, before):
                known = [said for one in path for said in (*one.new, one.api_call.reply)][len(path[0].new) :]
                results = [one for one in sent[at:stop] if one.message.role == "tool"]
                return [*known, *results[len(known) - len(path) :]], stop
        return None

    def _repeat(self, parts: Sequence[Turn], path: Sequence[Node], before: Sequence[LoggedMessage]) -> bool:
        """Whether turns repeat replies that follow each other, by ids that say it or by calls, texts and place."""
        if any(said.message.role != "tool" for node in path[1:] for said in node.new):
            return False
        logged = [node.turn for node in path]
        ids, logged_ids = (frozenset[str]().union(*(one.ids for one in some)) for some in (parts, logged))
        if ids == logged_ids and ids and not any(map(COUNTED.fullmatch, ids)):
            return True
        texts, logged_texts = ([one.text for one in some if one.text] for some in (parts, logged))
        is_text = " ".join(texts) in " ".join(logged_texts) or set(texts) == set(logged_texts)
        calls, logged_calls = ([*chain(*(one.calls for one in some))] for some in (parts, logged))
        if calls != logged_calls or not is_text:
            return False
        trail = reduce(Trail.after, (one.message for one in before), Trail())
        in_place = path[0].trail.users == trail.users and path[0].trail.n_turns - 1 == trail.n_turns
        is_logged = any(node not in path for part in parts for node in self._under(_CALLS, part.calls) if part.calls)
        return in_place and not is_logged

    def _find(self, history: History) -> _Found:
        """The API call whose reply a turn of the history repeats, the latest turn first."""
        for n_passed, i in enumerate(reversed(history.turns)):
            if nodes := self._under(_SAID, history.said[i]):
                parent = _best(nodes, history.session)
                return _Found(parent, i + 1, parent.trail)
            turn, trail = history.turn(i), history.trails[i + 1]
            if nodes := self._under(_WORDS, trail.words):
                return _Found(_best(nodes, history.session, turn.ids), i + 1, trail)
            # What an earlier request held from the start is no reply: examples, a greeting, turns that were not logged.
            if n_passed < _MAX_TRIED and not self._under(_GIVEN, history.said[i]):
                best, by = self._weigh(history, i, turn)
                if best is not None:
                    return _Found(best, i + 1, trail, by)
        return _Found()

    def _weigh(self, history: History, at: int, turn: Turn) -> tuple[Node | None, Joined | None]:
        """The reply that a turn agrees with best, and by what; None if there is none, or it cannot be told which."""
        before, session = history.trails[at], history.session
        holders = {id: self._under(_ID, id) for id in turn.ids}
        claim = Claim(
            turn=turn,
            before=before,
            session=session,
            is_last=at == history.turns[-1],
            own_ids=frozenset(id for id, nodes in holders.items() if _of_one(nodes)),
            proofs=frozenset(id for id, nodes in holders.items() if not COUNTED.fullmatch(id) and _say_the_same(nodes)),
            is_own_session=session is not None and _of_one(self._under(_SESSION, session)),
            is_own_question=_of_one(self._under(_PLACE, (before.users[:1], 0))),
            are_own_words=_of_one(self._under(_TEXT, turn.text) if turn.text else self._under(_CALLS, turn.calls)),
        )
        groups = [holders[id] for id in claim.proofs]
        if not groups:
            groups = [*holders.values(), *(self._under(*mark) for mark in _marks(turn, before, session))]
        # What the history repeats word for word in another place is not repeated here.
        found = (n for nodes in groups for n in nodes[: -_MAX_TRIED - 1 : -1] if n.said not in history.said_by_turns)
        candidates = dict.fromkeys(found)
        weighed = [(weight, node) for node in candidates if (weight := Evidence(claim, node)).kind is not None]
        if not weighed:
            return None, None
        weight, best = max(weighed, key=lambda one: (one[0].rank, one[1].number))
        rivals = [node for other, node in weighed if other.rank == weight.rank and node.root is not best.root]
        return (best, weight.kind) if _say_the_same([best, *rivals]) else (None, None)

    def _under(self, kind: int, value: object) -> list[Node]:
        """Replies of open conversations under a mark."""
        return self._index.get(hash((kind, value)), [])

    def _insert(self, api_call: ApiCall, found: _Found, history: History) -> Node:
        parent, new = found.parent, api_call.history[found.n_known :]
        before = reduce(Trail.after, (one.message for one in new), found.trail)
        if parent is not None and before.users == parent.trail.users:
            before = before._replace(users=parent.trail.users)  # held once
        turn = turn_of(api_call.reply.message)
        self._n_nodes += 1
        node = Node(
            # The history is in the parent's nodes; kept here it would make the memory quadratic.
            api_call=replace(api_call, history=[]),
            new=new,
            parent=parent,
            tree=self._tree(api_call) if parent is None else parent.tree,
            number=self._n_nodes,
            depth=0 if parent is None else parent.depth + 1,
            turn=turn,
            trail=before.after(api_call.reply.message, turn),
            session=history.session,
            said=history.said_with(api_call.reply.message),
        )
        if parent is not None:
            parent.n_children += 1
        node.tree.nodes.append(node)
        named = [(_NAMED, name) for name in api_call.facts.continued_as]
        given = [(_GIVEN, history.said[i]) for i in history.turns if i >= found.n_known]
        found_by = [(_SAID, node.said), (_WORDS, node.trail.words), *((_ID, id) for id in turn.ids), *given, *named]
        node.marks = tuple({hash(mark) for mark in (*found_by, *_marks(turn, before, history.session))})
        for mark in node.marks:
            self._index[mark].append(node)
        size = _NODE_BYTES + sum(map(_size, [*new, api_call.reply, *api_call.after]))
        if parent is None or before.users is not parent.trail.users:
            size += sum(map(len, before.users))
        node.tree.n_bytes += size
        self._n_bytes += size
        return node

    def _tree(self, api_call: ApiCall) -> Tree:
        """The conversation that an API call without a parent begins, or tries to begin once more."""
        request, session = None, api_call.facts.session
        if session is not None and api_call.history:  # what was asked under it, word for word, instructions included
            request = hash((session, *(verbatim(said.message) for said in api_call.history)))
        tree = None if request is None else self._begun.get(request)
        # One request sent without end must not hold the memory of all others.
        if tree is None or tree.n_bytes > self.max_bytes // 2:
            tree = Tree(self._n_trees, request)
            self._trees[tree.number] = tree
            self._n_trees += 1
            if request is not None:
                self._begun[request] = tree
        return tree

    def _close(self, number: int) -> Iterator[Conversation]:
        tree = self._trees.pop(number)
        self._n_bytes -= tree.n_bytes
        for node in tree.nodes:
            for mark in node.marks:
                self._index[mark].remove(node)
                if not self._index[mark]:
                    del self._index[mark]
        if tree.request is not None and self._begun.get(tree.request) is tree:
            del self._begun[tree.request]
        leaves = tree.leaves()
        self.n_branches += len(leaves) - 1
        yield from conversations(leaves, self._name([node.api_call.facts for node in leaves[0].path()]))

    def _name(self, parts: Sequence[Facts]) -> str | None:
        """The session's id, numbered from its second conversation on; else the id of the first API call.

        An id that changes with every request is none of the conversation.
        """
        session, changes = parts[0].session, len({part.session for part in parts}) == len(parts) > 1
        if session is None or (changes and parts[0].id is not None):
            return parts[0].id
        self._names[session] += 1
        count = self._names[session]
        return session if count == 1 else f"{session}#{count}"


def _marks(turn: Turn, before: Trail, session: str | None) -> Iterator[tuple[int, object]]:
    """Under what a reply is found by a turn that repeats it, but for ids."""
    if turn.text:
        yield _TEXT, turn.text
    if turn.calls:
        yield _CALLS, turn.calls
        yield _FIRST, turn.calls[0]
    if before.users:
        yield _PLACE, (before.users, before.n_turns)
    if session is not None:
        yield _SESSION, session


def _best(nodes: Sequence[Node], session: str | None, ids: Set[str] = frozenset()) -> Node:
    """Of replies that say the same: with the same ids, of the same session, not continued yet, the latest."""
    recent = nodes[-_MAX_TRIED:]
    return max(recent, key=lambda n: (len(ids & n.turn.ids), n.session == session, not n.n_children, n.number))


def _say_the_same(nodes: Sequence[Node]) -> bool:
    """Whether it does not matter which of some replies is meant."""
    return len({(node.turn.text, node.turn.calls, node.trail.users) for node in nodes[-_MAX_TRIED:]}) == 1


def _of_one(nodes: Sequence[Node]) -> bool:
    """Whether replies are of one conversation; another attempt at it counts as another."""
    return bool(nodes) and all(node.root is nodes[0].root for node in nodes[-_MAX_TRIED:])


def _size(said: LoggedMessage) -> int:
    message = said.message
    text = len(message_text(message.content)) + len(message.reasoning_content or "")
    calls = sum(len(str(call.function.arguments)) for call in message.tool_calls or [] if call.function is not None)
    return _MESSAGE_BYTES + said.tokens.nbytes + text + calls
