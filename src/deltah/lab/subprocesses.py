"""Child processes that end with their parent and never work where an earlier one still does.

`start` runs `python -m MODULE ARGUMENTS` under a guard. However the parent ends, SIGKILL included, the child ends too,
in two ways at once: by the kernel's parent-death signal (Linux), and by a thread that waits for the end of the pipe
which the parent alone holds open (everywhere). While it lives the child holds a lock file; a second child with the same
lock waits for the first to end, and gives up with one sentence that names it.

Processes that the child starts are its own affair.
"""

from __future__ import annotations

import ctypes
import os
import runpy
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # pragma: no cover - Windows, where two children are told apart by nothing
    fcntl = None  # type: ignore[assignment]

LOCK_WAIT_S = 20.0
"""How long a child waits for its lock, in seconds; an earlier holder may still be ending."""
STOP_WAIT_S = 10.0
"""How long `stop` waits before it kills, in seconds."""

_POLL_S = 0.1
_PR_SET_PDEATHSIG = 1


def start(
    module: str, arguments: Sequence[str], *, lock: Path, log: Path, env: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    """Start `python -m module arguments` as a child that ends with this process.

    Args:
        module: What to run.
        arguments: Its command line.
        lock: File that the child locks; its folder must exist.
        log: File for both of its output streams, replaced.
        env: Its environment.
    """
    guard = [sys.executable, "-m", "deltah.lab.subprocesses", str(os.getpid()), str(lock), module]
    with log.open("wb") as output:
        return subprocess.Popen(
            [*guard, *arguments], stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT, env=dict(env)
        )


def stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """End processes: all are asked, then each is awaited, and killed if it does not end in time."""
    for process in processes:
        if process.poll() is None:
            process.terminate()
    for process in processes:
        try:
            process.wait(STOP_WAIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdin is not None:
            process.stdin.close()


def main(arguments: Sequence[str]) -> None:
    """Guard this process, then become the module: `PARENT LOCK MODULE ARGUMENTS`."""
    parent, lock, module, *rest = arguments
    _end_with_parent(int(parent))
    held = _hold(Path(lock))
    sys.argv = [module, *rest]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        if held is not None:
            held.close()


def _end_with_parent(parent: int) -> None:
    """Arrange to end when the parent does; end at once if it already has."""
    if sys.platform == "linux":
        # Set by the child itself, after exec: code between fork and exec may run in a process of many threads.
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.name == "posix" and os.getppid() != parent:
        os._exit(1)
    threading.Thread(target=_watch_pipe, name="parent-watch", daemon=True).start()


def _watch_pipe() -> None:
    """Wait for the end of standard input, whose other end the parent alone holds."""
    while os.read(0, 1024):
        pass
    os._exit(1)


def _hold(lock: Path) -> IO[str] | None:
    """Lock a file until this process ends, waiting for an earlier holder; exit with code 2 if that goes on working."""
    if fcntl is None:
        return None
    file = lock.open("a+", encoding="utf-8")
    deadline = time.monotonic() + LOCK_WAIT_S
    while not _locked(file):
        if time.monotonic() > deadline:
            file.seek(0)
            sys.stderr.write(
                f"error: process {file.read().strip() or '(unknown)'} of an earlier run is still working here; wait "
                "for it or stop it, then run the same command again\n"
            )
            sys.exit(2)
        time.sleep(_POLL_S)
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()
    return file


def _locked(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


if __name__ == "__main__":
    main(sys.argv[1:])
