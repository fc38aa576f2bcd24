"""Texts of token ids: from the `tokenizer.json` of the model, where the machine has it.

Training logs keep ids, and only the tokenizer knows their texts. The file is looked for beside the log, in the run that
it belongs to, in the model's own folder and in the Hugging Face cache; nothing is downloaded. Without it only the
special tokens of known families have a text, which is enough to see where a call begins.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import msgspec

from deltah.errors import DataError
from deltah.traces.openai_schema import TokenLogprob

FILE_NAME: Final = "tokenizer.json"
HIDDEN, UNREADABLE = "\ufffd", "token_id:{}"
"""How a token reads whose text is not known: where the borders of its message are, and where they are not."""
_CACHE: Final = Path("~/.cache/huggingface/hub").expanduser()
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_PRINTABLE: Final = (*range(33, 127), *range(161, 173), *range(174, 256))
_ALPHABET: Final = dict(zip(map(chr, _PRINTABLE), _PRINTABLE, strict=True)) | {
    chr(256 + n): byte for n, byte in enumerate(byte for byte in range(256) if byte not in _PRINTABLE)
}
"""Byte of each character in which a byte-level vocabulary spells its tokens: printable bytes are themselves."""
_QWEN: Final = re.compile(r"qwen[-_]?(?:2(?:\.5)?|3)(?![.\d])", re.IGNORECASE)
_QWEN_TOKENS: Final = {
    151643: b"<|endoftext|>", 151645: b"<|im_end|>", 151657: b"<tool_call>", 151658: b"</tool_call>",
    151667: b"<think>", 151668: b"</think>",
}  # fmt: skip
"""Delimiters of Qwen2, 2.5 and 3, from their published `tokenizer_config.json`."""


def token_bytes(log: str, model: str | None) -> Mapping[int, bytes]:
    """Bytes of each token of a model that are known; `log` is the file that holds its ids.

    Raises:
        DataError: if a tokenizer file is found and cannot be read.
    """
    found = next((path for path in _candidates(log, model) if path.is_file()), None)
    if found is not None:
        return _read(found, found.stat().st_mtime)
    return _QWEN_TOKENS if _QWEN.search(model or "") else {}


def drawn_tokens(ids: Sequence[int], known: Mapping[int, bytes], n_calls: int) -> list[TokenLogprob]:
    """Sampled tokens of one message as a server's block of log-probabilities lists them, without numbers.

    Where some have no text, the known ones have to show every call of the message, or all count as unknown.
    """
    spelled = [known.get(id) for id in ids]
    unknown = HIDDEN if known and spelled.count(b"<tool_call>") == n_calls else UNREADABLE
    return [
        TokenLogprob(token=unknown.format(id), id=id)
        if text is None
        else TokenLogprob(token=text.decode(errors="replace"), id=id, bytes=list(text))
        for id, text in zip(ids, spelled, strict=True)
    ]


def _candidates(log: str, model: str | None) -> Iterator[Path]:
    """Where the tokenizer of a run may lie, the nearest first."""
    folder = Path(log).resolve().parent
    run = next((above.parent for above in folder.parents if above.name == "monitors"), folder)
    yield from (folder / FILE_NAME, folder.parent / FILE_NAME, run / FILE_NAME)
    yield from sorted(run.glob(f"weights/*/{FILE_NAME}"))
    if model:
        yield Path(model).expanduser() / FILE_NAME
        yield from sorted(_CACHE.glob(f"models--{model.replace('/', '--')}/snapshots/*/{FILE_NAME}"))


@lru_cache(maxsize=4)
def _read(path: Path, changed: float) -> dict[int, bytes]:
    """Bytes of every token in a tokenizer file, as it was when it was last changed."""
    try:
        tokenizer: dict[str, Any] = msgspec.json.decode(path.read_bytes())
        listed = tokenizer["model"]["vocab"]
        ids: dict[str, int] = listed if isinstance(listed, dict) else {token: i for i, (token, _) in enumerate(listed)}
        by_bytes = "ByteLevel" in msgspec.json.encode(tokenizer.get("decoder")).decode()
        spelled = {i: _spelled(token, by_bytes=by_bytes) for token, i in ids.items()}
        return spelled | {added["id"]: added["content"].encode() for added in tokenizer.get("added_tokens") or ()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: cannot read this tokenizer ({error}); remove the file or copy it again") from error


def _spelled(token: str, *, by_bytes: bool) -> bytes:
    """Bytes of a byte-level token, or of one of SentencePiece's: a bar for a space, bytes as `<0x0A>`."""
    if by_bytes:
        return bytes(map(_ALPHABET.__getitem__, token)) if _ALPHABET.keys() >= {*token} else token.encode()
    byte = _BYTE.fullmatch(token)
    return bytes([int(byte[1], 16)]) if byte else token.replace("\u2581", " ").encode()
