"""Tools by name (`--tools search,python,mypackage.module:function`), and one call of one tool.

Tools are checked when they are built, so that a missing corpus or docstring is found before a model is loaded. A
model's mistake in a call is an error text, never an exception.
"""

from __future__ import annotations

import inspect
import json
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

from deltah.core.failures import error_text
from deltah.core.registry import Registry
from deltah.core.types import CallStatus
from deltah.errors import ConfigError, DeltahError
from deltah.tools.python import make_python
from deltah.tools.search import SearchIndex, make_search, read_corpus

Tool: TypeAlias = Callable[..., str]


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolConfig:
    """Options of the tools that deltah brings."""

    corpus: str | None = None
    """JSONL file that `search` looks in; None: no search."""
    top_k: int = 2
    """Maximum number of documents per search."""
    search_max_chars: int = 2000
    """Maximum length of a search result, in characters."""
    python_timeout_s: float = 2.0
    """Seconds per call of `python`."""
    python_memory_mb: int = 64
    """MiB the code may hold."""
    python_recursion: int = 200
    """Depth of calls in the code."""
    python_output_chars: int = 2000
    """Maximum length of a result of `python`, in characters."""


class ToolResult(NamedTuple):
    """What one call gave."""

    text: str
    """For the model."""
    status: CallStatus
    duration_s: float
    """Wall time in seconds."""


TOOLS: Registry[Callable[..., Any]] = Registry("tool")
"""Tools by name: typed functions from text to text, or, with `made=True`, functions from a `ToolConfig` to one.

`kind="read"` says that a tool changes nothing and answers the same call alike (`deltah.calls.tool_kinds`)."""


@TOOLS.register("python", meaning="Python code in a sandbox without files and network", made=True, kind="read")
def _python(config: ToolConfig) -> Tool:
    return make_python(
        timeout_s=config.python_timeout_s,
        max_memory_mb=config.python_memory_mb,
        max_recursion=config.python_recursion,
        max_output_chars=config.python_output_chars,
    )


@TOOLS.register("search", meaning="BM25 over a corpus of documents", made=True, kind="read")
def _search(config: ToolConfig) -> Tool:
    if config.corpus is None:
        raise ConfigError(
            "the tool 'search' needs a corpus to look in: a JSONL file with one "
            '{"id": "1", "contents": "text"} per line; name it (--corpus FILE), or leave search out of the tools'
        )
    return make_search(SearchIndex(read_corpus(config.corpus)), top_k=config.top_k, max_chars=config.search_max_chars)


def build_tools(names: Sequence[str], config: ToolConfig) -> list[Tool]:
    """Make the named tools, in order: names in `TOOLS`, or "package.module:function" of a typed function."""
    tools: list[Tool] = []
    for name in map(str.strip, names):
        entry = TOOLS.resolve(name)
        tools.append(entry.value(config) if entry.options.get("made") else entry.value)
        _check_tool(tools[-1], name)
    called = [tool.__name__ for tool in tools]
    for name in called:
        if called.count(name) > 1:
            raise ConfigError(f"two tools are called {name!r}; a model tells tools apart by their names, so rename one")
    return tools


def _check_tool(function: Callable[..., Any], name: str) -> None:
    """Refuse a function that a chat template and TRL cannot describe to the model."""
    if not inspect.isfunction(function):
        raise ConfigError(f"tool {name!r} is a {type(function).__name__}; expected a function made with def")
    if inspect.iscoroutinefunction(function):
        raise ConfigError(f"tool {name!r} is async; expected a plain def, which may call asyncio.run itself")
    text = inspect.getdoc(function)
    if not text:
        raise ConfigError(
            f"tool {name!r} has no docstring; write one that says what it does, with a section 'Args:' that has a line "
            "for each argument"
        )
    section = re.search(r"^Args:[ \t]*\n((?:[ \t]+.*\n?|[ \t]*\n)*)", text, re.MULTILINE)
    documented = re.findall(r"^\s+(\w+)\s*(?:\([^)]*\))?:", section[1], re.MULTILINE) if section else []
    for argument in inspect.signature(function).parameters.values():
        if argument.kind not in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY):
            raise ConfigError(f"tool {name!r}: argument {argument} cannot be given by name; use plain arguments")
        if argument.annotation is inspect.Parameter.empty:
            raise ConfigError(f"tool {name!r}: argument {argument.name!r} has no type hint; write {argument.name}: str")
        if argument.name not in documented:
            raise ConfigError(
                f"tool {name!r}: the docstring does not describe argument {argument.name!r}; add the line "
                f"'{argument.name}: what it is' to its section 'Args:'"
            )


def call_tool(
    tools: Iterable[Tool] | Mapping[str, Tool], name: str, arguments: str | Mapping[str, Any] | None
) -> ToolResult:
    """Call one tool with what a model wrote: a JSON object as text, a mapping, or nothing.

    An unknown tool, arguments that do not fit, and an exception of the tool give an error text and `CallStatus.ERROR`.

    Raises:
        DeltahError: if the tool itself cannot work here (a worker that does not start): no mistake of the model.
    """
    by_name = tools if isinstance(tools, Mapping) else {tool.__name__: tool for tool in tools}
    start = time.perf_counter()
    text = _call(by_name, name, arguments)
    return ToolResult(text, CallStatus.of(text), time.perf_counter() - start)


def _call(tools: Mapping[str, Tool], name: str, arguments: str | Mapping[str, Any] | None) -> str:
    tool = tools.get(name)
    if tool is None:
        return error_text(f"unknown tool {name!r}; the tools are {', '.join(tools) or 'none'}")
    try:
        if isinstance(arguments, str):
            arguments = json.loads(arguments) if arguments.strip() else {}
        given = {} if arguments is None else arguments
        if not isinstance(given, Mapping) or not all(isinstance(key, str) for key in given):
            raise ValueError("not a JSON object")
        inspect.signature(tool).bind(**given)
    except (ValueError, TypeError, RecursionError) as error:
        takes = ", ".join(inspect.signature(tool).parameters)
        return error_text(f"wrong arguments for {name}: {error}; expected {name}({takes})")
    try:
        return str(tool(**given))
    except DeltahError:
        raise
    except Exception as error:  # a user's function may raise anything; the model is told
        return error_text(f"{type(error).__name__}: {error}")
