"""Importer for the traces of verifiers 0.4 and the episode stream of prime-rl, with the entropies of its trainer.

Lost: the alternatives of each token; the texts of tokens without a tokenizer (`deltah.traces.tokenizer_files`); images;
judges and other calls outside the agents' own messages. Mapping: docs/formats/prime-rl-traces.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import msgspec
import numpy as np

from deltah.core.types import Estimator, FloatArray, Scalar, SegmentKind, SpanQuality, Trajectory
from deltah.errors import DataError
from deltah.traces.annotations import annotations_of
from deltah.traces.conversation import COST, Conversation, Facts, LoggedMessage, message_text, to_trajectory
from deltah.traces.importing import (
    IMPORTERS,
    RecordContext,
    finite,
    golden_answers,
    outcome_of,
    scalars,
    tool_kinds,
    unfit_outcome,
)
from deltah.traces.logprobs import NO_TOKENS, PackedTokens, pack
from deltah.traces.parts import to_messages
from deltah.traces.tokenizer_files import HIDDEN, drawn_tokens, token_bytes
from deltah.traces.trees import DURATION_FROM, GAP

TRACE_VERSION: Final = 1
"""Version of the trace that is read."""
_DECIMALS: Final = 4
"""Decimals of prime-rl's per-token streams on disk, unless its `float_decimals` says otherwise."""
_MANY_VALUES: Final = 30
"""So many values that all have fewer decimals were printed with fewer."""
_NEGATIVE_TOLERANCE_NATS: Final = 1e-2


class Node(msgspec.Struct):
    """One message and the tokens that it adds to the sequence."""

    message: dict[str, Any]
    parent: int | None = None
    sampled: bool = False
    token_ids: list[int] = []
    mask: list[bool] = []
    """Per token: whether the model drew it. The arrays below have one value per drawn token."""
    logprobs: list[float | None] = []
    entropies: list[float | None] | None = None
    advantages: list[float | None] | None = None

    @property
    def role(self) -> Any:
        """Who speaks."""
        return self.message.get("role")

    @property
    def drawn_logprobs(self) -> FloatArray:
        """Log-probability of each drawn token in nats, NaN where unknown."""
        n = sum(self.mask)
        return np.array(self.logprobs if len(self.logprobs) == n else [None] * n, dtype=np.float64)


class Span(msgspec.Struct):
    """Wall-clock times, seconds since 1970."""

    start: float = 0.0
    end: float = 0.0


class ModelCall(msgspec.Struct):
    """One request to the model."""

    node: int | None = None
    model: str | None = None
    sampling: Any = None
    finish_reason: str | None = None
    usage: Any = None
    time: Span | None = None


class Trace(msgspec.Struct):
    """What one agent did."""

    nodes: list[Node] = []
    calls: list[ModelCall] = []
    version: int = TRACE_VERSION
    id: str | None = None
    task: Any = None
    agent: Any = None
    tools: Any = None
    rewards: dict[str, Any] | None = None
    metrics: dict[str, Any] | None = None
    stop_condition: Any = None


class Record(Trace):
    """A line: an episode, which holds traces, or one trace."""

    traces: list[Trace] | None = None
    env: Any = None
    group: Any = None
    run: Any = None


@IMPORTERS.register(
    "verifiers",
    meaning="Trace of verifiers, or episode stream of prime-rl",
    fields=(("traces", "nodes"), ("task", "agent", "env", "run", "rewards")),
    schema=Record,
)
def read(record: Record, context: RecordContext) -> tuple[Trajectory, ...]:
    """Read one episode: each agent's trace, each path of its messages."""
    traces = [record] if record.traces is None else record.traces
    spoken = [trace for trace in traces if any(node.role == "assistant" for node in trace.nodes)]
    if not spoken:
        raise DataError("field traces: no message of role 'assistant' in the episode; there is nothing to measure")
    return tuple(t for i, trace in enumerate(spoken) for t in _trajectories(trace, record, context, i))


@IMPORTERS.register(
    "prime-rl-annotations",
    meaning="Annotation of prime-rl, read with the episode that it belongs to",
    fields=("trace_id", ("branches", "info")),
    schema=bytes,
)
def pass_over(_record: bytes, _context: RecordContext) -> tuple[Trajectory, ...]:
    """Nothing of its own."""
    return ()


