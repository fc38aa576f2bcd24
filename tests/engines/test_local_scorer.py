"""The local backend against a plain forward pass of a tiny random model: shared prefix, batches, focus, limits."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

pytest.importorskip("transformers")

import torch
from probe_fixtures import searched
from tokenizer_fixtures import byte_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM, PreTrainedTokenizerFast

from deltah import ToolCall
from deltah.core.align import rows_that_predict
from deltah.core.entropy import entropy_from_logits
from deltah.core.types import Estimator, Segment, SegmentKind, Trajectory
from deltah.engines import local_scorer
from deltah.engines.local_scorer import LocalBackend, fingerprint, load_local
from deltah.engines.models import ModelFiles
from deltah.errors import ModelError
from deltah.probe.contexts import LoggedCall, Splicer, contexts_of
from deltah.probe.queries import (
    ChatContext,
    ContextTooLongError,
    Query,
    QueryError,
    TextContinuation,
    TokenContext,
    TokenContinuation,
)

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for c in m.tool_calls or [] %}[{{ c.function.arguments.q }}]{% endfor %}<|im_end|>\n{% endfor %}"
    "{{ '<|im_start|>assistant\n' if add_generation_prompt }}"
)


def tiny(window: int = 256, template: str | None = TEMPLATE, kind: Any = LlamaForCausalLM) -> LocalBackend:
    tokenizer = byte_tokenizer(template)
    torch.manual_seed(0)
    config_class = LlamaConfig if kind is LlamaForCausalLM else MistralConfig
    extra = {} if kind is LlamaForCausalLM else {"sliding_window": 8}
    config = config_class(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=window,
        initializer_range=0.4,
        **extra,
    )
    return LocalBackend(kind(config), tokenizer, "tiny")


@pytest.fixture(scope="module")
def backend() -> LocalBackend:
    return tiny()


def by_hand(backend: LocalBackend, context: list[int], new: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities and entropies of the continuation from one plain forward pass, in numpy."""
    with torch.no_grad():
        logits = backend.model(torch.tensor([context + new])).logits[0].double().numpy()
    rows = logits[[len(context) + i - 1 for i in range(len(new))]]
    shifted = rows - rows.max(axis=1, keepdims=True)
    logp = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return logp[np.arange(len(new)), new], entropy_from_logits(rows)


def tokens(context: list[int], new: list[int]) -> Query:
    return Query(
        context=TokenContext(ids=tuple(context)),
        continuation=TokenContinuation(ids=tuple(new), focus=tuple(i % 2 == 0 for i in range(len(new)))),
    )


SHARED = [7, 8, 9, 10, 11]
ROWS = [
    ([*SHARED, 20, 21, 22], [30, 31, 32]),
    ([*SHARED, 20, 21, 22], [40]),
    ([*SHARED, 50], [30, 31, 32, 33, 34]),
    (SHARED, [60, 61]),
]


@pytest.mark.parametrize("kind", [LlamaForCausalLM, MistralForCausalLM])
@pytest.mark.parametrize("rows", [ROWS, ROWS[:1], ROWS[2:], [([5], [6, 7]), ([6], [6, 7])]])
def test_scores_equal_a_direct_forward_pass(kind: Any, rows: list[tuple[list[int], list[int]]]) -> None:
    backend = tiny(kind=kind)
    for scores, (context, new) in zip(backend.score([tokens(*row) for row in rows]), rows, strict=True):
        logprobs, entropy = by_hand(backend, context, new)
        np.testing.assert_allclose(scores.logprobs, logprobs, atol=2e-5)
        np.testing.assert_allclose(scores.entropy, entropy, atol=2e-5)
        assert scores.estimator is Estimator.EXACT
        assert scores.n_context == len(context)
        assert scores.n_tokens == len(context) + len(new)
        assert scores.focus.tolist() == [i % 2 == 0 for i in range(len(new))]


