"""Logs of real servers against the model that they served: what is read from a log is what the model computes."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("transformers")

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from deltah.core.types import FloatArray
from deltah.jsonlines import read_json_objects
from deltah.lab import checkpoint_path
from deltah.traces import read_traces

DATA = Path(__file__).parents[1] / "traces" / "data"
RENAMED = {"</think>": "<answer>", "": "<|end|>"}
"""Of SGLang's reasoning samples' copy of the agent; and what llama.cpp's server prints for the end token."""


@cache
def agent() -> tuple[Any, Any]:
    model = AutoModelForCausalLM.from_pretrained(checkpoint_path(), dtype=torch.float32)
    return AutoTokenizer.from_pretrained(checkpoint_path()), model.eval()


def drawn(response: Any) -> list[str]:
    """Texts of the first choice's tokens, of a whole response or of chunks."""
    bodies = response if isinstance(response, list) else [response]
    choices = [choice for body in bodies for choice in body["choices"] if choice["index"] == 0]
    return [token["token"] for c in choices if c.get("logprobs") for token in c["logprobs"]["content"]]


def said(message: dict[str, Any]) -> dict[str, Any]:
    thought = message.get("reasoning_content") or message.get("reasoning")
    return {**message, "content": thought or message["content"]}


def computed(path: Path, temperature: float) -> tuple[FloatArray, FloatArray]:
    """(T,) log-probabilities and (T,) entropies, nats, of the log's tokens, each call with the prompt it was sent."""
    tokenizer, model = agent()
    logprobs, entropies = list[float](), list[float]()
    for _, entry in read_json_objects(path):
        messages = [said(message) for message in entry["request"]["messages"]]
        prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        ids = [tokenizer.convert_tokens_to_ids(RENAMED.get(text, text)) for text in drawn(entry["response"])]
        with torch.no_grad():
            logits = model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]
        logp = torch.log_softmax(logits.double() / temperature, dim=-1)
        logprobs += logp[torch.arange(len(ids)), ids].tolist()
        entropies += (-(logp.exp() * logp).sum(dim=-1)).tolist()
    return np.array(logprobs), np.array(entropies)


@pytest.mark.parametrize(
    ("name", "temperature"),
    [
        ("vllm-tools", 1.0),
        ("vllm-tools-stream", 1.0),
        ("vllm-reasoning", 1.0),
        ("llama-server-tools", 1.0),
        ("sglang-tools", 1.0),
        ("sglang-tools-stream", 1.0),
        ("sglang-reasoning", 1.0),
        ("sglang-reasoning-stream", 1.0),
        ("sglang-cut-off", 1.0),
        ("sglang-two-choices-stream", 1.0),
        ("sglang-temperature", 0.7),
        ("sglang-original-logprobs", 1.0),
        ("sglang-greedy", 1.0),
        ("sglang-greedy-stream", 1.0),
    ],
)
def test_intervals_hold_the_entropies_of_the_model(name: str, temperature: float) -> None:
    """SGLang reports the distribution at the sampling temperature unless told otherwise; greedy decoding has none."""
    path = DATA / f"{name}.jsonl.zst"
    logprobs, entropies = computed(path, temperature)
    [t] = read_traces(path, vocab_size=1394, strict=True)
    assert t.entropy_lower is not None
    assert t.entropy_upper is not None
    np.testing.assert_allclose(t.logprobs, logprobs, atol=1e-3)
    assert (t.entropy_lower <= entropies).all()
    assert (entropies <= t.entropy_upper).all()


def test_sglang_does_not_report_temperature_1_of_warm_samples() -> None:
    logprobs, _ = computed(DATA / "sglang-temperature.jsonl.zst", 1.0)
    [t] = read_traces(DATA / "sglang-temperature.jsonl.zst", vocab_size=1394, strict=True)
    assert np.abs(t.logprobs - logprobs).max() > 0.1
    assert t.temperature is None, "the log does not say which it is"
