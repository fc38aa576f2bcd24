"""A conversation with its forks as a tree of API calls, and the conversations that its paths are."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Final

import msgspec

from deltah.traces.conversation import COST, ApiCall, Conversation, Facts, LoggedMessage
from deltah.traces.importing import finite
from deltah.traces.turns import Reply

DURATION_FROM: Final = "duration_s_from"
GAP: Final = "gap between API calls"
"""Metadata key and its value where no line states durations: the client's own work, or a pause, is in them."""
_LAST_WORD: Final = ("prediction", "golden_answers", "outcome")
"""Facts that later API calls of a conversation correct."""


@dataclass(eq=False, slots=True, kw_only=True)
class Node(Reply):
    """One API call in the tree of its conversation; `new` are messages of its request that its parent does not hold."""

    api_call: ApiCall
    new: list[LoggedMessage]
    parent: Node | None
    tree: Tree
    number: int
    depth: int
    said: int
    """Identifies its request and reply, word for word."""
    root: Node = field(init=False)
    marks: tuple[int, ...] = ()
    """Under which it is found."""

    def __post_init__(self) -> None:
        self.root = self if self.parent is None else self.parent.root

    def path(self) -> list[Node]:
        """API calls from the first one to this."""
        path = [self]
        while path[-1].parent is not None:
            path.append(path[-1].parent)
        return path[::-1]


@dataclass(eq=False, slots=True)
class Tree:
    """A conversation with its forks; nodes in the order of the log, without a parent those of the first request."""

    number: int
    request: int | None
    """Identifies its first request; None without a session."""
    nodes: list[Node] = field(default_factory=list)
    n_bytes: int = 0

    def leaves(self) -> list[Node]:
        """API calls that nothing continued: first that of the longest path (of equals, the last), which is the main."""
        found = [node for node in self.nodes if node.n_children == 0]
        main = max(reversed(found), key=lambda node: node.depth)
        return [main, *(leaf for leaf in found if leaf is not main)]


def conversations(leaves: Sequence[Node], name: str | None) -> Iterator[Conversation]:
    """One conversation per leaf; what one holds is context in those that follow."""
    told: set[Node] = set()
    for i, leaf in enumerate(leaves):
        yield _conversation(leaf.path(), told, f"{name}/branch-{i}" if i and name is not None else name)


def _conversation(path: Sequence[Node], told: set[Node], name: str | None) -> Conversation:
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


def _timed(node: Node) -> list[LoggedMessage]:
    """New messages of an API call; results that came between two timed API calls share the time between them."""
    results = [said for said in node.new if said.message.role == "tool"]
    if node.parent is None or not results:
        return node.new
    gap = node.api_call.facts.started_at - node.parent.api_call.facts.ended_at
    if not gap >= 0 or any(said.message.duration_s is not None for said in results):
        return node.new
    timed = {id(s): msgspec.structs.replace(s.message, duration_s=gap / len(results)) for s in results}
    return [replace(said, message=timed.get(id(said), said.message)) for said in node.new]


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
