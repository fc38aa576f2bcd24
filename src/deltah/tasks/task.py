"""A task: a question, the answers that count as right, and how to grade."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from deltah.core.types import Scalar
from deltah.errors import InvalidValueError
from deltah.tasks.graders import GRADERS


@dataclass(frozen=True, kw_only=True)
class Task:
    """One question with its gold answers.

    Raises:
        InvalidValueError: if the question or an answer is blank, no answer is given, or the kind is unknown.
    """

    id: str
    """Unique in its file."""
    question: str
    golden_answers: tuple[str, ...]
    """Any of them is right."""
    kind: str = "qa"
    """Its grader: a name in `GRADERS`, or `package.module:function`."""
    supporting: tuple[str, ...] = ()
    """Ids of the documents that hold the answer; empty where the source does not say."""
    metadata: Mapping[str, Scalar] = field(default_factory=dict)
    """Flat facts of the source (data set, split, level)."""

    def __post_init__(self) -> None:
        GRADERS.resolve(self.kind)
        object.__setattr__(self, "golden_answers", tuple(self.golden_answers))
        object.__setattr__(self, "supporting", tuple(self.supporting))
        object.__setattr__(self, "metadata", MappingProxyType(dict(self.metadata)))
        if not self.question.strip():
            raise InvalidValueError(f"task {self.id!r}: the question is blank")
        if not self.golden_answers or not all(answer.strip() for answer in self.golden_answers):
            raise InvalidValueError(f"task {self.id!r}: needs one or more answers, none of them blank")

    def __reduce__(self) -> tuple[object, ...]:
        state = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return _rebuild, (state | {"metadata": dict(self.metadata)},)


def _rebuild(state: dict[str, object]) -> Task:
    """Unpickle: `MappingProxyType` does not pickle, so the fields travel as a plain dict."""
    return Task(**state)  # type: ignore[arg-type]
