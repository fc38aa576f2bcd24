"""Importer for OpenAI-style chat logs with logprobs, of vLLM, SGLang, llama.cpp and compatible servers.

Line forms: `messages`, in which each assistant message carries its choice's `logprobs` block, is one conversation;
`request` with `response` is one API call, and the calls of one conversation are joined (`deltah.traces.joining`); so is
a bare response. A response may be whole, a list of streamed chunks, the text of an event stream, or spread over lines
of one chunk each, bare or as their `response` (`deltah.traces.chunks`). The batch API's `body` wrappers are opened.

* segments: the logprob tokens of each assistant message, split by `deltah.traces.spans`. Every other message is a
  segment without tokens that carries its text; so is a call, or reasoning, that the server left out of the logprobs.
* calls: `tool_calls`, or `function_call`, or those left in the text (`deltah.traces.dialects`); `call-N` where the
  server gave no id.
* result: the `tool` message with the call's id, else the oldest unanswered call gets it; none: unanswered.
* duration_s: of the `tool` message, where a client logged it; else the time between an API call's end (`started_at` +
  `duration_s`) and the start of the next, shared by the results in between: the client's own work, or a person's pause,
  is in it, and `duration_s_from` in the metadata says so.
* status: error where the result reads as one; the rule is `deltah.core.results.is_error`.
* entropy: `top_logprobs` through `deltah.traces.topk`; exact where they cover `vocab_size` tokens; NaN without.
* vocab_size: the line's, else the caller's, else that of the model's family (`deltah.traces.vocabularies`), else
  `deltah.core.entropy.DEFAULT_VOCAB_SIZE`; `metadata["vocab_size_from"]` names one that nobody stated.
* temperature: of the *reported* distribution: 1 if `logprobs_mode` is raw, the sampling temperature (1 for greedy
  decoding) if it is processed or 1; None where the log does not say, or mixes several.
* metadata: flat `metadata`, `sampling_temperature`, `logprobs_mode`, `n_choices` if more than one was drawn,
  `n_requests` of a joined conversation, `unjoined` where its beginning is not in the log, `mixed_sampling`,
  `tokens_without_logprobs` where a response's `usage` counts more drawn tokens than its logprobs have entries.
* outcome: `outcome`, else `score`, if in [0, 1]; another number stays in metadata as `score_outside_0_1`.
* golden_answers: `golden_answers`, else `answer`.

`spans` is approximate where a border lies inside a token, where a message has calls but neither the call's text nor
the message's text is what the logprob tokens spell, or where the reasoning has no logprobs although the answer has.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from deltah.core.types import Estimator, Scalar, SpanQuality, StopReason, Trajectory
from deltah.errors import ConfigError, DataError, DeltahError, InvalidValueError, VocabularySizeError
from deltah.traces.chatlog import ChatLine, Message
from deltah.traces.chunks import LoggedChunk, logged_chunk
from deltah.traces.conversation import Conversation, message_text
from deltah.traces.dialogue import Dialogue, Exchange, Facts, Said, read_call, read_conversation
from deltah.traces.importing import IMPORTERS, RecordContext
from deltah.traces.tokens import concatenate
from deltah.traces.topk import measure
from deltah.traces.vocabularies import vocab_size_of

TOKENS_WITHOUT_LOGPROBS = "tokens_without_logprobs"
"""Metadata key: drawn tokens of a trajectory that its logprobs do not list."""


@IMPORTERS.register(
    "openai",
    meaning="OpenAI-style chat log with logprobs",
    fields=(("messages", "response", "request", "choices"),),
    schema=ChatLine,
)
def read(log: ChatLine, context: RecordContext) -> Trajectory | Exchange | LoggedChunk:
    """Read one line: a conversation, an API call of one, or a chunk of a stream.

    Raises:
        DataError: if the line does not fit the format, its response is an error, or its numbers contradict each other.
        ConfigError: if the caller's vocabulary size is too small for what the line holds.
    """
    if (chunk := logged_chunk(log)) is not None:
        return chunk
    if log.response is not None or log.chunks is not None or log.choices is not None:
        return read_call(log, context.where)
    dialogue = read_conversation(log, context.where)
    return to_trajectory(dialogue, default_id=context.default_id, vocab_size=context.vocab_size)


def to_trajectory(dialogue: Dialogue, *, default_id: str, vocab_size: int | None = None) -> Trajectory:
    """Build the trajectory of one conversation.

    Args:
        dialogue: What was said.
        default_id: Used if the conversation has no id.
        vocab_size: V, used if the log does not state it.

    Raises:
        DataError: if its numbers contradict each other, or the size that its records state, or its model's name, is
            too small for what it holds.
        ConfigError: if `vocab_size` is: it is wrong for all of the log.
    """
    facts = dialogue.facts
    conversation = Conversation()
    for said in dialogue.said:
        if said.context:
            conversation.add_context(said.message)
        else:
            conversation.add(said.message, said.tokens.texts)
    tokens = concatenate([said.tokens for said in dialogue.said if not said.context])
    stated = facts.vocab_size or vocab_size
    size, origin = vocab_size_of(facts.model) if not stated else (stated, None)
    try:
        measured = measure(tokens, size, requested=facts.top_logprobs)
    except VocabularySizeError as error:
        raise _wrong_size(error, facts, vocab_size) from error
    known: dict[str, Scalar] = {"vocab_size": size, "vocab_size_from": origin}
    assumed = known if origin is not None and measured.estimator is Estimator.TOP_K else {}
    uncounted = {TOKENS_WITHOUT_LOGPROBS: facts.n_without_logprobs} if facts.n_without_logprobs else {}
    last = dialogue.said[-1].message
    stop_reason = _stop_reason(conversation, last, facts.finish_reason)
    try:
        return Trajectory(
            id=facts.id if facts.id is not None else default_id,
            segments=tuple(conversation.segments),
            calls=conversation.tool_calls(),
            entropy=measured.entropy,
            entropy_lower=measured.lower,
            entropy_upper=measured.upper,
            estimator=measured.estimator,
            temperature=_temperature(facts),
            logprobs=tokens.logprobs if np.isfinite(tokens.logprobs).any() else None,
            token_texts=tuple(tokens.texts) if len(tokens) else None,
            group_id=facts.group_id,
            question=facts.question if facts.question is not None else _first_user_text(dialogue.said),
            prediction=facts.prediction if facts.prediction is not None else _final_text(last, stop_reason),
            golden_answers=facts.golden_answers,
            outcome=facts.outcome,
            stop_reason=stop_reason,
            spans=SpanQuality.EXACT if conversation.exact else SpanQuality.APPROXIMATE,
            model=facts.model,
            metadata=facts.metadata | assumed | uncounted,
        )
    except InvalidValueError as error:
        raise DataError(str(error)) from error


def _wrong_size(error: VocabularySizeError, facts: Facts, given: int | None) -> DeltahError:
    """The error of a size that is too small by who stated it: the caller's is wrong for the whole log."""
    if facts.vocab_size:
        return DataError(f"field vocab_size: {error}")
    if given:
        return ConfigError(f"--vocab-size: {error}")
    return DataError(str(error) if facts.model is None else f"model {facts.model!r}: {error}")


def _temperature(facts: Facts) -> float | None:
    """Temperature of the distribution that the log-probabilities speak of."""
    sampling, mode = facts.sampling_temperature, facts.logprobs_mode or ""
    if mode.startswith("raw") or (mode.startswith("processed") and sampling == 0.0):
        return 1.0  # a server that takes the most likely token divides by no temperature
    return sampling if mode.startswith("processed") or sampling == 1.0 else None


def _first_user_text(said: Sequence[Said]) -> str | None:
    return next((message_text(s.message.content) for s in said if s.message.role == "user"), None)


def _final_text(last: Message, stop_reason: StopReason) -> str | None:
    return message_text(last.content).strip() if stop_reason is StopReason.ANSWERED else None


def _stop_reason(conversation: Conversation, last: Message, finish_reason: str | None) -> StopReason:
    if last.role == "assistant" and finish_reason == "length":
        return StopReason.LENGTH
    if conversation.has_open_calls:
        return StopReason.UNANSWERED_CALL
    return StopReason.ANSWERED if last.role == "assistant" else StopReason.UNKNOWN
