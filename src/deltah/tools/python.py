"""Python for an agent: code runs in pydantic-monty, an interpreter written in Rust, in a worker process of its own.

The code sees no file, network, process, environment variable or import of the host. Time (of the code, and once more of
writing its last value), heap memory and recursion are limited in the worker, which is killed and replaced if it dies or
overruns. Each call starts from an empty state with the same random seed. What comes back is text, cut to a length: a
failure always starts with `error: `, a success never.

monty is a subset of Python: no third-party packages and wildcard imports, part of the standard library. The clock is
the real one, and `time.sleep` returns at once. The process border alone contains an error in monty itself: there is no
seccomp filter or namespace around the worker.
"""

from __future__ import annotations

import os
import textwrap
import weakref
from collections.abc import Callable
from typing import Any

from deltah.core.failures import error_text, success_text
from deltah.errors import ConfigError, InvalidValueError, missing_dependency

NO_OUTPUT = "(no output)"
"""Answer to code that prints nothing and does not end in an expression."""
KILL_GRACE_S = 0.5
"""Seconds a worker may overrun its time before it is killed."""
MAX_CODE_CHARS = 100_000
"""Longer code is refused unread: parsing is not under the time limit."""
_FENCE = "```"


def make_python(
    *, timeout_s: float = 2.0, max_memory_mb: int = 64, max_recursion: int = 200, max_output_chars: int = 2000
) -> Callable[[str], str]:
    """Make the tool `python`, a typed function that never raises on what a model passes to it.

    The worker starts now, so that a broken installation is found before a run, and ends with the function or the
    process. The function may be called from several threads, but not from a process forked after this call, where
    monty's threads are gone: it raises a `ConfigError` there.

    Args:
        timeout_s: Seconds of execution per call.
        max_memory_mb: MiB of heap the code may hold.
        max_recursion: Depth of calls.
        max_output_chars: Maximum length of the answer, in characters; the rest is counted and left out.
    """
    limits = (timeout_s, max_memory_mb, max_recursion, max_output_chars)
    for name, value in zip(("timeout_s", "max_memory_mb", "max_recursion", "max_output_chars"), limits, strict=True):
        if not value > 0:
            raise InvalidValueError(f"python needs {name} > 0; got {value}")
    sandbox = _Sandbox(timeout_s, max_memory_mb, max_recursion, max_output_chars)
    if (answer := sandbox.run("1 + 1")) != "2":
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
    """Code without common indentation and a Markdown fence, which models put around it."""
    stripped = code.strip()
    if stripped.startswith(_FENCE) and stripped.endswith(_FENCE):
        code = stripped.removesuffix(_FENCE).partition("\n")[2]
    return textwrap.dedent(code).strip()


class _Sandbox:
    """Workers and the limits they run under."""

    def __init__(self, timeout_s: float, max_memory_mb: int, max_recursion: int, max_output_chars: int) -> None:
        self._timed_out = f"TimeoutError: the code ran longer than {timeout_s:g} s and was stopped"
        self._max_output_chars = max_output_chars
        self._limits = {
            "max_feed_duration_secs": timeout_s,
            "max_memory": max_memory_mb * 2**20,
            "max_recursion_depth": max_recursion,
        }
        # Fixed draws keep a rollout repeatable; sleeping would only hold up a batch.
        self._policy = {"sleep": "zero", "random_start": {"seed": 0}}
        self._pool = _start_pool()
        weakref.finalize(self, _close_pool, self._pool, os.getpid())

    def run(self, source: str) -> str:
        """Run cleaned code; the text for the model."""
        _refuse_fork()
        monty, printed = _monty(), _Output(self._max_output_chars)
        try:
            with self._pool.checkout(limits=self._limits, script_name="code.py", os_policy=self._policy) as session:
                value = session.feed_run(source, print_callback=printed)
                if value is not None:
                    printed.start_line()
                    self._write_value(session, value, printed)
        except monty.MontyCrashedError as error:
            return error_text(self._timed_out if error.timed_out else "the interpreter crashed on this code")
        except monty.MontyError as error:
            return self._failure(error, printed)
        except (ValueError, TypeError, RecursionError, OverflowError) as error:
            # The last value has no counterpart on the host, such as an integer of more than 4300 digits.
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
        """Kind and message of an exception in the code, with its line where that is known, and what was printed."""
        message = str(error)
        if hasattr(error, "traceback"):
            lines = [frame.line for frame in error.traceback() if frame.filename.startswith("<python-input")]
            message = error.display("type-msg") + (f" (line {lines[-1]})" if lines else "")
        if message.startswith("TimeoutError: feed time limit"):
            message = self._timed_out
        message = message[: self._max_output_chars]
        output = printed.text()
        return error_text(f"{message}\nprinted before the error:\n{output}" if output else message)


class _Output:
    """Printed text, kept up to a length and counted beyond it."""

    def __init__(self, limit: int) -> None:
        self._left, self._dropped = limit, 0
        self._parts: list[str] = []

    def __call__(self, stream: str, text: str) -> None:
        """Take a piece of stdout or stderr."""
        if piece := text[: self._left]:
            self._parts.append(piece)
        self._left -= len(piece)
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
"""Id of the process that started monty's threads: this one, or one that it was forked from."""


def _refuse_fork() -> None:
    if _started_in not in ([], [os.getpid()]):  # would otherwise be a silent wait without end
        raise ConfigError(
            "the python tool does not work in a process forked after the tool was made; start processes with the "
            "method 'spawn', or make the tool after forking"
        )


def _monty() -> Any:
    try:
        import pydantic_monty
    except ImportError as error:
        raise missing_dependency("pydantic-monty", extra="tools", purpose="The python tool") from error
    return pydantic_monty


def _start_pool() -> Any:
    _refuse_fork()
    monty = _monty()
    _started_in[:] = [os.getpid()]
    try:
        return monty.Monty(feed_duration_limit_grace=KILL_GRACE_S, turn_duration_limit_grace=KILL_GRACE_S).__enter__()
    except (OSError, RuntimeError, monty.MontyError) as error:
        raise ConfigError(f"the worker of the python tool did not start ({error}); reinstall pydantic-monty") from error


def _close_pool(pool: Any, pid: int) -> None:
    if os.getpid() == pid:
        pool.__exit__(None, None, None)
