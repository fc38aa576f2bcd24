"""Importers for verifiers: traces of 0.4, those of prime-rl with its trainer's entropies, rows of 0.1 and 0.2.

Lost: the alternatives of each token; the texts of tokens without a tokenizer (`deltah.traces.tokenizer_files`); images;
judges and other calls outside the agents' own messages; of result rows tokens, log-probabilities and the times of
tools. Mapping: docs/formats/prime-rl-traces.md, docs/formats/verifiers-results.md.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, Final

import msgspec
import numpy as np

from deltah.core.types import Estimator, FloatArray, Scalar, SegmentKind, SpanQuality, Trajectory
from deltah.errors import DataError
from deltah.traces.chattext import Prompt, completion_messages, link_results, prompt_messages, text_trajectory
from deltah.traces.conversation import COST, Conversation, Facts, LoggedMessage, message_text, to_trajectory
from deltah.traces.files import opened, text_records
from deltah.traces.importing import (
    IMPORTERS,
    RecordContext,
    decode_line,
    finite,
    golden_answers,
    inside,
    outcome_of,
    scalars,
    seconds,
    tool_kinds,
    unfit_outcome,
)
from deltah.traces.logprobs import NO_TOKENS, pack
from deltah.traces.openai_schema import Message
from deltah.traces.parts import json_value, to_messages
from deltah.traces.tokenizer_files import HIDDEN, drawn_tokens, token_bytes
from deltah.traces.trees import DURATION_FROM, GAP

TRACE_VERSION: Final = 1
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


class ModelCall(msgspec.Struct):
    """One request to the model."""

    node: int | None = None
    model: str | None = None
    sampling: Any = None
    finish_reason: str | None = None
    usage: Any = None
    time: Any = None
    """`start` and `end`, seconds since 1970."""


class Trace(msgspec.Struct):
    """A line: what one agent did, or an episode, which holds the traces of its agents."""

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
    traces: list[Trace] | None = None
    env: Any = None
    group: Any = None
    run: Any = None


class BranchUpdate(msgspec.Struct):
    """What the trainer computed on one path of a trace."""

    index: int
    entropies: list[float | None] | None = None


class Update(msgspec.Struct):
    """A line of the trainer's annotations."""

    trace_id: str
    branches: list[BranchUpdate] = []


_UPDATE: Final = msgspec.json.Decoder(Update)


@IMPORTERS.register(
    "verifiers",
    meaning="Trace of verifiers, or episode stream of prime-rl",
    fields=(("traces", "nodes"), ("task", "agent", "env", "run", "rewards")),
    schema=Trace,
)
def read(record: Trace, context: RecordContext) -> tuple[Trajectory, ...]:
    """Read one episode: each agent's trace, each path of its messages."""
    traces = [record] if record.traces is None else record.traces
    spoken = [trace for trace in traces if any(node.role == "assistant" for node in trace.nodes)]
    if not spoken:
        raise DataError("field traces: no message of role 'assistant' in the episode; there is nothing to measure")
    return tuple(t for i, trace in enumerate(spoken) for t in _trajectories(trace, record, context, i))


IMPORTERS.register(
    "prime-rl-annotations",
    meaning="Annotation of prime-rl, read with the episode that it belongs to",
    fields=("trace_id", ("branches", "info")),
    schema=bytes,
)(lambda _record, _context: ())


class ResultRow(msgspec.Struct):
    """What every version writes; metrics and columns of the environment stand beside it."""

    prompt: str | list[dict[str, Any]] | None
    completion: str | list[dict[str, Any]] | None
    metrics: Any = None


