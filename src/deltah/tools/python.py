"""Python for an agent: code runs in pydantic-monty, an interpreter written in Rust, in a worker process of its own.

What is covered: the code sees no file, network, process, environment variable or import of the host (monty has none to
give); time (of the code, and once more of writing its last value), heap memory and recursion are limited inside the
worker; a worker that dies or overruns its time is killed and replaced; every call starts from an empty state with the
same random seed; what comes back is text, written by the worker under the same limits and cut to a length. A success
never starts with `error: `, a failure always does.

What is not: monty is a subset of Python (no numpy, no third-party packages, part of the standard library, no wildcard
import), the clock is the real one, `time.sleep` returns at once, an operation that cannot be interrupted ends only when
the worker is killed (`KILL_GRACE_S` later), and an error in monty itself is contained by the process border alone: no
seccomp filter or namespace stands around the worker.
"""

from __future__ import annotations

import os
import textwrap
import weakref
from collections.abc import Callable
from typing import Any

from deltah.core.types import error_text, success_text
from deltah.errors import ConfigError, InvalidValueError, missing_dependency

NO_OUTPUT = "(no output)"
"""What `python` says when the code ran, printed nothing and did not end in an expression."""
KILL_GRACE_S = 0.5
"""Seconds a worker may overrun its time before it is killed."""
MAX_CODE_CHARS = 100_000
"""Longer code is refused unread: parsing is not under the time limit."""

_FENCE = "```"
_RANDOM_SEED = 0


def make_python(
    *, timeout_s: float = 2.0, max_memory_mb: int = 64, max_recursion: int = 200, max_output_chars: int = 2000
) -> Callable[[str], str]:
    """Make the tool `python`.

    The worker starts now, so that a broken installation is found before a run, and ends with the function or the
    process. The function may be called from several threads, but not from a process forked after this call: it says so
    there, because monty's threads do not live on in the child. Use the start method "spawn", or fork first.

    Args:
        timeout_s: Seconds of execution a call may take.
        max_memory_mb: MiB of heap the code may hold.
        max_recursion: Depth of calls.
        max_output_chars: Characters of the answer at most; the rest is counted and left out.

    Returns:
        A typed function with a docstring, as `transformers.utils.get_json_schema` and TRL's `tools=` expect it. It
        returns what the code printed and, like a notebook, the value of its last expression, and never raises on what
        a model passes to it.

    Raises:
        InvalidValueError: if a limit is not positive.
        MissingDependencyError: if pydantic-monty is not installed.
        ConfigError: if its worker does not start.
    """
    limits = {
        "timeout_s": timeout_s,
        "max_memory_mb": max_memory_mb,
        "max_recursion": max_recursion,
        "max_output_chars": max_output_chars,
    }
    for name, value in limits.items():
        if not value > 0:
            raise InvalidValueError(f"python needs {name} > 0; got {value}")
    sandbox = _Sandbox(timeout_s, max_memory_mb, max_recursion, max_output_chars)
    if (answer := sandbox.run("1 + 1")) != "2":  # what is broken shows before anything depends on it
        raise ConfigError(
            f"the python tool does not work here: 1 + 1 gave {answer!r}; raise its limits if they are very small, "
            "or reinstall pydantic-monty"
        )

    def python(code: str) -> str:
        """Run Python code and return what it prints and the value of its last expression.

        Args:
            code: Python source. The standard modules math, re, json, datetime, itertools, functools, collections,
                random and decimal can be imported; there are no files and no network.

        Returns:
            The output as text, or a text that starts with "error: ".
        """
        if not isinstance(code, str):
            return error_text(f"code must be a string, got {type(code).__name__}")
        if len(code) > MAX_CODE_CHARS:
            return error_text(f"code has {len(code)} characters, more than {MAX_CODE_CHARS}")
        source = clean_code(code)
        return sandbox.run(source) if source else error_text("code is empty")

    return python


def clean_code(code: str) -> str:
    """Code without what models put around it: common indentation, a leading space, a Markdown fence."""
    stripped = code.strip()
    if stripped.startswith(_FENCE) and stripped.endswith(_FENCE):
        code = stripped.removesuffix(_FENCE).partition("\n")[2]
    return textwrap.dedent(code).strip()


