"""One cold-start world and questions about it."""

from __future__ import annotations

import pytest

from deltah.lab.questions import Question, questions
from deltah.lab.world import Split, World


@pytest.fixture(scope="session")
def world() -> World:
    return World(5, Split.COLDSTART)


@pytest.fixture(scope="session")
def asked(world: World) -> list[Question]:
    return list(questions(world, 600, seed=1))
