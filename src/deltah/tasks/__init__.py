"""Tasks: questions with gold answers, readers for the field's file formats, and graders.

`read_tasks` reads a file, `grade` grades the final answer of a text. Nothing here knows an agent, a tool or an entropy.
math-verify and duckdb are imported where they are needed, not before.
"""

from deltah.tasks.answers import extract_answer
from deltah.tasks.arithmetic import generate_arithmetic
from deltah.tasks.equality import math_equal
from deltah.tasks.files import read_tasks, task_from_row, task_rows
from deltah.tasks.graders import OUTCOME_GRADER, Grade, exact_match, grade, normalize_answer, token_f1
from deltah.tasks.types import Task, TaskKind

__all__ = [
    "OUTCOME_GRADER",
    "Grade",
    "Task",
    "TaskKind",
    "exact_match",
    "extract_answer",
    "generate_arithmetic",
    "grade",
    "math_equal",
    "normalize_answer",
    "read_tasks",
    "task_from_row",
    "task_rows",
    "token_f1",
]
