"""Texts of token ids, against the tokenizers library."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from deltah.errors import DataError
from deltah.traces.logprobs import pack
from deltah.traces.tokenizer_files import drawn_tokens, token_bytes

TEXTS = ["Wetter in Köln: 7\u00b0, naß 🌧️\n\n<tool_call>", "def f(x):\n\treturn x  # Ünïcode", "", " leading"]


def trained(kind: str) -> Any:
    """A small tokenizer of one of the two common kinds, with every byte in its vocabulary."""
    library = pytest.importorskip("tokenizers")
    decoders, split = library.decoders, library.pre_tokenizers
    if kind == "byte level":
        pieces = [*sorted(split.ByteLevel.alphabet()), "\u0120x", "in"]
        made = library.Tokenizer(
            library.models.BPE({p: i for i, p in enumerate(pieces)}, [("\u0120", "x"), ("i", "n")])
        )
        made.pre_tokenizer, made.decoder = split.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    else:
        pieces = [*(f"<0x{b:02X}>" for b in range(256)), "\u2581", "e", "\u00f6"]
        made = library.Tokenizer(library.models.BPE({p: i for i, p in enumerate(pieces)}, [], byte_fallback=True))
        made.pre_tokenizer = split.Metaspace(prepend_scheme="never", split=False)
        spaces = decoders.Replace("\u2581", " ")
        made.decoder = decoders.Sequence([spaces, decoders.ByteFallback(), decoders.Fuse()])
    made.add_special_tokens(["<tool_call>"])
    return made


@pytest.mark.parametrize("kind", ["byte level", "sentence piece"])
@pytest.mark.parametrize("text", TEXTS)
def test_the_texts_of_ids_are_what_the_library_decodes(tmp_path: Path, kind: str, text: str) -> None:
    tokenizer = trained(kind)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    ids = tokenizer.encode(text).ids
    known = token_bytes(str(tmp_path / "log.jsonl"), None)
    assert "".join(pack(drawn_tokens(ids, known, 0)).texts) == text


def test_a_model_in_a_folder_brings_its_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    vocabulary = {"model": {"vocab": [["\u2581ja", -1.0]]}, "decoder": None}
    (tmp_path / "model" / "tokenizer.json").write_text(json.dumps(vocabulary))
    assert token_bytes(str(tmp_path / "logs" / "log.jsonl"), str(tmp_path / "model")) == {0: b" ja"}


@pytest.mark.parametrize(
    ("model", "known"),
    [
        ("Qwen/Qwen3-4B", True),
        ("qwen2.5-coder:7b", True),
        ("Qwen/Qwen3.5-9B", False),
        ("glm-4.6", False),
        (None, False),
    ],
)
def test_without_a_file_the_delimiters_of_a_family_are_known(tmp_path: Path, model: str | None, known: bool) -> None:
    found = token_bytes(str(tmp_path / "log.jsonl"), model)
    assert (found.get(151657) == b"<tool_call>") is known
    # Of two calls only one begins where it can be seen, so no border of the message is known.
    assert not pack(drawn_tokens([7, 151657, 7], found, 2)).has_texts
    hidden = pack(drawn_tokens([7, 151657, 7], found, 1))
    assert hidden.has_texts is known
    assert hidden.texts == (["\ufffd", "<tool_call>", "\ufffd"] if known else ["", "", ""])


def test_a_file_that_is_no_tokenizer_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text('{"model": {}}')
    with pytest.raises(DataError, match=r"tokenizer\.json: cannot read this tokenizer"):
        token_bytes(str(tmp_path / "log.jsonl"), None)
