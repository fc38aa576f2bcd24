"""Tasks: questions with gold answers, readers of task files, and graders.

Nothing here knows an agent, a tool or an entropy. math-verify and duckdb are imported where they are needed.
"""

from deltah.tasks.graders import GRADERS, OUTCOME_GRADER, Grade, grade
from deltah.tasks.task_files import Task, read_tasks, task_from_row, task_rows

__all__ = ["GRADERS", "OUTCOME_GRADER", "Grade", "Task", "grade", "read_tasks", "task_from_row", "task_rows"]
