"""Deterministic agent traces of realistic form: words, entropies and the top-20 log-probabilities that belong to them.

A conversation is a question and 3 to 6 rounds of reasoning, one search call and its result, then the answer: 500 to
2,000 tokens. The logits of a token's 20 best candidates fall as a straight line with noise, whose slope is drawn anew
for every token, so that a share of tokens is nearly certain and some are wide open, as in real logs. Log-probabilities
are float32 printed as float64, 16 or 17 digits, which is what vLLM writes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final

import numpy as np

from deltah.core.types import CallStatus, Estimator, Segment, SegmentKind, StopReason, ToolCall, Trajectory

K: Final = 20
VOCAB_SIZE: Final = 151_936
_SYLLABLES: Final = [a + b + c for a in "bdfgklmnprstvz" for b in "aeiou" for c in ("", "n", "r", "l")]


def vocabulary(size: int = 4000) -> list[str]:
    """Token texts: words with a space before them, pieces without, punctuation, JSON and a few beyond ASCII."""
    rng = np.random.default_rng(7)
    frequent = [" \n", "\n\n", '"', "\\", "{", "}", ":", ",", ".", " the", " of", " and", " to"]
    words = [" é", "ß", " 東京", "🙂", *frequent * 12]
    while len(words) < size:
        word = "".join(rng.choice(_SYLLABLES, rng.integers(1, 4)))
        words.append(word if rng.random() < 0.3 else f" {word}")
    return words


class Generator:
    """Draws conversations; the same seed gives the same ones."""

    def __init__(self, seed: int = 0) -> None:
        self._rng = np.random.default_rng(seed)
        self._words = vocabulary()
        self._entries = [
            (
                f'{{"token":{json.dumps(w, ensure_ascii=False)},"logprob":',
                f',"bytes":{list(w.encode())}'.replace(" ", ""),
            )
            for w in self._words
        ]

    def _tokens(self, n: int) -> list[int]:
        return self._rng.integers(0, len(self._words), n).tolist()

    def _text(self, n: int) -> str:
        return "".join(self._words[i] for i in self._tokens(n))

    def logprobs(self, n: int) -> np.ndarray:
        """(n, K) descending float32 log-probabilities of the best tokens; the tail holds what is left."""
        slope = self._rng.exponential(2.0, (n, 1)) + 0.05
        logits = -slope * np.arange(K) - self._rng.exponential(0.3, (n, K)).cumsum(axis=1)
        tail = np.exp(logits[:, -1:] - slope) / (1 - np.exp(-slope))
        total = np.exp(logits).sum(axis=1, keepdims=True) + tail
        return (logits - np.log(total)).astype(np.float32)

    def _block(self, n: int) -> tuple[str, str]:
        """Text of n sampled tokens, and their `content` list as JSON."""
        best = self._rng.integers(0, len(self._words), (n, K)).tolist()
        numbers = self.logprobs(n).astype(np.float64).tolist()
        text, content = [], []
        for tokens, logprobs in zip(best, numbers, strict=True):
            entries = [
                self._entries[t][0] + repr(p) + self._entries[t][1] for t, p in zip(tokens, logprobs, strict=True)
            ]
            text.append(self._words[tokens[0]])
            content.append(f'{entries[0]},"top_logprobs":[{"},".join(entries)}}}]}}')
        return "".join(text), f"[{','.join(content)}]"

    def _conversation(self) -> list[tuple[str, str]]:
        """Messages as JSON objects without the closing brace, each with its logprobs block, empty where it has none."""
        messages = [(json.dumps({"role": "user", "content": self._text(30)}, ensure_ascii=False)[:-1], "")]
        n_calls = int(self._rng.integers(3, 7))
        for k in range(n_calls + 1):
            text, content = self._block(int(self._rng.integers(60, 300)))
            head = json.dumps({"role": "assistant", "content": text}, ensure_ascii=False)[:-1]
            block = f'{{"content": {content}}}'
            if k == n_calls:
                messages.append((head, block))
                continue
            arguments = json.dumps({"query": self._text(6)}, ensure_ascii=False)
            function = {"name": "search", "arguments": arguments}
            call = json.dumps([{"id": f"call-{k}", "type": "function", "function": function}], ensure_ascii=False)
            messages.append((f'{head}, "tool_calls": {call}', block))
            result = {
                "role": "tool",
                "tool_call_id": f"call-{k}",
                "content": self._text(int(self._rng.integers(60, 200))),
            }
            messages.append((json.dumps(result, ensure_ascii=False)[:-1], ""))
        return messages

    def chat_line(self, name: str) -> bytes:
        """One conversation as an OpenAI-style line with top-20 log-probabilities."""
        messages = [f'{m}, "logprobs": {block}}}' if block else f"{m}}}" for m, block in self._conversation()]
        fields = {"id": name, "model": "m", "vocab_size": VOCAB_SIZE, "logprobs_mode": "raw_logprobs", "outcome": 1.0}
        return f'{json.dumps(fields)[:-1]}, "messages": [{", ".join(messages)}]}}'.encode()

    def call_lines(self, name: str) -> Iterator[bytes]:
        """The same as its API calls are logged: a line each, every request repeating the history."""
        messages = self._conversation()
        for i, (message, block) in enumerate(messages):
            if not block:
                continue
            history = ", ".join(f"{m}}}" for m, _ in messages[:i])
            choice = f'{{"index": 0, "finish_reason": "stop", "message": {message}}}, "logprobs": {block}}}'
            head = f'{{"id": "{name}-{i}", "vocab_size": {VOCAB_SIZE}, "logprobs_mode": "raw_logprobs"'
            request = f'{{"model": "m", "messages": [{history}]}}'
            yield f'{head}, "request": {request}, "response": {{"model": "m", "choices": [{choice}]}}}}'.encode()

    def trajectory(self, name: str, estimator: Estimator) -> Trajectory:
        """One conversation as a training run records it: prompt and results have tokens too."""
        segments: list[Segment] = []
        calls: list[ToolCall] = []
        texts: list[str] = []

        def add(kind: SegmentKind, n: int, turn: int) -> str:
            start = len(texts)
            texts.extend(self._words[i] for i in self._tokens(n))
            segments.append(Segment(kind=kind, start=start, stop=start + n, turn=turn))
            return "".join(texts[start:])

        add(SegmentKind.PROMPT, 120, 0)
        n_calls = int(self._rng.integers(3, 7))
        for k in range(n_calls + 1):
            add(SegmentKind.REASONING, int(self._rng.integers(40, 200)), k)
            if k < n_calls:
                arguments = add(SegmentKind.CALL, 24, k)
                add(SegmentKind.CONTROL, 1, k)
                result = add(SegmentKind.RESULT, int(self._rng.integers(60, 200)), k)
                call = {"id": f"call-{k}", "name": "search", "arguments": arguments, "turn": k, "result": result}
                calls.append(ToolCall(**call, status=CallStatus.OK, duration_s=float(self._rng.exponential())))
        arrays = self._arrays(segments, len(texts), estimator)
        return Trajectory(
            id=name,
            segments=tuple(segments),
            calls=tuple(calls),
            token_texts=tuple(texts),
            token_ids=self._rng.integers(0, VOCAB_SIZE, len(texts)),
            estimator=estimator,
            temperature=1.0,
            question=self._text(20),
            outcome=float(self._rng.integers(0, 2)),
            stop_reason=StopReason.ANSWERED,
            metadata={"task_id": name, "step": 3},
            **arrays,
        )

    def _arrays(self, segments: list[Segment], n: int, estimator: Estimator) -> dict[str, Any]:
        entropy = self._rng.gamma(0.5, 0.8, n)
        logprobs = -self._rng.exponential(entropy)
        for segment in segments:
            if not segment.kind.sampled:
                entropy[segment.start : segment.stop] = logprobs[segment.start : segment.stop] = np.nan
        if estimator is Estimator.EXACT:
            return {"entropy": entropy, "logprobs": logprobs}
        width = self._rng.exponential(0.05, (2, n))
        lower, upper = np.maximum(entropy - width[0], 0.0), entropy + width[1]
        return {"entropy": entropy, "entropy_lower": lower, "entropy_upper": upper, "logprobs": logprobs}


def chat_lines(n_bytes: int, seed: int = 0) -> Iterator[bytes]:
    """Lines of about n_bytes in all."""
    generator, size, i = Generator(seed), 0, 0
    while size < n_bytes:
        line = generator.chat_line(f"c{i}")
        size, i = size + len(line) + 1, i + 1
        yield line + b"\n"


def api_lines(n_bytes: int, seed: int = 0) -> Iterator[bytes]:
    """Lines of API calls, about n_bytes in all."""
    generator, size, i = Generator(seed), 0, 0
    while size < n_bytes:
        for line in generator.call_lines(f"c{i}"):
            size += len(line) + 1
            yield line + b"\n"
        i += 1


def trajectories(n: int, estimator: Estimator, seed: int = 0) -> Iterator[Trajectory]:
    """n trajectories with measured entropies."""
    generator = Generator(seed)
    return (generator.trajectory(f"t{i}", estimator) for i in range(n))
