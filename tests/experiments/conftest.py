"""One tokenizer, one cold-start world with its tools, and teacher traces over it, shared by the lab's tests."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from coldstart.sequences import world_tools
from coldstart.teacher import Message, TeacherConfig, Tools, rollout
from coldstart.tokenizer import build_tokenizer

from deltah.lab.questions import Question, questions
from deltah.lab.world import Split, World


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    pytest.importorskip("transformers")
    return build_tokenizer()


@pytest.fixture(scope="session")
def world() -> World:
    return World(5, Split.COLDSTART)


@pytest.fixture(scope="session")
def tools(world: World) -> Tools:
    return world_tools(world)


@pytest.fixture(scope="session")
def asked(world: World) -> list[Question]:
    return list(questions(world, 600, seed=1))


@pytest.fixture(scope="session")
def conversations(asked: list[Question], tools: Tools) -> list[list[Message]]:
    rng = np.random.default_rng(0)
    return [rollout(question, tools, TeacherConfig(), rng) for question in asked]
