"""The trajectory, its segments and its calls: frozen records that every part of deltah shares.

Axes: T tokens, R tool rounds, C tool calls, G trajectories of a group. **Index t of every per-token array describes
the distribution that token t was drawn from** (see `deltah.core.align`). A quantity that was not measured is NaN or
None, never 0. What can be derived (masks, rounds, counts) is a property, so that two copies cannot disagree.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property, partial
from itertools import groupby, pairwise
from types import MappingProxyType
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from deltah.core.align import TokenTexts
from deltah.core.failures import is_error
from deltah.core.registry import choice
from deltah.errors import InvalidValueError

FloatArray: TypeAlias = NDArray[np.float64]
IntArray: TypeAlias = NDArray[np.int64]
BoolArray: TypeAlias = NDArray[np.bool_]
Scalar: TypeAlias = str | int | float | bool | None


class SegmentKind(StrEnum):
    """Who wrote a run of tokens, and as what."""

    PROMPT = "prompt"
    """System and user text with its template tokens; not sampled."""
    REASONING = "reasoning"
    """Sampled text outside tool calls, the final answer included: the tokens that H(r_k) pools."""
    CALL = "call"
    """Sampled tokens that spell a tool call, delimiters included."""
    CONTROL = "control"
    """Sampled tokens that only delimit (end of turn, think tags): trained on, never pooled."""
    UNPLACED = "unplaced"
    """Sampled tokens of which the log does not show whether they are reasoning or spell a call: ΔH is undefined."""
    RESULT = "result"
    """Tool results with the template tokens around them; not sampled."""

    @property
    def sampled(self) -> bool:
        """Whether the policy drew these tokens; exactly these belong to the response mask."""
        return self not in (SegmentKind.PROMPT, SegmentKind.RESULT)


UNKNOWN_ARGUMENTS = "?"
"""Instead of a call's arguments: the log has none, or under names that are not known; such calls equal no other."""
_ROUNDING_NATS = 1e-3  # low-precision arithmetic may put the entropy of a point mass this far below 0
_MOST_NATS = 1e6  # far above any distribution over tokens; sums of greater squares may overflow


class CallStatus(StrEnum):
    """How a tool call ended."""

    OK = "ok"
    ERROR = "error"
    """The tool answered with an error text."""
    UNANSWERED = "unanswered"
    """No result followed: a limit cut the trajectory, or the text did not parse as a call."""

    @classmethod
    def of(cls, result: str | None, failed: bool | None = None) -> CallStatus:
        """Status of a call with this result; whether it `failed` is read from the text unless the log states it."""
        if result is None:
            return cls.UNANSWERED
        return cls.ERROR if (is_error(result) if failed is None else failed) else cls.OK


class Estimator(StrEnum):
    """Where the per-token entropies come from."""

    EXACT = "exact"
    """Every probability of the vocabulary was seen."""
    TOP_K = "top_k"
    """Point estimate between certified bounds, from the k best log-probabilities."""
    NONE = "none"


class SpanQuality(StrEnum):
    """How sure the borders between reasoning, call and result tokens are."""

    EXACT = "exact"
    APPROXIMATE = "approximate"