class _Sandbox:
    """Workers of one process and the limits they run under."""

    def __init__(self, timeout_s: float, max_memory_mb: int, max_recursion: int, max_output_chars: int) -> None:
        self._timed_out = f"TimeoutError: the code ran longer than {timeout_s:g} s and was stopped"
        self._max_output_chars = max_output_chars
        self._limits = {
            "max_feed_duration_secs": timeout_s,
            "max_memory": max_memory_mb * 2**20,
            "max_recursion_depth": max_recursion,
        }
        # Fixed draws keep a rollout repeatable; sleeping would only hold up a batch.
        self._policy = {"sleep": "zero", "random_start": {"seed": _RANDOM_SEED}}
        self._workers: Any = None

    def _pool(self) -> Any:
        """The workers, started on first use."""
        if any(pid != os.getpid() for pid in _started_in):  # would otherwise be a silent wait without end
            raise ConfigError(
                "the python tool does not work in a process forked after the tool was made; start processes with the "
                "method 'spawn', or make the tool after forking"
            )
        if self._workers is None:
            self._workers = _start_pool()
            weakref.finalize(self, _close_pool, self._workers, os.getpid())
        return self._workers

    def run(self, source: str) -> str:
        """Run cleaned code; the text for the model."""
        monty, pool = _monty(), self._pool()
        printed = _Output(self._max_output_chars)
        try:
            with pool.checkout(limits=self._limits, script_name="code.py", os_policy=self._policy) as session:
                value = session.feed_run(source, print_callback=printed)
                if value is not None:
                    printed.start_line()
                    self._write_value(session, value, printed)
        except monty.MontyCrashedError as error:
            return error_text(self._timed_out if error.timed_out else "the interpreter crashed on this code")
        except monty.MontyError as error:
            return self._failure(error, printed)
        except (ValueError, TypeError, RecursionError, OverflowError) as error:
            # A last value that has no counterpart on the host, such as an integer of more than 4300 digits.
            return error_text(f"the value of the last expression cannot be returned: {error}")
        return success_text(printed.text()) or NO_OUTPUT

    def _write_value(self, session: Any, value: Any, printed: _Output) -> None:
        """Let the worker write a last value, under its limits: a host-side repr of nested shared lists has none."""
        monty = _monty()
        if isinstance(value, monty.MontyClassProxy):
            printed("stdout", f"<{value.name} object>")
            return
        try:
            session.feed_run("print(repr(_value))", inputs={"_value": value}, print_callback=printed)
        except monty.MontyRuntimeError as error:
            # Instances of the code's own classes do not travel back inside a container.
            if "no longer exists" not in str(error):
                raise
            printed("stdout", f"<{type(value).__name__} of objects; print it to see it>")

    def _failure(self, error: Any, printed: _Output) -> str:
        message = str(error) if str(error).startswith("SyntaxError") else _describe(error)
        if message.startswith("TimeoutError: feed time limit"):
            message = self._timed_out
        message = message[: self._max_output_chars]
        output = printed.text()
        return error_text(f"{message}\nprinted before the error:\n{output}" if output else message)


def _describe(error: Any) -> str:
    """Kind and message of an exception in the code, with the line it happened on where that is known."""
    text = error.display("type-msg") if hasattr(error, "display") else str(error)
    frames = error.traceback() if hasattr(error, "traceback") else []
    lines = [frame.line for frame in frames if frame.filename.startswith("<python-input")]
    return f"{text} (line {lines[-1]})" if lines else str(text)


class _Output:
    """Printed text, kept up to a length and counted beyond it."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._parts: list[str] = []
        self._kept = 0
        self._dropped = 0

    def __call__(self, stream: str, text: str) -> None:
        """Take a piece of stdout or stderr."""
        piece = text[: self._limit - self._kept]
        if piece:
            self._parts.append(piece)
        self._kept += len(piece)
        self._dropped += len(text) - len(piece)

    def start_line(self) -> None:
        """Begin a new line unless one begins here."""
        if self._parts and not self._parts[-1].endswith("\n"):
            self("stdout", "\n")

    def text(self) -> str:
        """The kept text without the last line break, and how much is missing."""
        text = "".join(self._parts).rstrip()
        return f"{text}\n... ({self._dropped} more characters)" if self._dropped > 1 else text


_started_in: list[int] = []
"""Ids of processes, of this one and those it was forked from, that have started monty's threads."""


def _monty() -> Any:
    try:
        import pydantic_monty
    except ImportError as error:
        raise missing_dependency("pydantic-monty", extra="tools", purpose="The python tool") from error
    return pydantic_monty


def _start_pool() -> Any:
    monty = _monty()
    _started_in[:] = [os.getpid()]
    try:
        return monty.Monty(feed_duration_limit_grace=KILL_GRACE_S, turn_duration_limit_grace=KILL_GRACE_S).__enter__()
    except (OSError, RuntimeError, monty.MontyError) as error:
        raise ConfigError(f"the worker of the python tool did not start ({error}); reinstall pydantic-monty") from error


def _close_pool(pool: Any, pid: int) -> None:
    if os.getpid() == pid:
        pool.__exit__(None, None, None)
