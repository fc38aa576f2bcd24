r"""How the gold answer is elicited: the text whose probability a probe measures.

The text stands directly after the tool's result, as the start of the next assistant turn. By default it is the answer
in the form in which the trajectory gave its own: inside `<answer>...</answer>` with the same white space, inside
`\boxed{...}`, after `####`, or bare. A trajectory without a final answer takes the form most common among the others.
What comes before the answer (`<answer>`) is given to the model and not counted: whether it would answer *now* is
another question than *what* it would answer. So the measured number is log P(answer | state, opener), as in IGPO,
whose reward is the change of the answer's probability.

A policy that always says a sentence before its answer is off its path where the answer stands alone. For it there is
the form `sentence`: the opener is the trajectory's own sentence up to where its final turn first states its answer ("So
she was born in"). That sentence may name what earlier calls found, which takes credit from them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from deltah.core.types import SegmentKind, StopReason, Trajectory
from deltah.errors import InvalidValueError
from deltah.probe.queries import TextContinuation
from deltah.tasks.graders import extract_answer

FIELD = "{answer}"
"""Where the answer stands in a template."""

BARE = FIELD
SENTENCE = "sentence"
"""In place of a template: the trajectory's own sentence."""
_READ_CHARS = 4000
"""The form of the answer is looked for in so many last characters."""
_TAGGED = re.compile(r"<answer>(\s*)(?=\S).*?(\s*)</answer>", re.DOTALL)
_SENTENCE_END = re.compile(r"[.!?]\s+|\n+")
_HASHES = re.compile(r"####(\s*)\S")


def check_template(template: str) -> str:
    """Return a user's template.

    Raises:
        InvalidValueError: if the answer does not stand in it exactly once.
    """
    if template != SENTENCE and template.count(FIELD) != 1:
        raise InvalidValueError(
            f"the answer template {template!r} holds {FIELD} {template.count(FIELD)} times; expected once, "
            f"as in '<answer>{FIELD}</answer>', or {SENTENCE!r} for the trajectory's own sentence"
        )
    return template


def template_of(text: str) -> str:
    r"""Template of the form in which a text gives its final answer; `{answer}` alone where it has no form."""
    text = text[-_READ_CHARS:]
    if tagged := list(_TAGGED.finditer(text)):
        return f"<answer>{tagged[-1][1]}{FIELD}{tagged[-1][2]}</answer>"
    if "\\boxed{" in text:
        return f"\\boxed{{{FIELD}}}"
    if hashed := list(_HASHES.finditer(text)):
        return f"####{hashed[-1][1]}{FIELD}"
    return BARE


def sentence_of(text: str) -> str:
    """Template of the sentence in which a text first states its final answer; as `template_of` where it has none."""
    answer = extract_answer(text[-_READ_CHARS:]) or ""
    at = text.find(answer)
    start = max((m.end() for m in _SENTENCE_END.finditer(text, 0, max(at, 0))), default=0)
    opener = text[start : max(at, 0)]
    return f"{opener}{FIELD}" if opener.strip() and FIELD not in opener else template_of(text)


def templates(trajectories: Sequence[Trajectory], wanted: str | None) -> list[str]:
    """Template of each trajectory: the one wanted, or that of its own answer; without one, the most common form."""
    if wanted is not None and wanted != SENTENCE:
        return [wanted] * len(trajectories)
    texts = [final_text(trajectory) for trajectory in trajectories]
    forms = Counter(template_of(text) for text in texts if text is not None).most_common(1)
    common, own = forms[0][0] if forms else BARE, template_of if wanted is None else sentence_of
    return [common if text is None else own(text) for text in texts]


def final_text(trajectory: Trajectory) -> str | None:
    """What the policy wrote in its last turn, if that turn made no call and was not cut off."""
    turns = [s.turn for s in trajectory.segments if s.kind.sampled]
    ends_open = trajectory.stop_reason in (StopReason.LENGTH, StopReason.UNANSWERED_CALL)
    if not turns or ends_open or any(call.turn == turns[-1] for call in trajectory.calls):
        return None
    last = (s for s in trajectory.segments if s.turn == turns[-1] and s.kind is SegmentKind.REASONING)
    return "".join(trajectory.segment_text(segment) or "" for segment in last) or None


def continuations(golden_answers: Sequence[str], template: str, limit: int) -> tuple[TextContinuation, ...]:
    """One continuation for each of the first `limit` distinct golden answers."""
    opener, _, closer = template.partition(FIELD)
    answers = list(dict.fromkeys(a.strip() for a in golden_answers if a.strip()))[:limit]
    return tuple(
        TextContinuation(text=f"{opener}{answer}{closer}", opener=len(opener), closer=len(closer)) for answer in answers
    )
