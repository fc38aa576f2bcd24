"""A model behind an OpenAI-compatible server that reports log-probabilities of given text; needs no torch.

`connect` finds out by a few tiny requests what the server can do (`deltah.probe.server_api`). Entropies are certified
bounds from the k best log-probabilities (`deltah.traces.logprobs`), at the server's temperature, 1 by default.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np

from deltah.core.types import BoolArray, Estimator, Scalar, Trajectory
from deltah.errors import ServerError
from deltah.probe.queries import (
    ChatContext,
    ContextTooLongError,
    Query,
    QueryError,
    Scores,
    TextContinuation,
    digest,
    focus_mask,
)
from deltah.probe.server_api import (
    ChatTemplate,
    Dialect,
    IgnoredError,
    JsonClient,
    PromptTokens,
    RejectedError,
    base_url,
    read_prompt,
    tail_start,
)
from deltah.traces.logprobs import measure, pack_lists
from deltah.traces.messages import Message
from deltah.traces.vocabularies import vocab_size_of

CONCURRENCY: Final = 6
"""Requests under way at once."""
CHARS_PER_TOKEN: Final = 4.0
MESSAGE_TOKENS: Final = 5
"""Template tokens of a message, for estimates of cost."""
_LENGTH_WORDS: Final = ("context length", "maximum context", "context window", "max_model_len", "too long", "too large")
_GREETING: Final = ChatContext(messages=({"role": "user", "content": "Count: one two three four"},))
_SEQUENCES: Final = ("A B C D E F G H", "one two three four five six", "1, 2, 3, 4, 5, 6,")
"""Texts whose next token is plain and sure."""
_ECHO_TOLERANCE: Final = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions:
    """Which server is asked, and what for."""

    url: str
    """With or without /v1."""
    model: str | None = None
    """None: the only one that the server lists."""
    api_key: str | None = field(default=None, repr=False)
    template: ChatTemplate | None = None
    """Of the model. With it the completions endpoint is used, else chat completions."""
    tools: Sequence[Mapping[str, Any]] = ()
    """Tool schemas of the request; a template has its own."""
    top_k: int = 20
    """Alternatives of each token; vLLM gives 20 at most unless started with --max-logprobs."""
    vocab_size: int | None = None
    """V; None: that of the model's family, else `deltah.core.entropy.DEFAULT_VOCAB_SIZE`."""
    chars_per_token: float = CHARS_PER_TOKEN


class ServerBackend:
    """Scores continuations by requests; made by `connect`."""

    view = None

    def __init__(self, client: JsonClient, model: str, dialect: Dialect, options: ServerOptions) -> None:
        self._client, self._model, self._dialect, self._options = client, model, dialect, options
        self._vocab_size = options.vocab_size or vocab_size_of(model)[0]
        self.identity: dict[str, Scalar] = {
            "backend": "server",
            "model": model,
            "server": client.base,
            "dialect": dialect.value,
            "top_logprobs": options.top_k,
            "vocab_size": self._vocab_size,
            "template": None if options.template is None else digest(options.template.source)[:8],
            "tools": digest(list(map(dict, options.tools)))[:8] if options.tools else None,
        }

    def count(self, query: Query) -> int:
        """Estimate the tokens of a query from its characters and messages."""
        context, continuation = _chat_query(query)
        chars = sum(map(_chars, context.messages)) + len(context.open_text) + len(continuation.text)
        return round(chars / self._options.chars_per_token) + MESSAGE_TOKENS * len(context.messages)

    def score(self, queries: Sequence[Query]) -> Iterator[Scores]:
        """Answers in order; the requests run concurrently."""
        pool = ThreadPoolExecutor(max_workers=CONCURRENCY)
        try:
            yield from pool.map(self._score, queries)
        finally:  # after an error or Ctrl-C nothing that waits is still sent
            pool.shutdown(wait=False, cancel_futures=True)

    def _score(self, query: Query) -> Scores:
        context, continuation = _chat_query(query)
        try:
            prompt = self.read(context, continuation.text)
        except RejectedError as error:
            too_long = any(words in str(error).lower() for words in _LENGTH_WORDS)
            raise (ContextTooLongError if too_long else QueryError)(str(error)) from error
        start = tail_start(prompt.texts, continuation.text.strip())
        if start is None:  # a character of it spans several tokens
            start = len(self.read(context, "").texts)
        if not 0 < start < len(prompt.texts):
            raise QueryError("the tokens of the continuation are not found in the server's answer")
        return self._scores(prompt, start, continuation)

    def read(self, context: ChatContext, text: str) -> PromptTokens:
        """Tokens of context and text as the server reads them."""
        path = "/chat/completions" if self._dialect is Dialect.CHAT else "/completions"
        body = {"model": self._model, "max_tokens": 1, "temperature": 0.0, **self._body(context, text)}
        return read_prompt(self._dialect, self._client.ask(path, body), self._options.top_k)

    def _body(self, context: ChatContext, text: str) -> dict[str, Any]:
        """Request whose prompt ends in an open assistant message of the text; without any text, where one begins."""
        spoken, top_k, template = context.open_text + text, self._options.top_k, self._options.template
        if self._dialect is Dialect.CHAT:
            last = [{"role": "assistant", "content": spoken}] if spoken else []
            return {
                "messages": [*context.messages, *last],
                "continue_final_message": bool(spoken),
                "add_generation_prompt": not spoken,
                "prompt_logprobs": top_k,
                **({"tools": list(map(dict, self._options.tools))} if self._options.tools else {}),
            }
        if template is None:
            raise ServerError("this server takes text only; give its model's chat template with --chat-template")
        wanted = {"echo": True, "logprobs": top_k} if self._dialect is Dialect.ECHO else {"prompt_logprobs": top_k}
        return {"prompt": template.render(context.messages) + spoken, **wanted}

    def _scores(self, prompt: PromptTokens, start: int, continuation: TextContinuation) -> Scores:
        tokens = pack_lists(prompt.texts[start:], prompt.logprobs[start:], prompt.top[start:])
        measured = measure(tokens, self._vocab_size)
        entropy = np.full(len(tokens), np.nan) if measured.entropy is None else measured.entropy
        return Scores(
            logprobs=tokens.logprobs,
            entropy=entropy,
            lower=entropy if measured.lower is None else measured.lower,
            upper=entropy if measured.upper is None else measured.upper,
            focus=_focus(prompt.texts[start:], continuation),
            estimator=Estimator.NONE if measured.entropy is None else measured.estimator,
            n_context=start,
        )


