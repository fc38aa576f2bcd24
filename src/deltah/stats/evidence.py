"""Gold evidence: whether a call's result holds a document that the task names as supporting its answer.

Containment of word sequences: document and result are cut to their letters and digits, in lower case, so that quotes,
line breaks and the headings a retriever puts between title and text do not matter. A document that the tool cut short
is not found. A trajectory belongs to a task by `metadata["task_id"]`, else by the text of its question.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from deltah.core.types import Trajectory
from deltah.errors import InvalidValueError
from deltah.tasks import Task
from deltah.tools.search import Document

_WORDS: Final = re.compile(r"[^\W_]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Supporting documents of each task: id to word sequence."""

    by_id: dict[str, dict[str, str]]
    by_question: dict[str, dict[str, str]]
    missing: int
    """Supporting ids that the corpus lacks."""

    @classmethod
    def of(cls, tasks: Iterable[Task], documents: Iterable[Document]) -> Evidence:
        """Look up the supporting documents of tasks.

        Raises:
            InvalidValueError: if no task has a supporting document that the corpus holds.
        """
        listed = [task for task in tasks if task.supporting]
        wanted = {name for task in listed for name in task.supporting}
        contents = {d.id: words(d.contents) for d in documents if d.id in wanted}
        by_id = {t.id: {i: contents[i] for i in t.supporting if contents.get(i)} for t in listed}
        if not any(by_id.values()):
            raise InvalidValueError(
                f"no task has a supporting document in the corpus ({len(listed)} tasks name some); give the corpus "
                "whose ids stand in the tasks' field 'supporting'"
            )
        return cls(
            by_id={name: found for name, found in by_id.items() if found},
            by_question={t.question.strip(): by_id[t.id] for t in listed if by_id[t.id]},
            missing=len(wanted - contents.keys()),
        )

    def documents_of(self, trajectory: Trajectory) -> dict[str, str] | None:
        """Supporting documents of the trajectory's task; None where none is known."""
        named = trajectory.metadata.get("task_id")
        if named is not None and str(named) in self.by_id:
            return self.by_id[str(named)]
        return self.by_question.get((trajectory.question or "").strip())

    def retrieved(self, trajectory: Trajectory) -> Sequence[frozenset[str]] | None:
        """Ids of supporting documents that each call's result holds, (C,); None where the task names none."""
        documents = self.documents_of(trajectory)
        if documents is None:
            return None
        results = [words(call.result or "") for call in trajectory.calls]
        return [frozenset(i for i, text in documents.items() if text in result) for result in results]


def words(text: str) -> str:
    """Letters and digits in lower case, one space around every word; empty for a text without any."""
    found = _WORDS.findall(text.casefold())
    return f" {' '.join(found)} " if found else ""
