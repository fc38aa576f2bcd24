"""Tasks: questions with gold answers, readers for the field's file formats, and graders.

`read_tasks` reads a file, `grade` grades the final answer of a text. Nothing here knows an agent, a tool or an entropy.
math-verify and duckdb are imported where they are needed, not before.
"""

from deltah.tasks.graders import (
    GRADERS,
    OUTCOME_GRADER,
    Grade,
    exact_match,
    extract_answer,
    grade,
    math_equal,
    normalize_answer,
    token_f1,
)
from deltah.tasks.task_files import Task, read_tasks, task_from_row, task_rows

__all__ = [
    "GRADERS",
    "OUTCOME_GRADER",
    "Grade",
    "Task",
    "exact_match",
    "extract_answer",
    "grade",
    "math_equal",
    "normalize_answer",
    "read_tasks",
    "task_from_row",
    "task_rows",
    "token_f1",
]
