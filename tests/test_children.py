"""Children that end with their parent, however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deltah import parallel

SOURCE = Path(__file__).parents[1] / "src"
CHILD = "import os, pathlib, sys, time\npathlib.Path(sys.argv[1]).write_text(str(os.getpid()))\ntime.sleep(60)\n"
DEAF = "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + CHILD
PARENT = """
import os, sys, time
from pathlib import Path
from deltah.parallel import start, stop, stop_on_termination
folder = Path(sys.argv[1])
with stop_on_termination():
    child = start("child", [str(folder / "pid")], log=folder / "log", env=os.environ)
    try:
        time.sleep(60)
    finally:
        stop([child])
"""


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "child.py").write_text(CHILD)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(SOURCE), str(tmp_path)]))
    return tmp_path


def wait_for(path: Path, seconds: float = 30.0) -> int:
    deadline = time.monotonic() + seconds
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < deadline, f"{path} did not come"
        time.sleep(0.02)
    return int(path.read_text())


def alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def gone(pid: int, seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not alive(pid)


needs_proc = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="looks at /proc")


@needs_proc
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGKILL, -9), (signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, None)]
)
def test_a_child_ends_with_its_parent(environment: Path, number: signal.Signals, code: int | None) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(environment)],
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL) if number != signal.SIGKILL else None,
    )  # tests may run under nohup, which leaves hang-ups ignored
    child = wait_for(environment / "pid")
    parent.send_signal(number)
    assert parent.wait(10) == code or code is None
    assert gone(child)


@needs_proc
def test_a_child_that_starts_after_its_parents_end_does_nothing(environment: Path) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "deltah.parallel",
            "1",
            "child",
            str(environment / "pid"),
        ],
        stdin=subprocess.PIPE,
        check=False,
        timeout=30,
    )
    assert done.returncode == 1
    assert not (environment / "pid").exists()


def test_arguments_exit_code_and_output_are_those_of_the_module(environment: Path) -> None:
    (environment / "child.py").write_text("import sys\nprint(sys.argv[1:], __name__)\nsys.exit(5)\n")
    child = parallel.start("child", ["a", "--b"], log=environment / "log", env=dict(os.environ))
    assert child.wait(30) == 5
    assert (environment / "log").read_text() == "['a', '--b'] __main__\n"


@needs_proc
def test_stop_kills_what_does_not_end(environment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (environment / "child.py").write_text(DEAF)
    monkeypatch.setattr(parallel, "STOP_WAIT_S", 0.2)
    child = parallel.start("child", [str(environment / "pid")], log=environment / "log", env=dict(os.environ))
    wait_for(environment / "pid")
    parallel.stop([child])
    assert child.returncode == -signal.SIGKILL


def test_an_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with parallel.stop_on_termination():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) is parallel._leave
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)
