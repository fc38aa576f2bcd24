"""A byte-level tokenizer without merges, so that every template can be tried on it and no text is unknown."""

from __future__ import annotations

from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast


def byte_tokenizer(chat_template: str | None, response_template: dict[str, Any] | None = None) -> Any:
    control = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    pieces = [*control, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    core = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in control])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=control[0],
        bos_token=control[1],
        eos_token=control[2],
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = chat_template
    if response_template is not None:
        tokenizer.response_template = response_template
    return tokenizer
