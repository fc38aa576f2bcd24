"""The house rules: imports point down, heavy packages stay behind their door, sizes stay readable, one shift."""

from __future__ import annotations

import ast
import json
import math
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "deltah"
FLOORS = {
    "errors": 0,
    "text_format": 0,
    "core": 1,
    "jsonlines": 1,
    "parallel": 1,
    "runs": 2,
    "traces": 2,
    "tools": 2,
    "tasks": 2,
    "calls": 3,
    "stats": 4,
    "probe": 5,
    "report": 5,
    "recorder": 5,
    "engines": 6,
    "lab": 7,
    "cli": 8,
    "__main__": 9,
}
"""An import goes to a strictly lower floor, or stays inside its package."""
HEAVY = {"torch", "transformers", "trl", "accelerate", "datasets", "peft", "vllm", "ray", "verl"}
MAX_FILE, MAX_FUNCTION, MEDIAN_FUNCTION = 400, 60, 8
MAX_FILES, MAX_LINES = 141, 24_800
"""Of the whole package. Size is a feature: what a change adds, it takes away elsewhere."""
MAX_PATH = 20
"""Files between a line of a log and its row."""


def modules() -> Iterator[tuple[str, Path, ast.Module]]:
    for path in sorted(SOURCE.rglob("*.py")):
        relative = path.relative_to(SOURCE)
        if relative.name == "__init__.py" and len(relative.parts) == 1:
            continue  # the package itself re-exports the public surface
        yield relative.parts[0].removesuffix(".py"), path, ast.parse(path.read_text(encoding="utf-8"))


def imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module


def test_every_import_points_down() -> None:
    wrong = []
    for package, path, tree in modules():
        for name in imported(tree):
            if not name.startswith("deltah."):
                continue
            target = name.split(".")[1]
            if target != package and FLOORS[target] >= FLOORS[package]:
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not wrong


def test_heavy_packages_are_imported_by_engines_only() -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for package, path, tree in modules()
        for name in imported(tree)
        if name.split(".")[0] in HEAVY and package != "engines"
    ]
    assert not wrong


def test_files_and_functions_stay_readable() -> None:
    long = []
    for _, path, tree in modules():
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > MAX_FILE:
            long.append(f"{path.relative_to(ROOT)}: {lines} lines")
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and (node.end_lineno or 0) - node.lineno >= MAX_FUNCTION:
                long.append(f"{path.relative_to(ROOT)}: {node.name} is {node.end_lineno - node.lineno + 1} lines")
    assert not long


def test_the_house_stays_small() -> None:
    sources = list(SOURCE.rglob("*.py"))
    lengths = [
        (node.end_lineno or 0) - node.lineno + 1
        for path in sources
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef)
    ]
    assert len(sources) <= MAX_FILES
    assert sum(len(path.read_text(encoding="utf-8").splitlines()) for path in sources) <= MAX_LINES
    assert statistics.median(lengths) <= MEDIAN_FUNCTION


def test_a_line_of_a_log_becomes_a_row_through_few_files(tmp_path: Path) -> None:
    """Files in which a function runs while one conversation is read, scored and made a row of the table of calls."""
    import deltah

    def token(text: str, p: float) -> dict[str, object]:
        top = [{"token": text, "logprob": math.log(p)}, {"token": "?", "logprob": math.log(0.9 * (1 - p))}]
        return {"token": text, "logprob": math.log(p), "top_logprobs": top}

    search = {"id": "1", "type": "function", "function": {"name": "search", "arguments": '{"query": "Velmora"}'}}
    messages = [
        {"role": "user", "content": "Where is Velmora?"},
        {"role": "assistant", "content": "Hm?", "tool_calls": [search], "logprobs": {"content": [token("Hm?", 0.5)]}},
        {"role": "tool", "tool_call_id": "1", "content": "Velmora is a city in the north."},
        {"role": "assistant", "content": "North", "logprobs": {"content": [token("North", 0.99)]}},
    ]
    log, passed = tmp_path / "log.jsonl", set[str]()
    log.write_text(json.dumps({"messages": messages, "vocab_size": 1000}) + "\n", encoding="utf-8")
    deltah.read_calls(log)  # loads every module, so that only functions are seen below

    def note(frame: FrameType, event: str, argument: object) -> None:
        if event == "call" and frame.f_code.co_name != "<module>":
            passed.add(frame.f_code.co_filename)

    sys.setprofile(note)
    try:
        rows = deltah.read_calls(log).calls.fetchall()
    finally:
        sys.setprofile(None)
    assert len(rows) == 1
    own = sorted(name for name in passed if Path(name).is_relative_to(SOURCE))
    assert len(own) <= MAX_PATH, own


def test_no_module_name_stands_twice() -> None:
    names = [path.stem for _, path, _ in modules() if path.stem != "__init__"]
    names += [path.parent.name for path in SOURCE.glob("*/**/__init__.py")]
    assert sorted({name for name in names if names.count(name) > 1}) == []


def test_the_shift_has_one_home() -> None:
    pattern = re.compile(r"logits?\[[^]]*:-1|\[:, :-1, :\]|roll\([^)]*-1")
    wrong = [
        path.name
        for _, path, _ in modules()
        if path.name != "align.py" and pattern.search(path.read_text(encoding="utf-8"))
    ]
    assert not wrong


def test_environment_is_read_by_the_command_line_only() -> None:
    allowed = {"__main__", "cli", "lab", "engines"}
    wrong = [
        str(path.relative_to(ROOT))
        for package, path, _ in modules()
        if package not in allowed and "os.environ" in path.read_text(encoding="utf-8")
    ]
    assert not wrong


CODE_WITHOUT_TORCH = [
    "import deltah",
    "from deltah.cli.app import app; from typer.testing import CliRunner; "
    "r = CliRunner().invoke(app, ['score', '--help']); assert r.exit_code == 0, r.output",
    "from deltah.cli.app import app; from typer.testing import CliRunner; "
    "r = CliRunner().invoke(app, ['train', '--help']); assert r.exit_code == 0, r.output",
    "from deltah.cli.app import app; from typer.testing import CliRunner; "
    "r = CliRunner().invoke(app, ['probe', '--help']); assert r.exit_code == 0, r.output",
]


def heavy_modules_after(code: str) -> str:
    watched = HEAVY | {"scipy"} if code == "import deltah" else HEAVY
    program = f"{code}\nimport sys\nprint(sorted(set(sys.modules) & {watched}))"
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": str(ROOT / "src"), "PATH": "/usr/bin:/bin", "HOME": "/tmp"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


@pytest.mark.parametrize("code", CODE_WITHOUT_TORCH)
def test_no_heavy_package_is_loaded(code: str) -> None:
    assert heavy_modules_after(code) == "[]"


def test_the_probe_itself_sees_a_loaded_package() -> None:
    assert heavy_modules_after("import sys, types; sys.modules['torch'] = types.ModuleType('torch')") == "['torch']"
