"""`deltah record`: pass requests on to a server and write a log with the log-probabilities of its answers."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from deltah.errors import ConfigError, missing_dependency
from deltah.text_format import count, inert


def command(
    upstream: Annotated[str, typer.Option(help="URL of the server, such as http://localhost:8000/v1.")],
    out: Annotated[Path, typer.Option(help="Log that is appended to, JSON lines.")],
    host: Annotated[str, typer.Option(help="Address to listen on; any other opens it to the network.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.", min=0, max=65535)] = 8788,
    top_logprobs: Annotated[
        int, typer.Option(help="Log-probabilities a token to ask for; fewer where the server gives fewer.", min=1)
    ] = 20,
    session_header: Annotated[
        str | None, typer.Option(help="Header in which clients name their session (x-session-id is known).")
    ] = None,
    logprobs_mode: Annotated[
        str | None, typer.Option(help="What the server reports, such as raw_logprobs; written to each line.")
    ] = None,
) -> None:
    """Pass requests on to a server, and log its answers with log-probabilities."""
    try:
        from deltah.recorder.passthrough import LOCAL, Recorder, Upstream, listen, serve
    except ImportError as error:
        raise missing_dependency("uvicorn", extra="record", purpose="deltah record") from error
    from deltah.recorder.logfile import LogFile

    server = Upstream(upstream, top_logprobs, _say)
    with listen(host, port) as listening:
        port = listening.getsockname()[1]
        if server.url.host in LOCAL and server.url.port == port:
            raise ConfigError(f"--upstream {server} is the address of the recorder itself; choose another --port")
        log, facts = LogFile(out, _say), {"logprobs_mode": logprobs_mode} if logprobs_mode else {}
        recorder = Recorder(server, log, session_header, **facts)
        address = f"http://{f'[{host}]' if ':' in host else host}:{port}{server.url.path.rstrip('/') or '/v1'}"
        _say(f"recording {server} to {out}; point clients at {address} (Ctrl-C ends)")
        if host not in LOCAL:
            _say(f"{host} is open to other machines: whoever reaches it can use {server}")
        server.check()
        serve(recorder, listening, _say)
    log.close()
    counts = recorder.counts
    _say(
        f"{count(log.n_written, 'exchange')} written to {out}: {counts['measured']:,} with log-probabilities, "
        f"{counts['failed']:,} answered with an error, {counts['cut']:,} broken off; {log.n_lost:,} lost"
    )
    if counts["passed"]:
        _say(f"{count(counts['passed'], 'request')} of other kinds passed unrecorded")
    if counts["measured"]:
        _say(f"next: deltah score {out}")
    if log.n_lost:
        raise typer.Exit(1)


def _say(sentence: str) -> None:
    with suppress(OSError):  # a terminal that is gone costs no request
        typer.echo(inert(sentence), err=True)
