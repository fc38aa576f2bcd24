"""From tasks to the rows that a trainer samples, and from a sampled row to a graded `Trajectory`; for any trainer.

A rollout is, for each row, completion ids, a tool mask (1 on tokens the policy drew, 0 on tool results with their
template tokens) and the completion as messages. Maximal runs of 1 are the assistant messages in order; one run of 0 is
one round, however many parallel calls it answers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import takewhile
from typing import Any

import numpy as np

from deltah.core.align import runs
from deltah.core.types import (
    CallStatus,
    Estimator,
    FloatArray,
    Segment,
    SegmentKind,
    SpanQuality,
    StopReason,
    ToolCall,
    Trajectory,
)
from deltah.engines.config import RolloutConfig
from deltah.errors import DataError
from deltah.tasks import OUTCOME_GRADER, Task, grade
from deltah.traces.borders import split_message
from deltah.traces.conversation import message_text
from deltah.traces.messages import Message


def trajectory_from_row(
    prompt: Sequence[Message],
    completion: Sequence[Message],
    tool_mask: Sequence[int],
    entropy: FloatArray,
    token_texts: Sequence[str],
    *,
    truncated: bool,
    **fields: Any,
) -> Trajectory:
    """Build the trajectory of one rollout; its T tokens are those of the completion.

    Args:
        prompt: Messages before the completion.
        completion: Assistant and tool messages.
        tool_mask: (T,) 1 on the tokens that the policy drew.
        entropy: (T,) nats of the distribution each token was drawn from; tool tokens may hold anything.
        token_texts: (T,) text of each token.
        truncated: Whether the token budget cut the last message.
        **fields: Further fields of `Trajectory`; its `id` and the temperature should be among them.
    """
    sampled = np.asarray(tool_mask, dtype=np.bool_)
    messages = [message for message in completion if message.get("role") == "assistant"]
    segments, exact = _segments(prompt, sampled, messages, token_texts)
    calls = _calls(completion, token_texts, segments)
    pending = bool(calls) and calls[-1].status is CallStatus.UNANSWERED
    stop = StopReason.UNANSWERED_CALL if pending else StopReason.LENGTH if truncated else StopReason.ANSWERED
    return Trajectory(
        segments=segments,
        calls=calls,
        entropy=np.where(sampled, np.maximum(entropy, 0.0), np.nan),
        estimator=Estimator.EXACT,
        token_texts=tuple(token_texts),
        stop_reason=stop,
        spans=SpanQuality.EXACT if exact else SpanQuality.APPROXIMATE,
        **fields,
    )


def _segments(
    prompt: Sequence[Message], sampled: np.ndarray, messages: Sequence[Message], token_texts: Sequence[str]
) -> tuple[tuple[Segment, ...], bool]:
    """Segments of the whole row, and whether every border is exact."""
    text = "\n".join(message_text(message.get("content")) for message in prompt)
    segments = [Segment(kind=SegmentKind.PROMPT, start=0, stop=0, turn=0, text=text)]
    policy, exact = runs(sampled), True
    for turn, (start, stop) in enumerate(policy):
        if start > segments[-1].stop:
            segments.append(
                Segment(kind=SegmentKind.RESULT, start=segments[-1].stop, stop=start, turn=max(turn - 1, 0))
            )
        names = [call["function"]["name"] for call in _tool_calls(messages[turn])] if turn < len(messages) else []
        split = split_message(token_texts[start:stop], names)
        exact &= split.exact
        segments += [Segment(kind=s.kind, start=start + s.start, stop=start + s.stop, turn=turn) for s in split.spans]
    if len(sampled) > segments[-1].stop:
        turn = max(len(policy) - 1, 0)
        segments.append(Segment(kind=SegmentKind.RESULT, start=segments[-1].stop, stop=len(sampled), turn=turn))
    return tuple(segments), exact and len(messages) == len(policy)


def _calls(
    completion: Sequence[Message], token_texts: Sequence[str], segments: Sequence[Segment]
) -> tuple[ToolCall, ...]:
    """Calls of every assistant message, matched to the tool messages that follow it."""
    calls: list[ToolCall] = []
    turn = -1
    for position, message in enumerate(completion):
        if message.get("role") != "assistant":
            continue
        turn += 1
        answers = takewhile(lambda later: later.get("role") == "tool", completion[position + 1 :])
        results = [(answer.get("name"), message_text(answer.get("content"))) for answer in answers]
        for i, call in enumerate(_tool_calls(message)):
            name, given = call["function"]["name"], call["function"].get("arguments")
            # The first result of the tool: TRL appends synchronous results before asynchronous ones.
            at = next((k for k, (tool, _) in enumerate(results) if tool == name), None)
            result = None if at is None else results.pop(at)[1]
            calls.append(
                ToolCall(
                    id=f"{turn}.{i}",
                    name=str(name),
                    arguments=given if isinstance(given, str) else json.dumps(given, ensure_ascii=False, default=str),
                    turn=turn,
                    result=result,
                    status=CallStatus.of(result),
                )
            )
    if not calls or calls[-1].turn != turn:  # call text of the last message that was not parsed: an unanswered call
        for i, span in enumerate(s for s in segments if s.kind is SegmentKind.CALL and s.turn == turn):
            text = "".join(token_texts[span.start : span.stop])
            calls.append(ToolCall(id=f"{turn}.{i}", name="", arguments=text, turn=turn, status=CallStatus.UNANSWERED))
    return tuple(calls)


def _tool_calls(message: Message) -> list[Any]:
    calls = message.get("tool_calls") or []
    return [call for call in calls if isinstance(call, Mapping) and isinstance(call.get("function"), Mapping)]


def last_text(completion: Sequence[Message]) -> str:
    """Text of the last message, if the assistant's and without a call: what a grader reads; otherwise empty."""
    last = completion[-1] if completion else {}
    return message_text(last.get("content")) if last.get("role") == "assistant" and not last.get("tool_calls") else ""


def decode_tokens(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """Text of each token; tokens that hold parts of one character have its text on the first of them."""
    texts = tokenizer.batch_decode([[i] for i in ids], skip_special_tokens=False, clean_up_tokenization_spaces=False)
    broken = np.array(["\ufffd" in text for text in texts], dtype=np.bool_)
    for start, stop in runs(broken):
        joined = tokenizer.decode(ids[start:stop], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        texts[start:stop] = [joined, *[""] * (stop - start - 1)]
    return list(texts)


def rows_of(tasks: Sequence[Task], config: RolloutConfig) -> tuple[list[dict[str, Any]], Callable[..., list[float]]]:
    """Dataset rows of tasks (prompt and what a trajectory records), and the reward function that grades answers."""
    if config.grader is not None:
        tasks = [replace(task, kind=config.grader) for task in tasks]
    by_id = {task.id: task for task in tasks}
    if len(by_id) != len(tasks):
        raise DataError("two tasks share an id; give each its own 'id'")

    def outcome(completions: list[Any], task_id: list[str], **columns: Any) -> list[float]:
        pairs = zip(completions, task_id, strict=True)
        return [grade(by_id[key], last_text(completion)).score for completion, key in pairs]

    system = [{"role": "system", "content": config.system_prompt}] if config.system_prompt else []
    rows = [
        {
            "prompt": [*system, {"role": "user", "content": task.question}],
            "task_id": task.id,
            "question": task.question,
            "golden_answers": list(task.golden_answers),
            "facts": json.dumps({**task.metadata, OUTCOME_GRADER: task.kind}),
        }
        for task in tasks
    ]
    return rows, outcome