class StopReason(StrEnum):
    """Why a trajectory ended."""

    ANSWERED = "answered"
    LENGTH = "length"
    UNANSWERED_CALL = "unanswered_call"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """One call of one tool."""

    id: str
    """Unique in its trajectory."""
    name: str
    arguments: str
    """Raw text as the model wrote it, JSON where the format is JSON."""
    turn: int
    """Index of the assistant message that issued it; calls of one turn form one round."""
    result: str | None = None
    """Text given back to the model; None when no result followed."""
    status: CallStatus = CallStatus.OK
    duration_s: float | None = None
    """Measured wall time in seconds; None when not measured."""

    def __post_init__(self) -> None:
        if type(self.status) is not CallStatus:
            object.__setattr__(self, "status", choice(CallStatus, self.status, "call status"))
        if self.turn < 0:
            raise InvalidValueError(
                f"call {self.id!r}: turn is {self.turn}; expected the index of an assistant message"
            )
        if (self.result is None) != (self.status is CallStatus.UNANSWERED):
            raise InvalidValueError(
                f"call {self.id!r}: status {self.status.value!r} does not fit a result of {self.result!r}; "
                "a call without a result is 'unanswered', and only such a call is"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """Half-open token span [start, stop) of one kind."""

    kind: SegmentKind
    start: int
    stop: int
    turn: int
    """Index of the assistant message that wrote this span, whose calls it answers, or (prompt) that follows it."""
    text: str | None = None
    """Text of a span whose tokens are unknown (start == stop); None where `Trajectory.token_texts` has it."""

    def __post_init__(self) -> None:
        if type(self.kind) is not SegmentKind:
            object.__setattr__(self, "kind", choice(SegmentKind, self.kind, "segment kind"))

    @property
    def n_tokens(self) -> int:
        """Length of the span in tokens."""
        return self.stop - self.start


class Round(NamedTuple):
    """All calls of one turn with their results; k = 1 ... R in the notation of the method."""

    k: int
    turn: int
    calls: tuple[int, ...]
    """Indices into `Trajectory.calls`."""


def _read_only(values: object, dtype: type[np.generic], name: str, length: int) -> NDArray[np.generic] | None:
    """Read-only copy (length,); None for None."""
    if values is None:
        return None
    array = np.array(values, dtype=dtype)
    if array.shape != (length,):
        raise InvalidValueError(f"{name} has shape {array.shape}; expected one number per token, ({length},)")
    array.setflags(write=False)
    return array


@dataclass(frozen=True, kw_only=True)
class Trajectory:
    """One rollout: its tokens, what was measured on them, its calls, and how it was graded.

    Raises:
        InvalidValueError: if segments do not partition 0..T, an array has another length than T, an entropy is
            impossible, outside its bounds or on a token that was not sampled, or calls share an id or are out of order.
    """

    id: str
    segments: tuple[Segment, ...]
    """In order; together they cover 0..T without gap or overlap."""
    calls: tuple[ToolCall, ...] = ()
    """In the order they were issued."""
    entropy: FloatArray | None = None
    """(T,) nats; exact, or the point estimate; NaN where not measured. None: nothing was measured."""
    entropy_lower: FloatArray | None = None
    """(T,) nats, certified; None when exact (the bounds are `entropy` itself)."""
    entropy_upper: FloatArray | None = None
    """(T,) nats, certified, +inf where no upper bound is known; None when exact."""
    estimator: Estimator = Estimator.NONE
    temperature: float | None = None
    """Temperature of the distribution that the entropies describe; None when the source does not say."""
    logprobs: FloatArray | None = None
    """(T,) log-probability of each sampled token, NaN elsewhere."""
    token_ids: IntArray | None = None
    """(T,) vocabulary indices."""
    token_texts: Sequence[str] | None = None
    """(T,) text of each token, for display; their concatenation is the text. Kept as a tuple or `TokenTexts`."""
    group_id: str | None = None
    """Trajectories that answer the same prompt under the same policy share it."""
    question: str | None = None
    prediction: str | None = None
    """Final answer that the grader read."""
    golden_answers: tuple[str, ...] = ()
    outcome: float | None = None
    """F1 of the method: score of the task's grader in [0, 1]; None when not graded."""
    stop_reason: StopReason = StopReason.UNKNOWN
    spans: SpanQuality = SpanQuality.EXACT
    model: str | None = None
    metadata: Mapping[str, Scalar] = field(default_factory=dict)
    """Flat facts of the source (task, split, arm, training step)."""

    def __post_init__(self) -> None:
        n = len(self)
        for name, kind in (("estimator", Estimator), ("stop_reason", StopReason), ("spans", SpanQuality)):
            if type(value := getattr(self, name)) is not kind:
                object.__setattr__(self, name, choice(kind, value, name.replace("_", " ")))
        for name in ("entropy", "entropy_lower", "entropy_upper", "logprobs"):
            object.__setattr__(self, name, _read_only(getattr(self, name), np.float64, name, n))
        object.__setattr__(self, "token_ids", _read_only(self.token_ids, np.int64, "token_ids", n))
        object.__setattr__(self, "metadata", MappingProxyType(dict(self.metadata)))
        if self.token_texts is not None and not isinstance(self.token_texts, tuple | TokenTexts):
            object.__setattr__(self, "token_texts", tuple(self.token_texts))
        fault = next(self._faults(), None)
        if fault is not None:
            raise InvalidValueError(f"trajectory {self.id!r}: {fault}")

    def __reduce__(self) -> tuple[object, ...]:
        state = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return partial(Trajectory, **(state | {"metadata": dict(self.metadata)})), ()  # a mapping proxy is not pickled

    def _faults(self) -> Iterator[str]:
        """What breaks a rule, in words."""
        end, turn = 0, 0
        for segment in self.segments:
            if segment.start != end or segment.stop < segment.start:
                yield (
                    f"segment [{segment.start}, {segment.stop}) does not continue at token {end}; segments must cover "
                    "the tokens in order, without gap or overlap"
                )
            if segment.turn < turn:
                yield f"turn {segment.turn} comes after turn {turn}"
            end, turn = segment.stop, segment.turn
        if self.entropy is not None:
            yield from self._faults_of(self.entropy)
        elif self.entropy_lower is not None or self.entropy_upper is not None:
            yield "entropy bounds without an entropy"
        if len({call.id for call in self.calls}) != len(self.calls):
            yield "two calls share an id"
        if any(call.turn > later.turn for call, later in pairwise(self.calls)):
            yield "calls are not in the order they were issued"
        if self.token_texts is not None and len(self.token_texts) != len(self):
            yield f"{len(self.token_texts)} token texts for {len(self)} tokens"
        if self.outcome is not None and not 0.0 <= self.outcome <= 1.0:
            yield f"outcome {self.outcome} is not in [0, 1]"

    def _faults_of(self, entropy: FloatArray) -> Iterator[str]:
        off = np.isfinite(entropy) & ~self.response_mask
        if off.any():
            token = int(off.argmax())
            yield f"token {token} was not sampled but carries an entropy; set NaN on prompt and result tokens"
        lower, upper = self.entropy_lower, self.entropy_upper
        for values in (entropy,) if lower is None else (entropy, lower):
            if (wrong := (values < -_ROUNDING_NATS) | (values > _MOST_NATS)).any():
                token, value = int(wrong.argmax()), values[wrong.argmax()]
                range_ = "0 or more" if value < 0 else "at most the logarithm of the vocabulary's size"
                yield f"token {token} has an entropy of {value:.6g}; expected nats, {range_}"
        if (lower is not None and (lower > entropy).any()) or (upper is not None and (upper < entropy).any()):
            yield "an entropy lies outside its own bounds"

    def __len__(self) -> int:
        """Number of tokens T."""
        return self.segments[-1].stop if self.segments else 0

    @property
    def entropy_bounds(self) -> tuple[FloatArray, FloatArray]:
        """Certified (lower, upper), each (T,) nats: `entropy` when it is exact; an InvalidValueError without one."""
        if self.entropy is None:
            raise InvalidValueError(f"trajectory {self.id!r} carries no entropies")
        lower, upper = self.entropy_lower, self.entropy_upper
        return self.entropy if lower is None else lower, self.entropy if upper is None else upper

    @cached_property
    def _segment_lengths(self) -> IntArray:
        """(S,) tokens of each segment."""
        return np.array([segment.stop - segment.start for segment in self.segments], dtype=np.int64)

    @cached_property
    def response_mask(self) -> BoolArray:
        """(T,) True on the tokens that the policy drew."""
        return self.mask(kind for kind in SegmentKind if kind.sampled)

    def mask(self, kinds: Iterable[SegmentKind]) -> BoolArray:
        """(T,) True on the tokens of the given kinds."""
        wanted = tuple(kinds)  # few, and compared by identity: faster than a set, which hashes names
        chosen = np.array([segment.kind in wanted for segment in self.segments], dtype=np.bool_)
        mask = chosen.repeat(self._segment_lengths)
        mask.setflags(write=False)
        return mask

    @cached_property
    def rounds(self) -> tuple[Round, ...]:
        """Rounds 1 ... R: the calls of one turn form one round."""
        turns = groupby(range(len(self.calls)), key=lambda i: self.calls[i].turn)
        return tuple(Round(k=k, turn=turn, calls=tuple(calls)) for k, (turn, calls) in enumerate(turns, start=1))

    @property
    def n_calls(self) -> int:
        """All calls, failed and unanswered ones included: n of the method."""
        return len(self.calls)

    @cached_property
    def round_of_call(self) -> IntArray:
        """(C,) index k - 1 of the round each call belongs to, for indexing (R,) arrays."""
        return np.array([r.k - 1 for r in self.rounds for _ in r.calls], dtype=np.int64)

    def numbered_segments(self) -> list[tuple[int, Segment]]:
        """Segments with the index k of the method's segment r_k they stand in: the rounds issued in earlier turns."""
        turns = [r.turn for r in self.rounds]
        return [(bisect_left(turns, segment.turn), segment) for segment in self.segments]

    @cached_property
    def segment_of_token(self) -> IntArray:
        """(T,) index k of the method's segment r_k a token stands in: the rounds issued in earlier turns."""
        index = np.array([k for k, _ in self.numbered_segments()], dtype=np.int64).repeat(self._segment_lengths)
        index.setflags(write=False)
        return index

    def text(self, start: int, stop: int) -> str:
        """Text of tokens [start, stop); an InvalidValueError if the texts of the tokens are not known."""
        if self.token_texts is None:
            raise InvalidValueError(f"trajectory {self.id!r} carries no token texts")
        texts = self.token_texts
        return texts.join(start, stop) if isinstance(texts, TokenTexts) else "".join(texts[start:stop])

    def segment_text(self, segment: Segment) -> str | None:
        """Text of one of its segments; None where the record does not have it."""
        if segment.text is not None:
            return segment.text
        if self.token_texts is None:
            return None if segment.n_tokens else ""
        return self.text(segment.start, segment.stop)
