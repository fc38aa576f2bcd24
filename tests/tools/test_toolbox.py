"""Tools by name, the checks on a user's function, and calls with what models write."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deltah.core.failures import is_error, success_text
from deltah.core.types import CallStatus
from deltah.errors import ConfigError, DataError, InvalidValueError
from deltah.tools import ToolConfig, build_tools, call_tool

USER_MODULE = '''
import json

def add(a: int, b: int = 1) -> str:
    """Add two numbers.

    Args:
        a: First number.
        b: Second number.
    """
    return str(a + b)

def fail(x: str) -> str:
    """Fail.

    Args:
        x: Anything.
    """
    raise KeyError(x)

def now() -> dict:
    """Say the time."""
    return {"time": 1}

def no_docs(a: int) -> str:
    return ""

def no_hint(a) -> str:
    """Do it.

    Args:
        a: Number.
    """

def no_argument_docs(a: int) -> str:
    """Do it."""

def stars(*args: int) -> str:
    """Do it."""

async def wait(a: int) -> str:
    """Do it."""

class Tool:
    """Callable."""

    def __call__(self, a: int) -> str: ...

python = Tool()
'''


@pytest.fixture(scope="module")
def user_module(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("user")
    (folder / "registry_user_tools.py").write_text(USER_MODULE)
    sys.path.insert(0, str(folder))
    return "registry_user_tools"


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.jsonl"
    path.write_text('{"id": "1", "contents": "Oslo is the capital of Norway."}\n')
    return path


def test_tools_are_built_in_order(corpus: Path, user_module: str) -> None:
    tools = build_tools(["search", "python", f"{user_module}:add"], ToolConfig(corpus=str(corpus)))
    assert [tool.__name__ for tool in tools] == ["search", "python", "add"]
    assert tools[0]("capital of Norway") == "Oslo is the capital of Norway."
    assert tools[1]("2 + 2") == "4"


def test_transformers_takes_the_tools_as_they_are(corpus: Path) -> None:
    utils = pytest.importorskip("transformers.utils")
    for tool, argument in zip(
        build_tools(["search", "python"], ToolConfig(corpus=str(corpus))), ("query", "code"), strict=True
    ):
        function = utils.get_json_schema(tool)["function"]
        assert function["name"] == tool.__name__
        assert function["parameters"]["required"] == [argument]
        assert function["parameters"]["properties"][argument]["type"] == "string"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("serach", "unknown tool 'serach'; choose one of: python, search; or name one of your own"),
        ("", "unknown tool ''"),
        ("search", "needs a corpus to look in"),
        ("no_such_module:f", "cannot import 'no_such_module'"),
        (":f", "cannot import ''"),
        ("{m}:missing", "has no function 'missing'; it has add, fail, no_argument_docs"),
        ("{m}:no_docs", "has no docstring"),
        ("{m}:no_hint", "argument 'a' has no type hint"),
        ("{m}:no_argument_docs", "does not describe argument 'a'"),
        ("{m}:stars", r"argument \*args: int cannot be given by name"),
        ("{m}:wait", "is async"),
        ("{m}:Tool", "is a type; expected a function"),
        ("{m}:python", "is a Tool; expected a function"),
        ("{m}:json", "has no function 'json'"),
    ],
)
def test_a_wrong_tool_gives_one_clear_error(user_module: str, name: str, message: str) -> None:
    with pytest.raises((ConfigError, InvalidValueError), match=message):
        build_tools([name.format(m=user_module)], ToolConfig())


def test_two_tools_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigError, match="two tools are called 'python'"):
        build_tools(["python", "python"], ToolConfig())


def test_a_corpus_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.jsonl: cannot read it"):
        build_tools(["search"], ToolConfig(corpus=str(tmp_path / "none.jsonl")))


@pytest.fixture
def tools(user_module: str) -> list[Callable[..., str]]:
    return build_tools([f"{user_module}:{name}" for name in ("add", "fail", "now")], ToolConfig())


@pytest.mark.parametrize(
    ("name", "arguments", "text", "status"),
    [
        ("add", '{"a": 2, "b": 3}', "5", CallStatus.OK),
        ("add", {"a": 2}, "3", CallStatus.OK),
        ("now", None, "{'time': 1}", CallStatus.OK),
        ("now", "", "{'time': 1}", CallStatus.OK),
        ("sub", "{}", "error: unknown tool 'sub'; the tools are add, fail, now", CallStatus.ERROR),
        ("add", "{", "error: wrong arguments for add: ", CallStatus.ERROR),
        ("add", "[1, 2]", "error: wrong arguments for add: not a JSON object; expected add(a, b)", CallStatus.ERROR),
        ("add", "null", "error: wrong arguments for add: missing", CallStatus.ERROR),
        ("add", '{"x": 1}', "error: wrong arguments for add: missing a required argument: 'a'", CallStatus.ERROR),
        ("add", '{"a": 1, "x": 1}', "error: wrong arguments for add: got an unexpected", CallStatus.ERROR),
        ("add", '{"a": "p"}', "error: TypeError: ", CallStatus.ERROR),
        ("add", "[" * 100_000, "error: wrong arguments for add: ", CallStatus.ERROR),
        ("fail", {"x": "k"}, "error: KeyError: 'k'", CallStatus.ERROR),
    ],
)
def test_call_tool(tools: list[Callable[..., str]], name: str, arguments: Any, text: str, status: CallStatus) -> None:
    result = call_tool(tools, name, arguments)
    assert result.text.startswith(text)
    assert result.status is status
    assert 0 <= result.duration_s < 5


@given(
    st.text(max_size=30),
    st.one_of(st.text(max_size=60), st.dictionaries(st.text(max_size=5), st.integers(), max_size=3)),
)
@settings(max_examples=200, deadline=None)
def test_nothing_a_model_writes_raises(user_module: str, name: str, arguments: Any) -> None:
    tools = build_tools([f"{user_module}:add"], ToolConfig())
    assert is_error(call_tool(tools, name, arguments).text)
    assert call_tool({"add": tools[0]}, "add", arguments).status in CallStatus


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("error: x", True),
        ("{'error': 'Tool x not found.'}", True),
        ('{"error": "boom"}', True),
        (str({"error": "it's"}), True),
        ("an error: x", False),
        ("{'errors': 0}", False),
        ("Error handling", False),
        ("", False),
    ],
)
def test_is_error(text: str, expected: bool) -> None:
    assert is_error(text) is expected
    assert not is_error(success_text(text))


def test_is_error_knows_what_trl_writes() -> None:
    assert is_error(str({"error": str(ValueError("Tool f not found."))}))
