"""Certified ΔH on a real language model: how wide the intervals are, and how often a call is certified.

    python experiments/topk_bounds.py --seed 0 --tokens 10000 --out runs/topk-bounds

SmolLM2-135M-Instruct gives the full distribution of every token, so the exact entropy is known; deltah sees of it only
what a server would report, the K best log-probabilities and that of the drawn token. Three sets of text:

* chat: the model's own answers to chat prompts, drawn at temperature 1;
* script: the lab's scripted agent, teacher-forced: plain English, real tools, several rounds; text the model did not
  write, so the drawn token is often an unlikely one;
* agent: the same calls and results, but the reasoning before each call is drawn from the model at temperature 1.

The last two follow one worked example, which is not scored. Writes docs/results/topk.json and docs/results/topk.md.
Resumable: what the model says of each set is kept under `--out`.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import pickle
import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from coldstart.sequences import world_tools
from coldstart.teacher import TeacherConfig, rollout
from topk_page import KS, PRINTS, SETS, page
from transformers import AutoModelForCausalLM, AutoTokenizer

from deltah import score
from deltah.core.entropy import SERVER_PRECISION_NATS, entropy_from_logits
from deltah.core.signals import Verdict
from deltah.core.types import CallStatus, Estimator, FloatArray, Segment, ToolCall, Trajectory
from deltah.engines.models import resolve_model
from deltah.lab.questions import questions
from deltah.lab.world import Split, World
from deltah.runs import nan_to_none, package_versions
from deltah.stats.bootstrap import interval, ratio_replicates
from deltah.tools import make_python
from deltah.traces.borders import split_message
from deltah.traces.logprobs import measure, pack_lists

RESULTS = Path(__file__).parents[1] / "docs" / "results"
ANSWER_TOKENS, REASONING_TOKENS, BATCH = 256, 40, 16
END, CALL = "<|im_end|>", "<tool_call>"

PROMPTS = Path(__file__).with_name("chat_prompts.txt").read_text(encoding="utf-8").splitlines()

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": description,
            "parameters": {"type": "object", "properties": {argument: {"type": "string"}}, "required": [argument]},
        },
    }
    for name, argument, description in (
        ("search", "query", "Search a corpus of short documents."),
        ("python", "code", "Run Python code and return its output."),
    )
]

Messages = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Scored:
    """One conversation, with what the model says of the T tokens it wrote; no entropies in `skeleton`."""

    skeleton: Trajectory
    exact: FloatArray
    """(T,) nats."""
    best: FloatArray
    """(T, K) the greatest log-probabilities, descending, float64."""
    drawn: FloatArray
    """(T,)"""
    best32: FloatArray
    """As `best`, from a log-softmax in float32."""
    drawn32: FloatArray


class Agent:
    """SmolLM2: it writes text, and gives the distribution of every token of a conversation."""

    def __init__(self) -> None:
        path = resolve_model("runs/smollm2").path  # made by: python examples/smollm2/convert.py runs/smollm2
        self.tokenizer = AutoTokenizer.from_pretrained(path)
        self.model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        self.vocab_size = self.model.config.vocab_size

    @torch.no_grad()
    def write(self, conversations: Sequence[Messages], *, tools: list[dict[str, Any]] | None, limit: int) -> list[str]:
        """Text of the next turn of each conversation, drawn at temperature 1."""
        texts: list[str] = []
        for start in range(0, len(conversations), BATCH):
            batch = self.tokenizer.apply_chat_template(
                conversations[start : start + BATCH],
                tools=tools,
                add_generation_prompt=True,
                padding=True,
                return_dict=True,
                return_tensors="pt",
            )
            out = self.model.generate(
                **batch, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=limit
            )
            texts += self.tokenizer.batch_decode(out[:, batch["input_ids"].shape[1] :])
        return [text.split(END)[0] for text in texts]

    @torch.no_grad()
    def measure(self, name: str, messages: Messages, tools: list[dict[str, Any]] | None) -> Scored:
        """Distributions of the tokens of the assistant messages after the last user message."""
        ids, turns = self._turns(messages, tools)
        hidden = self.model.model(torch.tensor([ids])).last_hidden_state[0]
        rows = [t for turn in turns for t in turn]
        # Row t - 1 is the distribution that token t was drawn from.
        logits = self.model.lm_head(hidden[[t - 1 for t in rows]])
        tokens = torch.tensor([ids[t] for t in rows])[:, None]
        columns: list[FloatArray] = []
        for logp in (torch.log_softmax(logits.double(), -1), torch.log_softmax(logits, -1)):
            columns += [logp.topk(max(KS)).values.double().numpy(), logp.gather(1, tokens)[:, 0].double().numpy()]
        texts = [[self.tokenizer.decode([ids[t]]) for t in turn] for turn in turns]
        return Scored(skeleton(name, messages, texts), entropy_from_logits(logits.numpy()), *columns)

    def _turns(self, messages: Messages, tools: list[dict[str, Any]] | None) -> tuple[list[int], list[range]]:
        """Token ids of a conversation, and the positions of each assistant message after the last user message."""
        rendered = self.tokenizer.apply_chat_template(
            messages, tools=tools, return_dict=True, return_assistant_tokens_mask=True
        )
        mask = np.diff(np.array([0, *rendered["assistant_masks"], 0]))
        turns = [range(a, b) for a, b in zip(np.flatnonzero(mask == 1), np.flatnonzero(mask == -1), strict=True)]
        last_user = max(i for i, message in enumerate(messages) if message["role"] == "user")
        n_before = sum(message["role"] == "assistant" for message in messages[:last_user])
        return list(rendered["input_ids"]), turns[n_before:]


def skeleton(name: str, messages: Messages, texts: list[list[str]]) -> Trajectory:
    """Segments and calls of a conversation; `texts` are the tokens of its scored turns."""
    said = [message for message in messages if message["role"] == "assistant"][-len(texts) :]
    segments: list[Segment] = []
    calls: list[ToolCall] = []
    for turn, (message, tokens) in enumerate(zip(said, texts, strict=True)):
        offset = segments[-1].stop if segments else 0
        for kind, start, stop in split_message(tokens).spans:
            segments.append(Segment(kind=kind, start=offset + start, stop=offset + stop, turn=turn))
        for call in message.get("tool_calls") or []:
            function = call["function"]
            calls.append(
                ToolCall(
                    id=f"{name}/{len(calls)}",
                    name=function["name"],
                    arguments=json.dumps(function["arguments"]),
                    turn=turn,
                    result="",
                    status=CallStatus.OK,
                )
            )
    return Trajectory(id=name, segments=tuple(segments), calls=tuple(calls))


def chat_set(agent: Agent, n_tokens: int) -> Iterator[Scored]:
    """Answers to chat prompts until there are `n_tokens` tokens."""
    done = passes = 0
    while done < n_tokens:
        asked: list[Messages] = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
        for i, (messages, text) in enumerate(
            zip(asked, agent.write(asked, tools=None, limit=ANSWER_TOKENS), strict=True)
        ):
            if done < n_tokens and text.strip():
                scored = agent.measure(f"chat-{passes}-{i}", [*messages, {"role": "assistant", "content": text}], None)
                done += len(scored.exact)
                yield scored
        passes += 1


def scripts(n: int, seed: int) -> tuple[Messages, list[Messages]]:
    """A worked example and n other conversations of the scripted agent, all with at least one round."""
    world, rng = World(seed, Split.EVAL), np.random.default_rng([seed, 20])
    tools, found = world_tools(world, make_python()), []
    for question in questions(world, 4 * n + 4, seed=seed):
        messages = rollout(question, tools, TeacherConfig(), rng)
        if any(message.get("tool_calls") for message in messages):
            found.append(messages)
    return found[0], found[1 : n + 1]


def with_own_reasoning(agent: Agent, example: Messages, written: list[Messages]) -> list[Messages]:
    """The same conversations, in which the text of each assistant message is drawn from the model."""
    own = [copy.deepcopy(messages) for messages in written]
    for position in range(max(map(len, own))):
        due = [m for m in own if position < len(m) and m[position]["role"] == "assistant"]
        if due:
            histories = [[*example, *messages[:position]] for messages in due]
            for messages, text in zip(due, agent.write(histories, tools=TOOLS, limit=REASONING_TOKENS), strict=True):
                messages[position]["content"] = text.split(CALL)[0].strip()
    return own


def seen(scored: Scored, k: int, printed: str, vocab_size: int) -> Trajectory:
    """What deltah makes of the k best log-probabilities, printed as a server would."""
    best, drawn = (scored.best, scored.drawn) if printed == "float64" else (scored.best32, scored.drawn32)
    best = best[:, :k]
    if printed == "4 decimals":
        best, drawn = np.round(best, 4), np.round(drawn, 4)
    texts = ["x"] * len(drawn)  # not looked at
    measured = measure(pack_lists(texts, drawn.tolist(), best.tolist()), vocab_size)
    return replace(
        scored.skeleton,
        entropy=measured.entropy,
        entropy_lower=measured.lower,
        entropy_upper=measured.upper,
        estimator=measured.estimator,
    )


def numbers(scored: list[Scored], name: str, vocab_size: int) -> list[dict[str, Any]]:
    """One row for each K and print."""
    truth = [replace(s.skeleton, entropy=s.exact, estimator=Estimator.EXACT) for s in scored]
    delta_h = np.concatenate([score(t).value for t in truth])
    exact = np.concatenate([s.exact for s in scored])
    rows = []
    for printed in PRINTS:
        for k in KS:
            tops = [seen(s, k, printed, vocab_size) for s in scored]
            row = {"set": name, "printed": printed, "k": k, **token_numbers(scored, tops, exact, k)}
            rows.append(row | (round_numbers(tops, delta_h) if len(delta_h) else {}))
    return rows


def token_numbers(scored: list[Scored], tops: list[Trajectory], exact: FloatArray, k: int) -> dict[str, Any]:
    """Width and errors of the entropies of T tokens, in nats."""
    lower, upper = (np.concatenate([t.entropy_bounds[i] for t in tops]) for i in (0, 1))
    error = np.concatenate([t.entropy for t in tops if t.entropy is not None]) - exact
    best, drawn = np.concatenate([s.best[:, :k] for s in scored]), np.concatenate([s.drawn for s in scored])
    return {
        "conversations": len(tops),
        "tokens": len(exact),
        "mean_entropy": float(exact.mean()),
        "logprob_error_max": float(max(np.abs(s.best32[:, :k] - s.best[:, :k]).max() for s in scored)),
        "tail_mass_mean": float((1 - np.exp(best).sum(1)).mean()),
        "drawn_outside": float((drawn < best[:, -1]).mean()),
        "violations": int(((exact < lower) | (exact > upper)).sum()),
        "width_mean": float((upper - lower).mean()),
        "width_median": float(np.median(upper - lower)),
        "width_p95": float(np.quantile(upper - lower, 0.95)),
        "point_error_mean": float(error.mean()),
        "point_error_mean_abs": float(np.abs(error).mean()),
        "point_error_p95_abs": float(np.quantile(np.abs(error), 0.95)),
    }


def round_numbers(tops: list[Trajectory], delta_h: FloatArray) -> dict[str, Any]:
    """Verdicts against the sign of the exact ΔH; rates with intervals clustered by conversation."""
    signals = [score(t) for t in tops]
    labels = np.array([label for signal in signals for label in signal.verdicts])
    point = np.concatenate([signal.value for signal in signals])
    cluster = np.repeat(np.arange(len(signals)), [signal.n_rounds for signal in signals])
    defined = labels != Verdict.UNDEFINED
    reduced, risen = labels == Verdict.REDUCED, labels == Verdict.NOT_REDUCED
    flags = {
        "certified_reduced": reduced,
        "certified_not_reduced": risen,
        "undecided": labels == Verdict.UNDECIDED,
        "sign_agrees": (point < 0) == (delta_h < 0),
    }
    found = {key: rate(flag[defined], cluster[defined]) for key, flag in flags.items()}
    return {
        "rounds": int(defined.sum()),
        "rounds_undefined": int((~defined).sum()),
        "exact_reduced": rate((delta_h < 0)[defined], cluster[defined]),
        "wrong_verdicts": int((reduced & (delta_h >= 0)).sum() + (risen & (delta_h < 0)).sum()),
        "delta_h_error_mean_abs": float(np.abs(point - delta_h)[defined].mean()),
        **found,
    }


def rate(flag: np.ndarray, cluster: np.ndarray) -> list[float]:
    """Share, and its 95 % interval clustered by conversation."""
    hits, counts = (np.bincount(cluster, weights=w)[:, None] for w in (flag.astype(float), np.ones(len(flag))))
    low, high = interval(ratio_replicates(hits, counts)[:, 0], int((counts > 0).sum()))
    return [float(flag.mean()), low, high]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tokens", type=int, default=10_000, help="of the set chat")
    parser.add_argument("--conversations", type=int, default=60, help="of each set with tools")
    parser.add_argument("--out", type=Path, default=Path("runs/topk-bounds"), help="keeps each set once it is measured")
    parser.add_argument("--page-only", action="store_true", help="write the page again from topk.json")
    options = parser.parse_args()
    if options.page_only:
        content = json.loads((RESULTS / "topk.json").read_text(encoding="utf-8"))
    else:
        content = nan_to_none(measured(options))
        (RESULTS / "topk.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    (RESULTS / "topk.md").write_text(page(content["rows"], content["facts"]), encoding="utf-8")


def conversations(agent: Agent, name: str, options: argparse.Namespace) -> Iterator[Scored]:
    """One of `SETS`."""
    if name == "chat":
        yield from chat_set(agent, options.tokens)
        return
    example, written = scripts(options.conversations, options.seed)
    spoken = written if name == "script" else with_own_reasoning(agent, example, written)
    for i, messages in enumerate(spoken):
        yield agent.measure(f"{name}-{i}", [*example, *messages], TOOLS)


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """Facts of the run and its rows."""
    sets, agent = dict[str, list[Scored]](), Agent()
    for name in SETS:
        kept = options.out / f"{name}-{options.seed}-{options.tokens}-{options.conversations}.pickle"
        if not kept.exists():
            torch.manual_seed(options.seed)
            options.out.mkdir(parents=True, exist_ok=True)
            half = kept.with_suffix(".tmp")
            half.write_bytes(pickle.dumps(list(conversations(agent, name, options))))
            half.replace(kept)
        sets[name] = pickle.loads(kept.read_bytes())
        print(f"{name} measured", flush=True)
    facts = {
        "command": f"python experiments/topk_bounds.py --seed {options.seed} --tokens {options.tokens} "
        f"--conversations {options.conversations}",
        "date": date.today().isoformat(),
        "machine": f"{platform.machine().replace('_', '-')}, {os.cpu_count()} cores",
        "versions": package_versions(),
        "vocab_size": agent.vocab_size,
        "assumed_error_nats": SERVER_PRECISION_NATS,
    }
    rows = [row for name in SETS for row in numbers(sets[name], name, agent.vocab_size)]
    return {"facts": facts, "rows": rows}


if __name__ == "__main__":
    main()