@IMPORTERS.register(
    "verifiers-results",
    meaning="Result row of verifiers 0.1 and 0.2",
    fields=("prompt", "completion", "reward", ("example_id", "task", "num_turns", "timing", "generation_ms", "info")),
)
def read_row(record: dict[str, Any], context: RecordContext) -> Trajectory:
    """Read one result row."""
    row, reward, example = msgspec.convert(record, ResultRow), record["reward"], record.get("example_id")
    prompt = Prompt(_typed(row.prompt), "") if isinstance(row.prompt, list) else prompt_messages(row.prompt or "")
    if isinstance(row.completion, list):
        said = link_results(_typed(row.completion))
    else:
        said = completion_messages(prompt.opening + (row.completion or ""))
    facts = Facts(
        id=context.default_id,
        group_id=None if example is None else str(example),
        question=prompt.question,
        golden_answers=golden_answers(record.get("answer")),
        outcome=outcome_of(reward),
        finish_reason="length" if record.get("is_truncated") is True else None,
        metadata=scalars(record, leave_out=frozenset({"prompt", "completion", "answer", "reward"}))
        | (scalars(row.metrics) if isinstance(row.metrics, dict) else {})
        | unfit_outcome(reward),
    )
    return text_trajectory(prompt.messages, said, facts)


def _typed(messages: list[dict[str, Any]]) -> list[Message]:
    """Messages whose calls may be JSON kept as text."""
    for message in messages:
        if isinstance(calls := message.get("tool_calls"), list):
            message["tool_calls"] = [*map(json_value, calls)]
    return to_messages(messages)


def _trajectories(trace: Trace, episode: Trace, context: RecordContext, number: int) -> Iterator[Trajectory]:
    """The path with the most turns, then the others, in which what was told before is context."""
    if trace.version > TRACE_VERSION:
        raise DataError(
            f"field version: the trace is of version {trace.version}, this release of deltah reads version "
            f"{TRACE_VERSION}; upgrade deltah"
        )
    nodes, paths, told = trace.nodes, _paths(trace.nodes), set[int]()
    entropies, n_unread = _entropies(trace, paths, context.where.file)
    models = (*(call.model for call in trace.calls), inside(trace.agent, "config", "model"))
    model = next((model for model in models if model and isinstance(model, str)), None)
    texts = token_bytes(context.where.file, model)
    name = trace.id or (context.default_id if number == 0 else f"{context.default_id}/{number}")
    for i, path in enumerate(sorted(paths, key=lambda path: (-sum(nodes[n].sampled for n in path), -path[-1]))):
        own, waited = _own(nodes, path, told), _waiting_times(trace, path)
        turns = [n for n in path if n in own and nodes[n].role == "assistant"]
        if not turns:
            continue
        known: dict[str, Scalar] = {"annotation_lines_unread": n_unread} if n_unread else {}
        known |= {DURATION_FROM: GAP} if own.intersection(waited) else {}
        facts = _facts(trace, episode, path)
        facts = replace(facts, id=f"{name}/branch-{i}" if i else name, model=model, metadata=facts.metadata | known)
        messages = [_logged(nodes[n], waited.get(n), texts, context=n not in own) for n in path]
        told.update(path)
        trajectory = to_trajectory(Conversation(messages, facts, context.where), context.vocab_size)
        drawn = [(nodes[n].logprobs, sum(nodes[n].mask)) for n in turns]
        logprobs = np.array([v for given, n in drawn for v in (given if len(given) == n else [None] * n)], np.float64)
        trajectory = replace(trajectory, logprobs=logprobs if np.isfinite(logprobs).any() else None)
        placed = all(segment.kind is not SegmentKind.UNPLACED for segment in trajectory.segments)
        if placed and HIDDEN in (trajectory.token_texts or ()):
            trajectory = replace(trajectory, spans=SpanQuality.EXACT)  # by ids, which texts do not confirm
        yield _measured(trajectory, np.concatenate([entropies[n] for n in turns]), facts.sampling_temperature)


def _paths(nodes: Sequence[Node]) -> list[list[int]]:
    """Root-to-leaf paths, in the order of their leaves, by which the trainer counts them."""
    for i, node in enumerate(nodes):
        if node.parent is not None and not 0 <= node.parent < i:
            raise DataError(f"field nodes[{i}].parent: {node.parent}; expected the number of an earlier node")
        if len(node.mask) != len(node.token_ids):
            raise DataError(f"field nodes[{i}].mask: {len(node.mask)} values for {len(node.token_ids)} token_ids")
    paths = [[leaf] for leaf in sorted({*range(len(nodes))} - {node.parent for node in nodes})]
    for path in paths:
        while (parent := nodes[path[-1]].parent) is not None:
            path.append(parent)
        path.reverse()
    return paths