def _trajectories(trace: Trace, episode: Record, context: RecordContext, number: int) -> Iterator[Trajectory]:
    """The path with the most turns, then the others, in which what was told before is context."""
    if trace.version > TRACE_VERSION:
        raise DataError(
            f"field version: the trace is of version {trace.version}, this release of deltah reads version "
            f"{TRACE_VERSION}; upgrade deltah"
        )
    paths = _paths(trace.nodes)
    entropies, unread = _entropies(trace, paths, context.where.file)
    name = trace.id or (context.default_id if number == 0 else f"{context.default_id}/{number}")
    texts = token_bytes(context.where.file, _model(trace))
    told = set[int]()
    for i, path in enumerate(sorted(paths, key=lambda path: (-sum(trace.nodes[n].sampled for n in path), -path[-1]))):
        own, waited = _own(trace.nodes, path, told), _waiting_times(trace, path)
        turns = [n for n in path if n in own and trace.nodes[n].role == "assistant"]
        if not turns:
            continue
        known: dict[str, Scalar] = {"annotation_lines_unread": unread} if unread else {}
        known |= {DURATION_FROM: GAP} if own.intersection(waited) else {}
        facts = _facts(trace, episode, path)
        facts = replace(facts, id=f"{name}/branch-{i}" if i else name, metadata=facts.metadata | known)
        messages = [_logged(trace.nodes[n], waited.get(n), texts, context=n not in own) for n in path]
        told.update(path)
        trajectory = to_trajectory(Conversation(messages, facts, context.where), context.vocab_size)
        logprobs = np.concatenate([trace.nodes[n].drawn_logprobs for n in turns])
        trajectory = replace(trajectory, logprobs=logprobs if np.isfinite(logprobs).any() else None)
        if HIDDEN in (trajectory.token_texts or ()) and all(
            s.kind is not SegmentKind.UNPLACED for s in trajectory.segments
        ):
            trajectory = replace(trajectory, spans=SpanQuality.EXACT)  # by ids, which texts do not confirm
        yield _measured(trajectory, np.concatenate([entropies[n] for n in turns]), facts.sampling_temperature)


def _paths(nodes: Sequence[Node]) -> list[list[int]]:
    """Root-to-leaf paths, in the order of their leaves, by which the trainer counts them."""
    for i, node in enumerate(nodes):
        if node.parent is not None and not 0 <= node.parent < i:
            raise DataError(f"field nodes[{i}].parent: {node.parent}; expected the number of an earlier node")
        if len(node.mask) != len(node.token_ids):
            raise DataError(f"field nodes[{i}].mask: {len(node.mask)} values for {len(node.token_ids)} token_ids")
    parents = {node.parent for node in nodes}
    return [_path(nodes, leaf) for leaf in range(len(nodes)) if leaf not in parents]


def _path(nodes: Sequence[Node], leaf: int) -> list[int]:
    path = [leaf]
    while (parent := nodes[path[-1]].parent) is not None:
        path.append(parent)
    return path[::-1]


def _own(nodes: Sequence[Node], path: Sequence[int], told: set[int]) -> set[int]:
    """Nodes that count here: not told before, no result of a call that was, no assistant's message that is a prompt."""
    new = [n for n in path if n not in told]
    first = next((i for i, n in enumerate(new) if nodes[n].role == "assistant"), 0) if told else 0
    has_sampled = any(node.sampled for node in nodes)
    return {n for n in new[first:] if nodes[n].sampled or nodes[n].role != "assistant" or not has_sampled}


def _logged(node: Node, waited: float | None, texts: Mapping[int, bytes], *, context: bool) -> LoggedMessage:
    (message, *_) = to_messages(node.message)
    tokens = _tokens(node, texts, len(message.tool_calls or ()))
    unseen = message_text(message.content) if HIDDEN in tokens.texts else ""
    thought = "\n".join(filter(None, (message.reasoning_content, unseen))) or None
    return LoggedMessage(
        msgspec.structs.replace(message, reasoning_content=thought, duration_s=waited), tokens, context=context
    )


def _tokens(node: Node, texts: Mapping[int, bytes], n_calls: int) -> PackedTokens:
    """Tokens that the model drew."""
    ids = [id for id, drawn in zip(node.token_ids, node.mask, strict=True) if drawn]
    if not ids or node.role != "assistant":
        return NO_TOKENS
    return pack(drawn_tokens(ids, texts, n_calls))


def _waiting_times(trace: Trace, path: Sequence[int]) -> dict[int, float]:
    """Seconds of each result: those between two requests to the model, shared by the results in between."""
    times = {call.node: call.time for call in trace.calls if call.time is not None and call.time.end}
    waited, results, before = dict[int, float](), list[int](), None
    for n in path:
        if trace.nodes[n].role == "tool":
            results.append(n)
        elif trace.nodes[n].sampled:
            after = times.get(n)
            if before is not None and after is not None and after.start >= before.end:
                waited |= dict.fromkeys(results, (after.start - before.end) / max(len(results), 1))
            results, before = [], after
    return waited


def _facts(trace: Trace, episode: Record, path: Sequence[int]) -> Facts:
    calls = [call for call in trace.calls if call.node in set(path)]
    temperatures = {finite(_get(call.sampling, "temperature")) for call in calls}
    data = _get(trace.task if trace.task is not None else episode.task, "data")
    reward = _reward(trace.rewards)
    last = calls[-1] if calls else ModelCall()
    costs = [cost for call in calls if (cost := finite(_get(call.usage, "cost"))) is not None]
    group = _text(_get(episode.group, "id")) or _text(_get(episode.task, "hash"))
    agent = _text(_get(trace.agent, "name"))
    return Facts(
        group_id=f"{group}/{agent}" if group and agent and len(episode.traces or ()) > 1 else group,
        model=_model(trace),
        sampling_temperature=temperatures.pop() if len(temperatures) == 1 else None,
        golden_answers=golden_answers(_get(data, "golden_answers") or _get(data, "answer")),
        outcome=outcome_of(reward),
        finish_reason=last.finish_reason,
        metadata=_metadata(trace, episode)
        | unfit_outcome(reward)
        | _advantage(trace.nodes, path)
        | tool_kinds(trace.tools)
        | ({COST: math.fsum(costs)} if costs else {}),
    )


