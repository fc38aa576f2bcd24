"""JSON-lines logs with top-20 log-probabilities: whole `deltah score` against decoding the same file and nothing else.

    python benchmarks/jsonl_score.py --megabytes 200 --repetitions 7

* `deltah score`: the command as a user runs it, with `--out calls.jsonl`: reading, entropies, bounds, segments,
  signals, waste, statistics, tables; with `--workers 1` and `2`.
* Two logs of four files: one line a conversation, and one line an API call, whose conversations have to be joined (by
  one process).
* `msgspec, every field`: typed records of all that is in the file. `msgspec, needed fields`: what an entropy needs,
  the rest is skipped; the fastest decoder into typed records that we know.
* `orjson`: dictionaries and lists, no types.

The required ratio is 0.60 of the fastest typed one.
"""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
from collections.abc import Callable
from functools import partial
from typing import Any, Generic, TypeVar

import harness
import msgspec
import synthetic


class NeededTop(msgspec.Struct, gc=False):
    logprob: float


class NeededToken(msgspec.Struct, gc=False):
    token: str
    logprob: float
    top_logprobs: list[NeededTop]


class NeededBlock(msgspec.Struct, gc=False):
    content: list[NeededToken]


class Top(NeededTop, gc=False):
    token: str
    bytes: list[int]


class Token(msgspec.Struct, gc=False):
    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[Top]


class Block(msgspec.Struct, gc=False):
    content: list[Token]


LogProbs = TypeVar("LogProbs")


class Message(msgspec.Struct, Generic[LogProbs], gc=False):
    role: str
    content: str
    tool_calls: list[dict[str, Any]] = []
    tool_call_id: str | None = None
    logprobs: LogProbs | None = None


class Choice(msgspec.Struct, Generic[LogProbs], gc=False):
    index: int
    finish_reason: str
    message: Message[LogProbs]
    logprobs: LogProbs


class Request(msgspec.Struct, Generic[LogProbs], gc=False):
    model: str
    messages: list[Message[LogProbs]]


class Response(msgspec.Struct, Generic[LogProbs], gc=False):
    model: str
    choices: list[Choice[LogProbs]]


class Line(msgspec.Struct, Generic[LogProbs], gc=False):
    id: str
    vocab_size: int
    logprobs_mode: str
    model: str = ""
    messages: list[Message[LogProbs]] = []
    outcome: float | None = None
    request: Request[LogProbs] | None = None
    response: Response[LogProbs] | None = None


def decode_all(path: str, decode: Callable[[bytes], object]) -> harness.Work:
    def work() -> int:
        for name in harness.files(path):
            with open(name, "rb") as file:
                for line in file:
                    decode(line)
        return harness.size(path)

    return work


def every_field(path: str) -> harness.Work:
    return decode_all(path, msgspec.json.Decoder(Line[Block]).decode)


def needed_fields(path: str) -> harness.Work:
    return decode_all(path, msgspec.json.Decoder(Line[NeededBlock]).decode)


def untyped(path: str) -> harness.Work:
    import orjson

    return decode_all(path, orjson.loads)


def whole_command(path: str, workers: int) -> harness.Work:
    from deltah.cli.app import app

    def work() -> int:
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            out = os.path.join(folder, "calls.jsonl")
            app(["score", path, "--out", out, "--workers", str(workers)], standalone_mode=False)
        return harness.size(path)

    return work


CASES: dict[str, harness.Case] = {
    **{f"deltah score, {n}": partial(whole_command, workers=n) for n in (1, 2)},
    "msgspec, needed fields": needed_fields,
    "msgspec, every field": every_field,
    "orjson": untyped,
}


FORMS = {"conversations": synthetic.chat_lines, "API calls": synthetic.api_lines}
"""What a line of the log holds."""
FILES = 4
"""Of a log: each is read by one process."""


def generate(folder: str, form: str, n_bytes: int) -> None:
    """A log of `FILES` files."""
    os.makedirs(folder)
    lines = FORMS[form](n_bytes)
    for i in range(FILES):
        with open(os.path.join(folder, f"{i}.jsonl"), "wb") as file:
            for line in lines:
                file.write(line)
                if i < FILES - 1 and file.tell() >= n_bytes / FILES:
                    break


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--megabytes", type=int, default=100, help="of the smaller of two files")
    arguments = parser.parse_args()
    harness.print_machine(["deltah", "numpy", "msgspec", "orjson"])
    ours = [name for name in CASES if name.startswith("deltah")]
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        for form in FORMS:
            small, large = (os.path.join(folder, f"{form.replace(' ', '-')}-{scale}") for scale in (1, 4))
            generate(small, form, arguments.megabytes * 10**6)
            generate(large, form, 4 * arguments.megabytes * 10**6)
            print(f"\n== {form}: {harness.size(large) / 1e6:.0f} MB", flush=True)
            harness.report(harness.measure(list(CASES), large, arguments.repetitions), 1e6, "MB/s", ours)
            print()
            for name in ours:
                harness.report_memory(name, {"1x": small, "4x": large})


if __name__ == "__main__":
    harness.main(CASES, main)