def chars_per_token(trajectories: Iterable[Trajectory]) -> float:
    """Characters of a sampled token in logs; four where the logs have no tokens."""
    texts = [text for t in trajectories for text in t.token_texts or ()]
    return sum(map(len, texts)) / len(texts) if any(texts) else CHARS_PER_TOKEN


def unasked(options: ServerOptions, known: Mapping[str, Scalar]) -> ServerBackend:
    """A backend of a server that is not asked anything, to count what a plan costs."""
    usual = Dialect.CHAT if options.template is None else Dialect.COMPLETIONS
    dialect = Dialect(str(known["dialect"])) if known.get("dialect") in list(Dialect) else usual
    name = options.model or str(known.get("model") or "")
    return ServerBackend(JsonClient(base=base_url(options.url)), name, dialect, options)


def connect(options: ServerOptions) -> ServerBackend:
    """Find out how a server is asked, and that it answers."""
    client = JsonClient(base=base_url(options.url), api_key=options.api_key, patient=False)
    name = options.model or _served_model(client)
    failure = ServerError(f"{options.url} offers no way to score text")
    for dialect in (Dialect.CHAT,) if options.template is None else (Dialect.COMPLETIONS, Dialect.ECHO):
        try:
            if dialect is Dialect.ECHO and options.template is not None:
                _check_alignment(client, name, options.template)
            ServerBackend(client, name, dialect, options).read(_GREETING, "ok")
        except (IgnoredError, RejectedError) as error:
            failure = error
        else:
            return ServerBackend(replace(client, patient=True), name, dialect, options)
    raise failure


def _served_model(client: JsonClient) -> str:
    listed = client.ask("/models").get("data")
    names = [str(m["id"]) for m in listed if isinstance(m, dict) and "id" in m] if isinstance(listed, list) else []
    if len(names) != 1:
        shown = ", ".join(names[:10]) or "none"
        raise ServerError(f"{client.base} serves these models: {shown}; name one with --served-model")
    return names[0]


def _check_alignment(client: JsonClient, model: str, template: ChatTemplate) -> None:
    """Compare the log-probability of a token when it is echoed with that of the same token when it was drawn.

    llama-cpp-python pairs token t with the distribution of token t + 1 if a prompt does not begin with BOS.
    """
    request = {"model": model, "max_tokens": 1, "temperature": 0.0, "logprobs": 1}
    for said in _SEQUENCES:
        prompt = template.render(_GREETING.messages) + said
        drawn = _last_logprobs(client.ask("/completions", {**request, "prompt": prompt}))
        text, expected = drawn[-1] if drawn else ("", None)
        echo = client.ask("/completions", {**request, "prompt": prompt + text, "echo": True})
        found = [value for token, value in _last_logprobs(echo) if token == text]
        if not text.strip() or expected is None or not found or found[-1] is None:
            continue  # prompt and token were cut differently this time: it shows nothing
        if abs(found[-1] - expected) > _ECHO_TOLERANCE:
            raise ServerError(
                f"the server echoes log-probabilities that do not belong to their tokens ({found[-1]:.4f} for "
                f"{text!r}, drawn with {expected:.4f}); llama-cpp-python does so for prompts without a BOS token: "
                "use another server, or a local --model"
            )
        return
    raise IgnoredError("the server echoes no log-probabilities that can be verified to belong to their tokens")


def _last_logprobs(answer: Mapping[str, Any]) -> list[tuple[str, float | None]]:
    """Text and log-probability of the last two tokens that a completion reports; empty if it reports none."""
    try:
        block = answer["choices"][0]["logprobs"]
        return list(zip(map(str, block["tokens"]), block["token_logprobs"], strict=True))[-2:]
    except (LookupError, TypeError, ValueError):
        return []


def _chat_query(query: Query) -> tuple[ChatContext, TextContinuation]:
    context, continuation = query.context, query.continuation
    if not isinstance(context, ChatContext) or not isinstance(continuation, TextContinuation):
        raise QueryError("a server is asked about messages and text; got token ids")
    return context, continuation


def _chars(message: Message) -> int:
    functions = [call["function"] for call in message.get("tool_calls", ())]
    called = sum(len(str(f["name"])) + len(str(f["arguments"])) for f in functions)
    return len(str(message.get("content") or "")) + called


def _focus(texts: Sequence[str], continuation: TextContinuation) -> BoolArray:
    """Tokens of the answer; the first one may begin before the continuation, and templates strip its ends."""
    text = continuation.text
    stripped = len(text) - len(text.lstrip())
    joined = "".join(texts).rstrip()
    extra = len(joined) - len(text.strip()) if joined.endswith(text.strip()) else 0
    return focus_mask(texts, continuation.opener - stripped + extra, continuation.closer)