def _own(nodes: Sequence[Node], path: Sequence[int], told: set[int]) -> set[int]:
    """Nodes that count here: not told before, no result of a call that was, no assistant's message that is a prompt."""
    new = [n for n in path if n not in told]
    first = next((i for i, n in enumerate(new) if nodes[n].role == "assistant"), 0) if told else 0
    has_sampled = any(node.sampled for node in nodes)
    return {n for n in new[first:] if nodes[n].sampled or nodes[n].role != "assistant" or not has_sampled}


def _logged(node: Node, waited: float | None, texts: Mapping[int, bytes], *, context: bool) -> LoggedMessage:
    (message, *_) = to_messages(node.message)
    ids = [id for id, drawn in zip(node.token_ids, node.mask, strict=True) if drawn]
    is_said = bool(ids) and node.role == "assistant"
    tokens = pack(drawn_tokens(ids, texts, len(message.tool_calls or ()))) if is_said else NO_TOKENS
    unseen = message_text(message.content) if HIDDEN in tokens.texts else ""
    thought = "\n".join(filter(None, (message.reasoning_content, unseen))) or None
    message = msgspec.structs.replace(message, reasoning_content=thought, duration_s=waited)
    return LoggedMessage(message, tokens, context=context)


def _waiting_times(trace: Trace, path: Sequence[int]) -> dict[int, float]:
    """Seconds of each result: those between two requests to the model, shared by the results in between."""
    times = {call.node: call.time for call in trace.calls if inside(call.time, "end")}
    waited, results, before = dict[int, float](), list[int](), math.nan
    for n in path:
        if trace.nodes[n].role == "tool":
            results.append(n)
        elif trace.nodes[n].sampled:
            if (gap := seconds(inside(times.get(n), "start")) - before) >= 0:
                waited |= dict.fromkeys(results, gap / max(len(results), 1))
            results, before = [], seconds(inside(times.get(n), "end"))
    return waited


def _facts(trace: Trace, episode: Trace, path: Sequence[int]) -> Facts:
    on_path = frozenset(path)
    calls = [call for call in trace.calls if call.node in on_path]
    temperatures = {finite(inside(call.sampling, "temperature")) for call in calls}
    data = inside(trace.task if trace.task is not None else episode.task, "data")
    scored = [r if isinstance(r, Mapping) else {"score": r} for r in (trace.rewards or {}).values() if r is not None]
    parts = [(finite(r.get("score")), finite(r.get("weight", 1.0))) for r in scored]
    reward = sum(s * w for s, w in parts if s is not None and w is not None) if parts else None
    costs = [cost for call in calls if (cost := finite(inside(call.usage, "cost"))) is not None]
    groups = (inside(episode.group, "id"), inside(episode.task, "hash"))
    group = next((group for group in groups if group and isinstance(group, str)), None)
    agent = inside(trace.agent, "name") if len(episode.traces or ()) > 1 else None
    return Facts(
        group_id=f"{group}/{agent}" if group and agent else group,
        sampling_temperature=temperatures.pop() if len(temperatures) == 1 else None,
        golden_answers=golden_answers(inside(data, "golden_answers") or inside(data, "answer")),
        outcome=outcome_of(reward),
        finish_reason=calls[-1].finish_reason if calls else None,
        metadata=_metadata(trace, episode, path)
        | unfit_outcome(reward)
        | tool_kinds(trace.tools)
        | ({COST: math.fsum(costs)} if costs else {}),
    )


def _metadata(trace: Trace, episode: Trace, path: Sequence[int]) -> dict[str, Scalar]:
    advantages = {value for n in path for value in trace.nodes[n].advantages or ()}
    known = {
        "episode": episode.id if episode.traces is not None else None,
        "env_name": inside(episode.env, "name") or inside(episode.env, "id"),
        "agent": inside(trace.agent, "name"),
        "work": inside(episode.run, "work", "type"),
        "step": inside(episode.run, "work", "step"),
        "policy_version": inside(episode.run, "work", "policy", "start"),
        "stop_condition": trace.stop_condition,
        "advantage": finite(advantages.pop()) if len(advantages) == 1 else None,
    }
    known |= {f"reward/{name}": inside(value, "score") for name, value in (trace.rewards or {}).items()}
    known |= {f"metric/{name}": value for name, value in (trace.metrics or {}).items()}
    return {key: value for key, value in scalars(known).items() if value is not None}


