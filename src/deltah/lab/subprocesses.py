"""Child processes that end with their parent.

`start` runs `python -m MODULE ARGUMENTS`. However the parent ends, SIGKILL included, the child ends too, in two ways at
once: by the kernel's parent-death signal (Linux), and by a thread that waits for the end of the pipe which the parent
alone holds open (everywhere). Processes that the child starts are its own affair.
"""

from __future__ import annotations

import ctypes
import os
import runpy
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

STOP_WAIT_S = 10.0
"""How long `stop` waits before it kills, in seconds."""

_PR_SET_PDEATHSIG = 1


def start(module: str, arguments: Sequence[str], *, log: Path, env: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start `python -m module arguments` as a child that ends with this process."""
    guard = [sys.executable, "-m", "deltah.lab.subprocesses", str(os.getpid()), module]
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
    """Guard this process, then become the module: `PARENT MODULE ARGUMENTS`."""
    parent, module, *rest = arguments
    _end_with_parent(int(parent))
    sys.argv = [module, *rest]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


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


if __name__ == "__main__":
    main(sys.argv[1:])