@pytest.mark.parametrize(("logits", "batch"), [(1, 2**14), (2**26, 12), (1, 1)])
def test_small_batches_change_nothing(monkeypatch: pytest.MonkeyPatch, logits: int, batch: int) -> None:
    backend = tiny()
    queries = [tokens(*row) for row in ROWS]
    expected = list(backend.score(queries))
    monkeypatch.setattr(local_scorer, "MAX_LOGITS", logits)
    monkeypatch.setattr(local_scorer, "MAX_BATCH_TOKENS", batch)
    monkeypatch.setattr(local_scorer, "_ROWS_REDUCED", 2)
    for scores, other in zip(backend.score(queries), expected, strict=True):
        np.testing.assert_allclose(scores.logprobs, other.logprobs, atol=2e-5)
        np.testing.assert_allclose(scores.entropy, other.entropy, atol=2e-5)


def test_the_shared_prefix_is_read_once(backend: LocalBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[tuple[int, ...]] = []
    forward = backend.model.forward

    def counted(*args: Any, **kwargs: Any) -> Any:
        read.append(tuple(kwargs["input_ids"].shape))
        return forward(*args, **kwargs)

    monkeypatch.setattr(backend.model, "forward", counted)
    list(backend.score([tokens(*row) for row in ROWS]))
    assert read == [(1, 4), (4, 7)], "the last shared token predicts the first continuation: it is read with the rows"


def test_an_impossible_token_adds_no_entropy() -> None:
    logits = torch.tensor([[0.0, 0.0, -math.inf], [0.0, -math.inf, -math.inf]])
    logprobs, entropy = local_scorer._reduce(logits, torch.tensor([1, 1]))
    np.testing.assert_allclose(entropy, [math.log(2), 0.0], atol=1e-12)
    assert logprobs.tolist() == [pytest.approx(-math.log(2)), -math.inf]


def test_rows_that_predict_has_the_index_rule_of_the_house() -> None:
    assert list(rows_that_predict(3, 6)) == [2, 3, 4]
    with pytest.raises(ValueError, match="no row predicts token 0"):
        rows_that_predict(0, 2)


def test_messages_are_rendered_and_the_answer_is_in_focus(backend: LocalBackend) -> None:
    messages = (
        {"role": "user", "content": "Hi"},
        {
            "role": "assistant",
            "content": "x",
            "tool_calls": [{"id": "a", "type": "function", "function": {"name": "s", "arguments": '{"q": "new"}'}}],
        },
    )
    query = Query(
        context=ChatContext(messages=messages, open_text="Well, "),
        continuation=TextContinuation(text="<a>é!</a>", opener=3, closer=4),
    )
    [scores] = backend.score([query])
    text = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nx[new]<|im_end|>\n<|im_start|>assistant\nWell, "
    assert scores.n_context == len(backend.tokenizer(text)["input_ids"])
    assert scores.focus.tolist() == [False] * 3 + [True] * 3 + [False] * 4, "é is two bytes, and so two tokens"
    assert backend.count(query) == scores.n_tokens


def test_the_answer_is_in_focus_where_lone_words_lose_their_space() -> None:
    """Tokenizers of the SentencePiece kind write a space as a mark, which a word decoded alone does not show."""
    text = " So he was born in Ur."
    core = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(["?", "▁", *sorted(set(text))])}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    core.decoder = decoders.Metaspace(prepend_scheme="always")
    backend = tiny()
    backend.tokenizer = PreTrainedTokenizerFast(tokenizer_object=core)
    query = Query(context=TokenContext(ids=(1,)), continuation=TextContinuation(text=text, opener=19, closer=1))
    assert backend.texts(backend.tokenizer("a b")["input_ids"]) == ["a", "", "b"]
    [scores] = backend.score([query])
    assert scores.focus.tolist() == [c in "Ur" and i >= 19 for i, c in enumerate(text)]
    assert scores.focus.sum() == 2


def test_the_cache_of_another_template_is_refused(backend: LocalBackend) -> None:
    other = tiny(template=TEMPLATE + " ")
    changed = {key for key in backend.identity if backend.identity[key] != other.identity[key]}
    assert changed == {"template"}
    assert tiny(template=None).identity["template"] is None