def _measured(trajectory: Trajectory, entropy: FloatArray, temperature: float | None) -> Trajectory:
    """The trajectory with the trainer's entropies, which are exact but for their rounding."""
    if not np.isfinite(entropy).any():
        return trajectory
    if (entropy < -_NEGATIVE_TOLERANCE_NATS).any():
        raise DataError(f"field entropies: {np.nanmin(entropy):.4g} is negative; expected nats")
    printed = entropy[np.isfinite(entropy) & (entropy != 0.0)]
    scaled = ((d, printed * 10.0**d) for d in range(1 if len(printed) >= _MANY_VALUES else _DECIMALS, _DECIMALS + 1))
    decimals = next((d for d, v in scaled if np.allclose(v, np.rint(v), rtol=1e-6, atol=1e-6)), None)
    point = np.maximum(entropy if decimals is None else np.round(entropy, decimals), 0.0)
    trajectory = replace(trajectory, entropy=point, estimator=Estimator.EXACT, temperature=temperature)
    if decimals is None:  # with all digits
        return trajectory
    lower, upper = np.maximum(point - 0.5 * 10.0**-decimals, 0.0), point + 0.5 * 10.0**-decimals
    return replace(trajectory, entropy_lower=lower, entropy_upper=upper, estimator=Estimator.TOP_K)


def _entropies(trace: Trace, paths: Sequence[Sequence[int]], log: str) -> tuple[list[FloatArray], int]:
    """Of each node, the entropies of its drawn tokens in nats, NaN where unknown; and annotations that are damaged."""
    masks = [np.array(node.mask, dtype=np.bool_) for node in trace.nodes]
    found = [np.full(len(mask), np.nan) for mask in masks]
    for i, node in enumerate(trace.nodes):
        if node.entropies is not None and len(node.entropies) != masks[i].sum():
            raise DataError(f"field nodes[{i}].entropies: {len(node.entropies)} values for {masks[i].sum()} tokens")
        if node.entropies:
            found[i][masks[i]] = np.array(node.entropies, dtype=np.float64)
    folder = Path(log).parent
    base = (folder.parent if folder.name == "stream" else folder) / "annotations"
    files = sorted((base / "trainer").glob("*.jsonl*")) or sorted(base.glob("trainer.jsonl*"))
    spool, places, n_unread = _annotated(tuple((file, file.stat().st_size) for file in files))
    for number, path in enumerate(paths):
        place, total = places.get((trace.id, number), range(0)), sum(len(masks[n]) for n in path)
        spool.seek(place.start)
        values = np.frombuffer(spool.read(len(place)), dtype=np.float64)
        if len(values) > total:
            raise DataError(f"trace {trace.id}: {len(values)} entropies of the trainer for {total} tokens")
        for n in path:
            known, values = values[: len(masks[n])], values[len(masks[n]) :]
            found[n][: len(known)] = np.where(np.isfinite(known), known, found[n][: len(known)])
    return [values[mask] for values, mask in zip(found, masks, strict=True)], n_unread


@lru_cache(maxsize=2)
def _annotated(files: tuple[tuple[Path, int], ...]) -> tuple[IO[bytes], dict[tuple[str | None, int], range], int]:
    """The trainer's entropies, on disk, as they may exceed the memory; where each path's last lie; damaged lines."""
    spool, places, n_unread = tempfile.TemporaryFile(), dict[tuple[str | None, int], range](), 0  # noqa: SIM115
    for file, _ in files:
        with opened(str(file)) as raw:
            for line in text_records(raw):
                try:
                    update = decode_line(line.data, _UPDATE)
                except DataError:
                    n_unread += line.complete  # one without an end is still being written
                    continue
                for branch in update.branches:
                    if branch.entropies is not None:
                        start = spool.tell()
                        spool.write(np.array(branch.entropies, dtype=np.float64).tobytes())
                        places[update.trace_id, branch.index] = range(start, spool.tell())
    return spool, places, n_unread
