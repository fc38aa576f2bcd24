"""The python tool: what comes back, and that nothing gets out, hangs or grows."""

from __future__ import annotations

import os
import resource
import threading
import time
from collections.abc import Callable

import pytest

from deltah.core.failures import is_error
from deltah.errors import ConfigError, InvalidValueError, MissingDependencyError
from deltah.tools import make_python
from deltah.tools.python import MAX_CODE_CHARS, NO_OUTPUT, clean_code

Tool = Callable[[str], str]


@pytest.fixture(scope="module")
def python() -> Tool:
    return make_python(timeout_s=0.5, max_output_chars=300)


@pytest.mark.parametrize(
    ("code", "answer"),
    [
        ("1 + 1", "2"),
        ("print(3)", "3"),
        ("print(3)\n4", "3\n4"),
        ("print('x', end='')\n5", "x\n5"),
        ("x = 6\nx * 7", "42"),
        ("x = 3", NO_OUTPUT),
        ("None", NO_OUTPUT),
        ("'abc'", "'abc'"),
        ("[1, (2,), {'a': None}]", "[1, (2,), {'a': None}]"),
        ("import math\nmath.sqrt(16)", "4.0"),
        ("class A: pass\nA()", "<A object>"),
        ("class A: pass\n[A()]", "<list of objects; print it to see it>"),
        ("import sys\nprint('warned', file=sys.stderr)", "warned"),
        ("print('error: mine')", "output: error: mine"),
        ("import time\ntime.sleep(1000)\n1", "1"),
        ("print('é ✓')", "é ✓"),
    ],
)
def test_output_and_last_value(python: Tool, code: str, answer: str) -> None:
    assert python(code) == answer


@pytest.mark.parametrize(
    "code", [" x = 1\nprint(x)", "   x = 1\n   print(x)\n", "\n\nx = 1\nprint(x)", "```python\nx = 1\nprint(x)\n```",
             "```\n  x = 1\n  print(x)\n```\n", "\tx = 1\n\tprint(x)"]
)  # fmt: skip
def test_what_models_put_around_code_is_taken_off(python: Tool, code: str) -> None:
    assert python(code) == "1"


def test_clean_code_keeps_inner_indentation_and_fences() -> None:
    assert clean_code("  if x:\n      y\n  z") == "if x:\n    y\nz"
    assert clean_code("x = '```'") == "x = '```'"


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("1 / 0", "error: ZeroDivisionError: division by zero (line 1)"),
        ("def f():\n  raise ValueError('bad')\nf()", "error: ValueError: bad (line 2)"),
        ("print(1)\n1 / 0", "error: ZeroDivisionError: division by zero (line 2)\nprinted before the error:\n1"),
        ("x = (", "error: SyntaxError"),
        ("nothing", "error: NameError"),
        ("raise SystemExit", "error: SystemExit"),
        ("raise KeyboardInterrupt", "error: KeyboardInterrupt"),
        ("2 ** 20000", "error: ValueError: Exceeds the limit"),
        ("'\ud800'", "error: SyntaxError"),
        ("x = 1\x00", "error: SyntaxError"),
    ],
)
def test_errors_come_back_as_text(python: Tool, code: str, message: str) -> None:
    answer = python(code)
    assert answer.startswith(message)
    assert is_error(answer)


@pytest.mark.parametrize("code", ["", "  \n ", 5, None, ["1"], "x" * (MAX_CODE_CHARS + 1), " " * 200_000, "```\n```"])
def test_arguments_that_are_no_code(python: Tool, code: object) -> None:
    assert is_error(python(code))  # type: ignore[arg-type]


ESCAPES = [
    "open('/etc/passwd').read()",
    "open('/tmp/x', 'w')",
    "from pathlib import Path\nPath('/etc/passwd').read_text()",
    "from pathlib import Path\nlist(Path('/').iterdir())",
    "import os\nos.listdir('/')",
    "import os\nos.system('id')",
    "import os\nos.fork()",
    "import os\nos.environ['HOME']",
    "import os\nos.getenv('HOME')",
    "import socket",
    "import subprocess",
    "import urllib.request",
    "import ctypes",
    "import threading",
    "import multiprocessing",
    "import importlib",
    "import pickle",
    "import deltah",
    "__import__('os')",
    "().__class__.__bases__[0].__subclasses__()",
    "(lambda: 0).__globals__",
    "globals()",
    "input()",
    "import sys\nsys.modules['os'].system('id')",
    "exec('import socket')",
    "eval('open(\"/etc/passwd\")')",
]