def test_a_query_that_does_not_fit_is_refused_alone() -> None:
    backend = tiny(window=8)
    with pytest.raises(ContextTooLongError, match="9 tokens; the model reads 8"):
        backend.count(tokens([1] * 7, [2, 3]))
    with pytest.raises(QueryError, match="no token"):
        backend.count(tokens([], [1]))


def test_a_template_that_refuses_the_messages_is_that_queries_fault() -> None:
    backend = tiny(template="{{ raise_exception('no tool turns') }}")
    query = Query(
        context=ChatContext(messages=({"role": "tool", "content": "x"},)), continuation=TextContinuation(text="y")
    )
    with pytest.raises(QueryError, match="no tool turns"):
        backend.count(query)
    with pytest.raises(ModelError, match="'tiny' has no chat template"):
        tiny(template=None).count(query)


def test_the_fingerprint_sees_training() -> None:
    backend = tiny()
    before = fingerprint(backend.model)
    assert before == fingerprint(tiny().model)
    with torch.no_grad():
        backend.model.model.layers[0].mlp.up_proj.weight.mul_(1.001)
    assert fingerprint(backend.model) != before


def test_a_model_that_does_not_load_is_one_sentence(tmp_path: Any) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="does not load"):
        load_local(ModelFiles("broken", str(tmp_path)), device="cpu")


def test_a_rollout_is_spliced_behind_its_rendered_prompt(backend: LocalBackend) -> None:
    def rollout(name: str, body: str) -> Trajectory:
        pieces = ["hm", "[q]", "<|im_end|>", f"\n<|im_start|>tool\n{body}<|im_end|>\n<|im_start|>assistant\n", "yes"]
        ids = [backend.tokenizer(piece, add_special_tokens=False)["input_ids"] for piece in pieces]
        edges = [0, *np.cumsum([len(i) for i in ids]).tolist()]
        kinds = ("reasoning", "call", "control", "result", "reasoning")
        segments = [Segment(kind=SegmentKind.PROMPT, start=0, stop=0, turn=0, text=f"Be brief.\n{name}?")]
        for kind, (a, b), turn in zip(kinds, pairwise(edges), (0, 0, 0, 0, 1), strict=True):
            segments.append(Segment(kind=SegmentKind(kind), start=a, stop=b, turn=turn))
        flat = [i for part in ids for i in part]
        return Trajectory(
            id=name,
            question=f"{name}?",
            segments=tuple(segments),
            calls=(ToolCall(id="a", name="s", arguments="q", turn=0, result=body),),
            token_ids=np.array(flat),
            token_texts=tuple(backend.texts(flat)),
        )

    control = LoggedCall(trajectory=rollout("b", "éa fake one"), index=0)
    found = contexts_of(LoggedCall(trajectory=rollout("a", "the réal"), index=0), control, Splicer(backend))
    assert found.form == "tokens"
    head = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\na?<|im_end|>\n<|im_start|>assistant\nhm"

    def text(context: Any) -> str:
        return str(backend.tokenizer.decode(list(context.ids)))

    tail = "<|im_end|>\n<|im_start|>assistant\n"
    assert text(found.real) == f"{head}[q]<|im_end|>\n<|im_start|>tool\nthe réal{tail}"
    assert text(found.control) == f"{head}[q]<|im_end|>\n<|im_start|>tool\néa fake one{tail}"
    assert text(found.none) == head


def test_ids_outside_the_vocabulary_are_not_spliced(backend: LocalBackend) -> None:
    from probe_fixtures import Words

    words = Words()
    words.encode([str(i) for i in range(len(backend.tokenizer))])
    trajectory = searched(words, "q", ["red"], "x")
    assert backend.texts([-1]) == backend.texts([10**9]) == []
    assert Splicer(backend).spans(LoggedCall(trajectory=trajectory, index=0)) is None