def _metadata(trace: Trace, episode: Record) -> dict[str, Scalar]:
    work = _get(episode.run, "work")
    rewards = {f"reward/{name}": _get(value, "score") for name, value in (trace.rewards or {}).items()}
    metrics = {f"metric/{name}": value for name, value in (trace.metrics or {}).items()}
    known = {
        "episode": episode.id if episode.traces is not None else None,
        "env_name": _get(episode.env, "name") or _get(episode.env, "id") or None,
        "agent": _get(trace.agent, "name"),
        "work": _get(work, "type"),
        "step": _get(work, "step"),
        "policy_version": _get(_get(work, "policy"), "start"),
        "stop_condition": trace.stop_condition,
    }
    return {key: value for key, value in scalars(known | rewards | metrics).items() if value is not None}


def _advantage(nodes: Sequence[Node], path: Sequence[int]) -> dict[str, Scalar]:
    """The advantage, where all drawn tokens have the same."""
    values = {value for n in path for value in nodes[n].advantages or ()}
    only = finite(values.pop()) if len(values) == 1 else None
    return {} if only is None else {"advantage": only}


def _reward(rewards: Mapping[str, Any] | None) -> float | None:
    """Sum of the scores by their weights; None where nothing was scored."""
    scored = [(_get(r, "score", r), _get(r, "weight", 1.0)) for r in (rewards or {}).values() if r is not None]
    parts = [(finite(score), finite(weight)) for score, weight in scored]
    return sum(s * w for s, w in parts if s is not None and w is not None) if parts else None


def _model(trace: Trace) -> str | None:
    named = (call.model for call in trace.calls)
    config = _get(trace.agent, "config")
    return next((model for model in named if model), None) or _text(_get(config, "model"))


def _get(value: Any, key: str, default: Any = None) -> Any:
    return value.get(key) if isinstance(value, Mapping) else default


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _measured(trajectory: Trajectory, entropy: FloatArray, temperature: float | None) -> Trajectory:
    """The trajectory with the trainer's entropies, which are exact but for their rounding."""
    if not np.isfinite(entropy).any():
        return trajectory
    if (entropy < -_NEGATIVE_TOLERANCE_NATS).any():
        raise DataError(f"field entropies: {np.nanmin(entropy):.4g} is negative; expected nats")
    decimals = _decimals(entropy)
    if decimals is None:
        exact = np.maximum(entropy, 0.0)
        return replace(trajectory, entropy=exact, estimator=Estimator.EXACT, temperature=temperature)
    point, half = np.maximum(np.round(entropy, decimals), 0.0), 0.5 * 10.0**-decimals
    return replace(
        trajectory,
        entropy=point,
        entropy_lower=np.maximum(point - half, 0.0),
        entropy_upper=point + half,
        estimator=Estimator.TOP_K,
        temperature=temperature,
    )


def _decimals(values: FloatArray) -> int | None:
    """Decimals that values were rounded to; None where they have all digits."""
    printed = values[np.isfinite(values) & (values != 0.0)]
    candidates = range(1, _DECIMALS + 1) if len(printed) >= _MANY_VALUES else (_DECIMALS,)
    scaled = [(d, printed * 10.0**d) for d in candidates]
    return next((d for d, v in scaled if np.allclose(v, np.rint(v), rtol=1e-6, atol=1e-6)), None)


def _entropies(trace: Trace, paths: Sequence[Sequence[int]], log: str) -> tuple[list[FloatArray], int]:
    """Of each node, the entropies of its drawn tokens in nats, NaN where unknown; and annotations that are damaged."""
    masks = [np.array(node.mask, dtype=np.bool_) for node in trace.nodes]
    found = [np.full(int(mask.sum()), np.nan) for mask in masks]
    for i, node in enumerate(trace.nodes):
        if node.entropies is not None and len(node.entropies) != len(found[i]):
            raise DataError(f"field nodes[{i}].entropies: {len(node.entropies)} values for {len(found[i])} tokens")
        found[i] = found[i] if node.entropies is None else np.array(node.entropies, dtype=np.float64)
    annotations = annotations_of(log)
    if annotations is None or trace.id is None:
        return found, 0
    for number, path in enumerate(paths):
        values, start = annotations.get(trace.id, number), 0
        if values is None:
            continue
        total = sum(len(masks[n]) for n in path)
        if len(values) > total:
            raise DataError(f"trace {trace.id}: {len(values)} entropies of the trainer for {total} tokens")
        for n in path:
            piece = values[start : start + len(masks[n])]
            drawn = piece[masks[n][: len(piece)]]
            known = np.concatenate([drawn, np.full(len(found[n]) - len(drawn), np.nan)])
            found[n] = np.where(np.isfinite(known), known, found[n])
            start += len(masks[n])
    return found, annotations.n_unread
