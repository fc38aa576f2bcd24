"""Models by name: their files, their weights, and whether their chat template can carry an agent loop.

A name is a directory, a hub id, or `lab`, the agent that deltah ships. A chat template is tested with the functions of
TRL and transformers that the trainer uses later. torch and transformers are imported where they are used.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from deltah.errors import ModelError, missing_dependency
from deltah.probe.server_api import RENDER_ERRORS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ANSWER_FORMAT: Final = "set tokenizer.response_template (see the transformers guide to response parsing)"
_OTHER_MODEL: Final = "use a tool-calling instruct model such as Qwen/Qwen3-0.6B"
_QUESTION: Final = {"role": "user", "content": "What is 6 times 7?"}
_FUNCTION: Final = {"name": "multiply", "arguments": {"a": 6, "text": 'say "7"'}}
_TOOL: Final = {
    "name": "multiply",
    "description": "Multiply.",
    "parameters": {"type": "object", "properties": {"a": {"type": "integer"}, "text": {"type": "string"}}},
}
_CALL: Final = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": _FUNCTION}]}


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """Where `from_pretrained` finds the model that a user named."""

    name: str
    path: str
    """A directory, or a hub id."""
    base: str | None = None
    """The model that a LoRA adapter in `path` was trained on."""

    @property
    def tokenizer(self) -> str:
        """Where the tokenizer is: beside the weights, or with the base model of an adapter that has none."""
        alone = self.base is not None and not (Path(self.path) / "tokenizer_config.json").exists()
        return str(self.base) if alone else self.path


def resolve_model(name: str) -> ModelFiles:
    """Find a model's files; a ModelError if a local path holds none."""
    if name == "lab":
        return ModelFiles(name, str(resources.files("deltah.lab") / "checkpoint"))
    local = Path(name)
    if not local.exists() and (name.startswith((".", "/", "~")) or name.count("/") != 1):
        raise ModelError(f"no model at {name!r}; give a local directory, a hub id 'owner/name', or 'lab'")
    if not local.exists() or (local / "config.json").exists():
        return ModelFiles(name, name)
    if not (local / "adapter_config.json").exists():
        raise ModelError(f"{name} holds no model: expected a directory with config.json, as save_pretrained writes it")
    if find_spec("peft") is None:
        raise missing_dependency("peft", extra="train", purpose=f"{name} holds a LoRA adapter, which")
    try:
        base = json.loads((local / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{name}/adapter_config.json does not name the model it was trained on ({error})") from error
    if not base:
        raise ModelError(f"{name}/adapter_config.json names no base_model_name_or_path; write the model's path there")
    return ModelFiles(name, name, base=resolve_model(str(base)).path)


@contextmanager
def _loading(what: str, files: ModelFiles) -> Iterator[None]:
    """Turn whatever readers of a dozen formats raise into one sentence."""
    try:
        yield
    except Exception as error:
        lines = str(error).strip().splitlines()
        reason = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
        where = "its files; download or save it again" if Path(files.path).is_dir() else "the name and the connection"
        raise ModelError(
            f"the {what} of {files.name!r} does not load ({reason}); it must be a causal language model as "
            f"save_pretrained writes it: check {where}"
        ) from error


def load_model(
    files: ModelFiles, *, device: str = "auto", train_all: bool = False, with_tools: bool = True
) -> tuple[Any, Any]:
    """Model (an adapter merged into its base) and tokenizer; `with_tools` checks its chat template first.

    Weights are bfloat16 on a GPU, unless the optimiser changes all of them: an AdamW step of 1e-6 is below half of
    bfloat16's spacing for nearly every weight and would be rounded away, so trained weights are float32 (the trainer
    computes in bfloat16 by autocast). A LoRA adapter is float32 in any case.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with _loading("tokenizer", files):
        tokenizer = AutoTokenizer.from_pretrained(files.tokenizer)
    if with_tools:
        check_chat_template(tokenizer, files.name)
    dtype = torch.bfloat16 if on_gpu(device) and not train_all else torch.float32
    with _loading("model", files):
        model = AutoModelForCausalLM.from_pretrained(files.base or files.path, dtype=dtype)
        if files.base is not None:
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, files.path).merge_and_unload()
    return model, tokenizer


def on_gpu(device: str) -> bool:
    """Whether a model goes to a GPU, with `auto` or `cpu` asked for."""
    import torch

    return device == "auto" and torch.cuda.is_available()


def check_chat_template(tokenizer: PreTrainedTokenizerBase, model_name: str) -> None:
    """Raise a ModelError with the first fault of a tokenizer for rollouts with tools, and its remedy."""
    from trl import chat_template_utils as utils

    if not tokenizer.chat_template:
        raise ModelError(
            f"the tokenizer of {model_name!r} has no chat template, so there is no format for turns and tool calls; "
            f"{_OTHER_MODEL}, or set tokenizer.chat_template and save the tokenizer"
        )
    _check(
        lambda: _render(tokenizer, [_QUESTION], add_generation_prompt=True) is not None,
        f"the chat template of {model_name!r} does not render a plain question",
        "repair tokenizer.chat_template and save the tokenizer",
    )
    _check(
        lambda: utils.supports_tool_calling(tokenizer),
        f"the chat template of {model_name!r} does not render a tool exchange (user, assistant with tool_calls, tool) "
        "whole",
        f"{_OTHER_MODEL}, or give the tokenizer a template that writes message.tool_calls and messages of role 'tool'",
    )
    parser = _with_parser(tokenizer, model_name)
    _check(
        lambda: _parsed_call(parser) == [_FUNCTION],
        f"the response_template of {model_name!r} does not read back a tool call that its chat template wrote",
        f"the two must agree: {_ANSWER_FORMAT}",
    )
    _check(
        lambda: utils.is_chat_template_prefix_preserving(tokenizer) or utils.get_training_chat_template(tokenizer),
        f"the chat template of {model_name!r} renders an earlier turn differently once a tool result follows it, so "
        "the tokens that were sampled would not be those that are trained on, and TRL has no training template for it",
        "edit the template so that a turn's text depends on that turn alone, and save the tokenizer",
    )


def _check(holds: Callable[[], object], fault: str, remedy: str) -> None:
    """Raise a ModelError where something does not hold, or cannot be tested; the error's first line is named."""
    cause: Exception | None = None
    try:
        if holds():
            return
    except RENDER_ERRORS as error:
        cause = error
    reason = f" ({type(cause).__name__}: {str(cause).splitlines()[0]})" if cause is not None and str(cause) else ""
    raise ModelError(f"{fault}{reason}; {remedy}") from cause


def _with_parser(tokenizer: PreTrainedTokenizerBase, model_name: str) -> PreTrainedTokenizerBase:
    """A tokenizer with a parser: its own, or on a shallow copy the one TRL knows for its chat template."""
    from trl.chat_template_utils import add_response_schema

    if getattr(tokenizer, "response_template", None) is not None:
        return tokenizer
    try:
        return add_response_schema(copy.copy(tokenizer))
    except ValueError as error:
        raise ModelError(
            f"the tokenizer of {model_name!r} has no response_template, and TRL knows none for its chat template (it "
            f"knows the exact templates of some model families only), so tool calls cannot be read from the model's "
            f"text; {_ANSWER_FORMAT} and save the tokenizer"
        ) from error


def _parsed_call(tokenizer: PreTrainedTokenizerBase) -> list[object]:
    """Functions of a rendered call, fed to the parser as if sampled; a turn may rewrite the generation prompt."""
    full = _render(tokenizer, [_QUESTION, _CALL])
    prompt, bare = (_render(tokenizer, [_QUESTION], add_generation_prompt=start) for start in (True, False))
    prefix = prompt if full.startswith(prompt) else bare
    if not full.startswith(prefix):
        raise ValueError("the rendered question changes when an answer follows it")
    parsed = tokenizer.parse_response(full[len(prefix) :], prefix=prefix, tools=[_TOOL])
    return [call.get("function") for call in parsed.get("tool_calls") or []]


def _render(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, Any]], **options: bool) -> str:
    return str(tokenizer.apply_chat_template(messages, tokenize=False, **options))
