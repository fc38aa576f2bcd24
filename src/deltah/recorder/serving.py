"""The web server around the pass-through; needs uvicorn (the extra `record`)."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Final

import uvicorn

from deltah.errors import ConfigError
from deltah.text_format import agreeing, count

IDLE_S: Final = 75.0
"""How long idle connections of clients are kept."""
_SIGNALS: Final = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class _Server(uvicorn.Server):
    """Ends when what is under way is done, at the second signal at once; the signals do not go further."""

    say: Callable[[str], None] = print

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take the signals that end a process, but for those that are ignored, as by nohup."""
        taken = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
        before = {number: signal.signal(number, self.handle_exit) for number in taken}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to end, or cut off what is left."""
        self.force_exit, self.should_exit = self.should_exit, True
        if not self.force_exit and (n := len(self.server_state.tasks)):
            self.say(
                f"{count(n, 'answer')} {agreeing(n, 'is', 'are')} still under way; "
                f"press Ctrl-C again to cut {agreeing(n, 'it', 'them')} off"
            )


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; `ConfigError` if the address is taken or is none of this machine."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror or error
        raise ConfigError(
            f"cannot listen on {host}, port {port} ({reason}); choose another --port or --host"
        ) from error


def serve(app: Any, listening: socket.socket, say: Callable[[str], None]) -> None:
    """Serve until a signal comes, then until every answer under way has passed."""
    config = uvicorn.Config(
        app,
        http="h11",
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="critical",
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        timeout_keep_alive=int(IDLE_S),
    )
    server = _Server(config)
    server.say = say
    gc.collect()
    gc.freeze()  # what is loaded by now stays: to look it through again would delay tokens by tens of milliseconds
    asyncio.run(server.serve(sockets=[listening]))