@pytest.mark.parametrize("code", ESCAPES)
def test_there_is_no_way_out(python: Tool, code: str) -> None:
    answer = python(code)
    assert is_error(answer), answer
    assert "root:" not in answer


BOMBS = {
    "loop": "while True: pass",
    "loop that catches": "while True:\n  try:\n    while True: pass\n  except BaseException: pass",
    "printing loop": "while True: print('a' * 100)",
    "big list": "[0] * 10**9",
    "big text": "'a' * 10**9",
    "doubling text": "a = 'x'\nwhile True: a += a",
    "growing list": "a = []\nwhile True: a.append(a * 2)",
    "big power": "10 ** 10 ** 10",
    "slow power": "pow(7, 3 * 10**7)",
    "factorial": "import math\nmath.factorial(10**6)",
    "shift": "1 << 10**12",
    "format width": "'%1000000000d' % 1",
    "recursion": "def f(n): return f(n + 1)\nf(0)",
    "nested lists shared": "a = []\nfor i in range(40): a = [a, a]\na",
    "permutations": "import itertools\nlist(itertools.permutations(range(12)))",
    "deep source": "(" * 50_000,
    "deep sum": "1+" * 49_000 + "1",
    "async": "import asyncio\nasync def f():\n  while True: await asyncio.sleep(1)\nawait f()",
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_end_in_time_and_leave_the_host_small(python: Tool, name: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    assert is_error(python(BOMBS[name]))
    assert time.perf_counter() - start < 4.0  # 0.5 s, a grace of 0.5 s, and a busy machine
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB
    assert python("1 + 1") == "2"


def test_a_deeply_nested_value_is_shown_and_cut(python: Tool) -> None:
    assert python("a = []\nfor i in range(5000): a = [a]\na").startswith("[[[[")


def test_regular_expressions_do_not_run_away(python: Tool) -> None:
    assert python("import re\nre.match('(a+)+$', 'a' * 60 + 'b')") == NO_OUTPUT


def test_long_output_is_cut_and_counted(python: Tool) -> None:
    answer = python("print('a' * 1000)")
    assert answer == "a" * 300 + "\n... (701 more characters)"
    assert not is_error(answer)


def test_calls_share_nothing_and_draw_the_same_numbers(python: Tool) -> None:
    python("x = 5")
    assert python("x").startswith("error: NameError")
    draw = "import random\nrandom.random()"
    assert python(draw) == python(draw)


def test_threads_may_call_at_once(python: Tool) -> None:
    answers: list[str] = []
    threads = [threading.Thread(target=lambda i=i: answers.append(python(f"{i} * {i}"))) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert sorted(map(int, answers)) == [i * i for i in range(16)]


def test_a_forked_process_is_told_instead_of_hanging(python: Tool) -> None:
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        for call in (lambda: python("6 * 7"), make_python):
            try:
                call()
            except ConfigError as error:
                os.write(write, str(error).encode()[:40] + b"\n")
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(read, 1000).splitlines() == [b"the python tool does not work in a proce"] * 2
    assert python("1 + 1") == "2"


def test_limits_are_checked() -> None:
    with pytest.raises(InvalidValueError, match="timeout_s > 0; got 0"):
        make_python(timeout_s=0)


def test_recursion_limit_is_the_given_one() -> None:
    code = "def f(n): return 0 if n == 0 else 1 + f(n - 1)\nf(60)"
    assert make_python(max_recursion=100)(code) == "60"
    assert make_python(max_recursion=40)(code).startswith("error: RecursionError")


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pydantic_monty", None)
    with pytest.raises(MissingDependencyError, match=r"deltah\[tools\]"):
        make_python()


def test_a_call_takes_about_a_millisecond(python: Tool) -> None:
    start = time.process_time()
    for _ in range(50):
        python("print(1)")
    assert (time.process_time() - start) / 50 < 0.05
