"""A local Hugging Face model: exact log-probabilities and entropies, on CPU or GPU.

The queries of one call share most of their tokens: the shared prefix is read once, its key-value cache is copied, and
the rest is read as one right-padded batch (under a causal mask, padding after a row cannot reach it). Logits are made
only for positions that predict the continuation, and reduced in float64 a few at a time.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from deltah.core.align import rows_that_predict
from deltah.core.types import Estimator, FloatArray, Scalar
from deltah.engines.models import ModelFiles, load_model, on_gpu
from deltah.engines.rollout_row import decode_tokens
from deltah.errors import ModelError, missing_dependency
from deltah.probe.queries import (
    ChatContext,
    ContextTooLongError,
    Query,
    QueryError,
    Scores,
    TextContinuation,
    TokenContinuation,
    digest,
    focus_mask,
)
from deltah.probe.server_api import RENDER_ERRORS
from deltah.traces.messages import Message, with_object_arguments

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

MAX_LOGITS: Final = 2**26  # held at once: 256 MB in float32
MAX_BATCH_TOKENS: Final = 2**14
_ROWS_REDUCED: Final = 64


class _Row(NamedTuple):
    """One query in tokens; its continuation begins at `start`."""

    ids: list[int]
    start: int
    focus: np.ndarray


class LocalBackend:
    """Scores continuations with a loaded model."""

    def __init__(
        self, model: Any, tokenizer: PreTrainedTokenizerBase, name: str, *, tools: Sequence[Mapping[str, Any]] = ()
    ) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.view = self
        self._tools = [dict(tool) for tool in tools] or None
        config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
        self._window: int | None = getattr(config, "max_position_embeddings", None)
        parameters = inspect.signature(model.forward).parameters
        self._cache_name = "cache" if "cache" in parameters else "past_key_values"
        self._can_keep = "logits_to_keep" in parameters
        self.identity: dict[str, Scalar] = {
            "backend": "local",
            "model": name,
            "weights": fingerprint(model),
            "dtype": str(model.dtype).removeprefix("torch."),
            "template": digest(tokenizer.chat_template)[:8] if tokenizer.chat_template else None,
            "tools": digest(self._tools)[:8] if self._tools else None,
        }

    def texts(self, ids: Sequence[int]) -> list[str]:
        """Text of each token; empty if an id is none of the tokenizer's."""
        return decode_tokens(self.tokenizer, ids) if all(0 <= i < len(self.tokenizer) for i in ids) else []

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Ids of messages, generation prompt included."""
        return self._encode(self._render(messages))

    def count(self, query: Query) -> int:
        """Tokens of context and continuation."""
        return len(self._row(query).ids)

    def score(self, queries: Sequence[Query]) -> Iterator[Scores]:
        """Exact answers, in order."""
        rows = [self._row(query) for query in queries]
        for chunk in self._chunks(rows):
            yield from self._score_chunk(chunk)

    def _chunks(self, rows: Sequence[_Row]) -> Iterator[list[_Row]]:
        """Cut rows so that neither logits nor tokens of a batch grow beyond their limit."""
        vocabulary, chunk = int(self.model.get_input_embeddings().weight.shape[0]), list[_Row]()
        for row in rows:
            wider = [*chunk, row]
            kept = max(len(r.ids) for r in wider) - min(r.start for r in wider)
            tokens = max(len(r.ids) for r in wider) * len(wider)
            if chunk and (kept * len(wider) * vocabulary > MAX_LOGITS or tokens > MAX_BATCH_TOKENS):
                yield chunk
                wider = [row]
            chunk = wider
        if chunk:
            yield chunk

    def _score_chunk(self, rows: Sequence[_Row]) -> Iterator[Scores]:
        import torch

        with torch.no_grad():
            first, logits = self._forward(rows)
            for i, row in enumerate(rows):
                predicting = rows_that_predict(row.start, len(row.ids))
                wanted = logits[i, predicting.start - first : predicting.stop - first]
                targets = torch.tensor(row.ids[row.start :], device=logits.device)
                logprobs, entropy = _reduce(wanted, targets)
                yield Scores(
                    logprobs=logprobs,
                    entropy=entropy,
                    lower=entropy,
                    upper=entropy,
                    focus=row.focus,
                    estimator=Estimator.EXACT,
                    n_context=row.start,
                )

    def _forward(self, rows: Sequence[_Row]) -> tuple[int, torch.Tensor]:
        """Position of the first token whose logits are kept, and logits (B, W, V) from there."""
        import torch

        device = self.model.device
        shared = _shared_prefix(rows) if len(rows) > 1 else 0
        past = self._read_prefix(rows[0].ids[:shared], len(rows)) if shared else {}
        shared = shared if past else 0
        width = max(len(row.ids) for row in rows) - shared
        ids = torch.zeros((len(rows), width), dtype=torch.long)
        for i, row in enumerate(rows):
            ids[i, : len(row.ids) - shared] = torch.tensor(row.ids[shared:])
        first, keep = shared, {}
        if self._can_keep:
            first = rows_that_predict(min(row.start for row in rows), width + shared).start
            keep = {"logits_to_keep": torch.arange(first - shared, width, device=device)}
        return first, self.model(input_ids=ids.to(device), **past, **keep).logits

    def _read_prefix(self, ids: Sequence[int], copies: int) -> dict[str, Any]:
        """Argument that hands a copied key-value cache to the model; nothing for models whose state is not one."""
        import torch
        from transformers import DynamicCache

        cache = DynamicCache(config=self.model.config)
        if {type(layer).__name__ for layer in cache.layers} - {"DynamicLayer"}:
            return {}  # sliding windows and recurrent states are not copied
        tokens = torch.tensor([list(ids)], device=self.model.device)
        keep = {"logits_to_keep": 1} if self._can_keep else {}
        self.model(input_ids=tokens, use_cache=True, **{self._cache_name: cache}, **keep)
        if cache.get_seq_length() != len(ids):
            return {}
        cache.batch_repeat_interleave(copies)
        return {self._cache_name: cache, "use_cache": True}

    def _row(self, query: Query) -> _Row:
        context, continuation = query.context, query.continuation
        if isinstance(context, ChatContext):
            ids = self._encode(self._render(context.messages) + context.open_text)
        else:
            ids = list(context.ids)
        if isinstance(continuation, TokenContinuation):
            new, focus = list(continuation.ids), np.array(continuation.focus, dtype=np.bool_)
        else:
            new, focus = self._text_ids(continuation)
        if not ids:
            raise QueryError("the context has no token, so nothing predicts the first token of the continuation")
        if self._window and len(ids) + len(new) > self._window:
            raise ContextTooLongError(f"{len(ids) + len(new)} tokens; the model reads {self._window}")
        return _Row([*ids, *new], len(ids), focus)

    def _text_ids(self, continuation: TextContinuation) -> tuple[list[int], np.ndarray]:
        text, ids = continuation.text, self._encode(continuation.text)
        texts = self.texts(ids)
        if "".join(texts) == text or not self.tokenizer.is_fast:
            return ids, focus_mask(texts, continuation.opener, continuation.closer)
        # Tokenizers of the SentencePiece kind drop the space before a word that is decoded alone.
        offsets = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        start, stop = np.array(offsets, dtype=np.int64).reshape(-1, 2).T
        return ids, np.asarray((stop > continuation.opener) & (start < len(text) - continuation.closer))

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _render(self, messages: Sequence[Message]) -> str:
        if not self.tokenizer.chat_template:
            raise ModelError(
                f"the tokenizer of {self.identity['model']!r} has no chat template, so chat messages cannot be "
                "rendered; set tokenizer.chat_template and save the tokenizer"
            )
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    with_object_arguments(messages), tools=self._tools, add_generation_prompt=True, tokenize=False
                )
            )
        except RENDER_ERRORS as error:
            raise QueryError(f"the chat template cannot render the messages: {error}") from error


def load_local(files: ModelFiles, *, device: str = "auto", tools: Sequence[Mapping[str, Any]] = ()) -> LocalBackend:
    """Load a model and its tokenizer: float32 on CPU, bfloat16 on a GPU."""
    try:
        model, tokenizer = load_model(files, device=device, with_tools=False)
    except ImportError as error:
        raise missing_dependency(error.name or "torch", extra="train", purpose="A probe with a local model") from error
    return LocalBackend(model.to("cuda" if on_gpu(device) else "cpu"), tokenizer, files.name, tools=tools)


def fingerprint(model: Any) -> str:
    """16 hex digits that change when training changes the weights: of names, shapes and about 256 values of each."""
    sha = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        flat = weight.detach().reshape(-1)
        step = max(1, flat.numel() // 256)
        sha.update(f"{name}{tuple(weight.shape)}".encode())
        sha.update(flat[::step].float().cpu().numpy().tobytes())
    return sha.hexdigest()[:16]


def _shared_prefix(rows: Sequence[_Row]) -> int:
    """Tokens that all rows begin with; the row that predicts the first continuation is not among them."""
    limit = min(rows_that_predict(row.start, len(row.ids)).start for row in rows)
    columns = zip(*(row.ids[:limit] for row in rows), strict=True)
    return next((t for t, column in enumerate(columns) if len(set(column)) > 1), limit)


def _reduce(logits: torch.Tensor, targets: torch.Tensor) -> tuple[FloatArray, FloatArray]:
    """(n,) log-probabilities of the targets and (n,) entropies in nats, from (n, V) logits."""
    import torch

    logprobs, entropies = [], []
    for start in range(0, len(targets), _ROWS_REDUCED):
        rows = logits[start : start + _ROWS_REDUCED].double().log_softmax(dim=-1)
        logprobs.append(rows.gather(1, targets[start : start + _ROWS_REDUCED, None])[:, 0])
        entropies.append(torch.special.entr(rows.exp()).sum(dim=-1))  # 0 for an impossible token, where p log p is NaN
    logp, entropy = (torch.cat(parts).cpu().numpy() for parts in (logprobs, entropies))
    return logp, np.maximum(entropy, 0.0)
