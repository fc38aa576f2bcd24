"""The entry point: how a command ends that was stopped before or while it ran."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from builders import make_trajectory
from typer.testing import CliRunner

from deltah.cli.app import app
from deltah.errors import ConfigError
from deltah.traces import write_traces

ROOT = Path(__file__).parents[1]


def stopped_at_import_of(module: str, what: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command line, stopped at the moment it imports a module."""
    program = (
        "import sys\nclass Stop:\n    def find_spec(self, name, *rest):\n"
        f"        if name == {module!r}: raise {what}\n"
        "sys.meta_path.insert(0, Stop())\nfrom deltah.__main__ import main\nmain()"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        timeout=60,
    )


@pytest.mark.parametrize(
    "module", ["numpy", "msgspec", "deltah.core.types", "typer", "rich.progress", "deltah.cli.cmd_demo"]
)
def test_an_interrupt_while_loading_is_one_sentence(module: str) -> None:
    done = stopped_at_import_of(module, "KeyboardInterrupt")
    assert done.returncode == 130
    assert done.stderr == "interrupted\n"


def test_a_termination_says_how_to_go_on() -> None:
    done = stopped_at_import_of("typer", "SystemExit(143)", "train", "--reward", "sparse")
    assert done.returncode == 143
    assert done.stderr == "asked to end; run the same command again to continue\n"


def test_public_names_load_at_their_first_use() -> None:
    program = (
        "import sys, deltah\nassert not {'numpy', 'msgspec', 'rich'} & set(sys.modules)\n"
        "found = [getattr(deltah, name) for name in deltah.__all__]\nassert set(deltah.__all__) <= set(dir(deltah))\n"
        "assert deltah.traces.read_traces is deltah.read_traces\n"
        "try:\n    deltah.scores\nexcept AttributeError as error:\n    print(len(found) == len(deltah.__all__), error)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, env=environment, timeout=60
    )
    assert done.stdout == "True module 'deltah' has no attribute 'scores'\n", done.stderr


@pytest.mark.parametrize(
    ("output", "code", "said"), [("closed", 141, ""), ("/dev/full", 2, "error: the output cannot be written: no space")]
)
def test_an_output_that_takes_no_more_is_no_traceback(tmp_path: Path, output: str, code: int, said: str) -> None:
    if output == "/dev/full" and not Path(output).exists():
        pytest.skip("no full device here")
    traces = tmp_path / "traces.jsonl"
    write_traces(traces, [make_trajectory([[1.0], [0.5]])])
    command = [sys.executable, "-m", "deltah", "score", str(traces)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    if output == "closed":
        reader, writer = os.pipe()
        os.close(reader)
    else:
        writer = os.open(output, os.O_WRONLY)
    try:
        done = subprocess.run(
            command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False, env=environment, timeout=60
        )
    finally:
        os.close(writer)
    assert done.returncode == code
    assert done.stderr.startswith(said)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_command_that_is_told_to_end_cleans_up(tmp_path: Path, number: signal.Signals, code: int) -> None:
    """It reads a pipe that never ends, and has begun to keep rows in temporary files."""
    write_traces(tmp_path / "traces.jsonl", [make_trajectory([[1.0], [0.5]])])
    line = (tmp_path / "traces.jsonl").read_bytes()
    (folder := tmp_path / "temporary").mkdir()
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "TMPDIR": str(folder)}
    # A shell's background jobs, and all they start, ignore Ctrl-C.
    program = (
        "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from deltah.__main__ import main\nmain()"
    )
    command = subprocess.Popen(
        [sys.executable, "-c", program, "score", "-", "--out", str(tmp_path / "calls.csv")],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
    )
    assert command.stdin is not None
    command.stdin.write(line)
    command.stdin.flush()
    deadline = time.monotonic() + 60
    while not list(folder.rglob("*.calls")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    command.send_signal(number)
    _, said = command.communicate(timeout=60)
    assert command.returncode == code, said
    assert list(folder.iterdir()) == []
    assert not (tmp_path / "calls.csv").exists()
    assert b"Traceback" not in said


@pytest.mark.parametrize("out", ["", ".", "/"])
@pytest.mark.parametrize("command", [["report"], ["probe", "--server", "http://127.0.0.1:9", "--dry-run"]])
def test_an_output_that_is_no_file_is_one_sentence(tmp_path: Path, command: list[str], out: str) -> None:
    write_traces(log := tmp_path / "traces.jsonl", [make_trajectory([[1.0], [0.5]])])
    refused = CliRunner().invoke(app, [*command, str(log), "--out", out])
    assert isinstance(refused.exception, ConfigError), refused.output
    assert "expected the name of a file to write" in str(refused.exception)
