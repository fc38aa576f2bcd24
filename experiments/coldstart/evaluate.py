"""Measure an agent on held-out questions: a plain transformers generate loop with the real tools.

It stands outside every trainer on purpose, so that the figures of the cold start do not depend on one. Beside accuracy
and calls it reports how well the entropy of the reasoning text tells *needed* calls from others: a call is needed when
it is the first to return a value of the plan that the agent has not learned by heart. That label exists here alone;
no environment, teacher or reward sees it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from deltah.lab.questions import Compute, Question, Step, questions
from deltah.lab.world import Split, World
from deltah.tasks.graders import grade
from deltah.tools.python import make_python
from deltah.tools.search import SearchIndex, make_search
from deltah.tools.toolbox import call_tool

from .teacher import Message, Tools, count_calls

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

MAX_CALLS = 8
MAX_TURN_TOKENS = 64
MAX_COMPLETION_TOKENS = 400


@dataclass(slots=True)
class Rollout:
    """One answered question."""

    question: Question
    prompt_ids: list[int]
    ids: list[int] = field(default_factory=list)
    """Completion, tool results included."""
    messages: list[Message] = field(default_factory=list)
    turn_entropies: list[float] = field(default_factory=list)
    """Mean nats over the reasoning tokens of each assistant turn; NaN for a turn without any."""

    @property
    def n_calls(self) -> int:
        """Tool calls issued."""
        return count_calls(self.messages)

    @property
    def outcome(self) -> float:
        """Grade of the last message."""
        return float(grade(self.question.task, str(self.messages[-1]["content"])).score)


Generate = Callable[[list[list[int]]], tuple[list[list[int]], list[NDArray[np.float64]]]]


def make_generate(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, *, temperature: float) -> Generate:
    """Build a function from prompts to turns and their token entropies in nats (at temperature 1).

    Args:
        model: The policy.
        tokenizer: Its tokenizer.
        temperature: Of sampling; 0 is greedy.
    """
    import torch

    sampling = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}

    @torch.no_grad()
    def generate(prompts: list[list[int]]) -> tuple[list[list[int]], list[NDArray[np.float64]]]:
        batch = tokenizer.pad({"input_ids": prompts}, return_tensors="pt", padding_side="left")
        out = model.generate(
            **batch, max_new_tokens=MAX_TURN_TOKENS, output_logits=True, return_dict_in_generate=True, **sampling
        )
        logp = torch.log_softmax(torch.stack(out.logits, dim=1).double(), dim=-1)
        entropy = -(logp.exp() * logp).sum(-1).numpy()
        turns = out.sequences[:, batch["input_ids"].shape[1] :].tolist()
        lengths = [
            turn.index(tokenizer.eos_token_id) + 1 if tokenizer.eos_token_id in turn else len(turn) for turn in turns
        ]
        return (
            [turn[:n] for turn, n in zip(turns, lengths, strict=True)],
            [row[:n] for row, n in zip(entropy, lengths, strict=True)],
        )

    return generate


def run(
    asked: Sequence[Question],
    generate: Generate,
    tokenizer: PreTrainedTokenizerFast,
    tools: Tools,
) -> list[Rollout]:
    """Answer questions in lock-step: each round generates one turn for every conversation that goes on."""
    rollouts = [Rollout(question=q, prompt_ids=_prompt_ids(q, tokenizer)) for q in asked]
    active = list(rollouts)
    while active:
        turns, entropies = generate([r.prompt_ids + r.ids for r in active])
        active = [
            r
            for r, turn, entropy in zip(active, turns, entropies, strict=True)
            if _take_turn(r, turn, entropy, tokenizer, tools)
        ]
    return rollouts


def _prompt_ids(question: Question, tokenizer: PreTrainedTokenizerFast) -> list[int]:
    messages = [{"role": "user", "content": question.task.question}]
    return list(tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False))


def _take_turn(
    rollout: Rollout,
    turn: list[int],
    entropy: NDArray[np.float64],
    tokenizer: PreTrainedTokenizerFast,
    tools: Tools,
) -> bool:
    """Append a turn and the results of its calls; whether the conversation goes on."""
    call_id = tokenizer.convert_tokens_to_ids("<tool_call>")
    stop = turn.index(call_id) if call_id in turn else len(turn) - 1
    rollout.turn_entropies.append(float(entropy[:stop].mean()) if stop else float("nan"))
    message = _parse(turn, rollout.prompt_ids, tokenizer)
    rollout.ids += turn
    rollout.messages.append({"content": "", **message})
    calls = message.get("tool_calls") or []
    if not calls or rollout.n_calls > MAX_CALLS:
        return False
    results = [_run_call(call["function"], tools) for call in calls]
    rollout.ids += _result_ids(results, tokenizer)
    rollout.messages += results
    return len(rollout.ids) <= MAX_COMPLETION_TOKENS


def _parse(turn: list[int], prefix: list[int], tokenizer: PreTrainedTokenizerFast) -> Message:
    """A turn as a message; a call that is no JSON object with a name is text without an answer, as in TRL."""
    try:
        message: Message = tokenizer.parse_response(turn, prefix=prefix)
        functions = [call["function"] for call in message.get("tool_calls") or []]
        if all(isinstance(function, dict) and isinstance(function.get("name"), str) for function in functions):
            return message
    except ValueError:
        pass
    return {"role": "assistant", "content": tokenizer.decode(turn)}


def _run_call(function: Mapping[str, Any], tools: Tools) -> Message:
    result = call_tool(tools, function["name"], function.get("arguments"))
    return {"role": "tool", "name": function["name"], "content": result.text}


def _result_ids(results: list[Message], tokenizer: PreTrainedTokenizerFast) -> list[int]:
    return list(tokenizer.apply_chat_template(results, add_generation_prompt=True, return_dict=False))


def needed_calls(rollout: Rollout) -> list[bool]:
    """For each call, whether it is the first to return a value of the plan that is not known by heart."""
    results = [message["content"] for message in rollout.messages if message["role"] == "tool"]
    return [bool(found) for found in first_returns(rollout.question.plan, results)]


def first_returns(plan: Sequence[Step], results: Iterable[str | None]) -> list[list[Step]]:
    """Steps of a plan, not known by heart, that each result is the first to return.

    Args:
        plan: Steps of one question.
        results: Of its calls in order, (C,); None where a call was not answered.

    Returns:
        (C,) lists; a call is needed if its list is not empty.
    """
    missing = [step for step in plan if not step.known]
    found: list[list[Step]] = []
    for result in results:
        found.append([step for step in missing if result is not None and _returns(result, step)])
        missing = [step for step in missing if step not in found[-1]]
    return found


def _returns(result: str, step: Step) -> bool:
    if isinstance(step, Compute):
        return result.strip() == step.value
    return any(line.startswith(step.subject) and step.value in line for line in result.splitlines())


def call_table(rollouts: Sequence[Rollout]) -> NDArray[np.float64]:
    """(C, 4) answered calls: ΔH of the round, entropy before it, index of the round, whether the call was needed."""
    rows = []
    for r in rollouts:
        labels, turn = iter(needed_calls(r)), -1
        for message in r.messages:
            if message["role"] == "assistant":
                turn += 1
            elif turn + 1 < len(r.turn_entropies):
                before, after = r.turn_entropies[turn : turn + 2]
                rows.append((after - before, before, turn, next(labels)))
    return np.array(rows, dtype=np.float64).reshape(-1, 4)


def auc(score: NDArray[np.float64], label: NDArray[np.bool_]) -> float:
    """Probability that a positive scores higher than a negative, ties counting half; NaN without both."""
    positive, negative = score[label], score[~label]
    if not len(positive) or not len(negative):
        return float("nan")
    difference = positive[:, None] - negative[None, :]
    return float((difference > 0).mean() + 0.5 * (difference == 0).mean())


def auc_within(score: NDArray[np.float64], label: NDArray[np.bool_], stratum: NDArray[np.float64]) -> float:
    """AUC over pairs of the same stratum, pooled by their number."""
    total = weighted = 0.0
    for value in np.unique(stratum):
        here = stratum == value
        pairs = float(label[here].sum() * (~label[here]).sum())
        if pairs:
            total, weighted = total + pairs, weighted + pairs * auc(score[here], label[here])
    return weighted / total if total else float("nan")


def _mean(values: Sequence[float] | NDArray[Any]) -> float:
    return round(float(np.mean(values)), 4) if len(values) else float("nan")


def summarize(rollouts: Sequence[Rollout]) -> dict[str, Any]:
    """Figures of a set of rollouts, ready for JSON."""
    outcomes = [r.outcome for r in rollouts]
    by_family = defaultdict(list)
    for r, outcome in zip(rollouts, outcomes, strict=True):
        by_family[str(r.question.task.metadata["family"])].append(outcome == 1.0)
    calls, tokens = [r.n_calls for r in rollouts], [len(r.ids) for r in rollouts]
    tools = [bool(r.question.task.metadata["needs_tools"]) for r in rollouts]
    table = call_table(rollouts)
    needed = table[:, 3] == 1.0
    return {
        "n": len(rollouts),
        "f1": _mean(outcomes),
        "accuracy": _mean([o == 1.0 for o in outcomes]),
        "accuracy_needs_tools": _mean([o == 1.0 for o, t in zip(outcomes, tools, strict=True) if t]),
        "accuracy_known": _mean([o == 1.0 for o, t in zip(outcomes, tools, strict=True) if not t]),
        "calls": _mean(calls),
        "calls_needs_tools": _mean([c for c, t in zip(calls, tools, strict=True) if t]),
        "calls_known": _mean([c for c, t in zip(calls, tools, strict=True) if not t]),
        "share_no_call": _mean([c == 0 for c in calls]),
        "completion_tokens": _mean(tokens),
        "completion_tokens_p95": float(np.percentile(tokens, 95)),
        "completion_tokens_max": max(tokens),
        "share_unanswered": _mean(["<answer>" not in str(r.messages[-1]["content"]) for r in rollouts]),
        "accuracy_by_family": {family: _mean(right) for family, right in sorted(by_family.items())},
        "answered_calls": len(table),
        "share_delta_h_negative": _mean(table[:, 0] < 0),
        "share_needed": _mean(needed),
        "auc_needed_minus_delta_h": round(auc(-table[:, 0], needed), 4),
        "auc_needed_minus_delta_h_within_index": round(auc_within(-table[:, 0], needed, table[:, 2]), 4),
        "auc_needed_entropy_before": round(auc(table[:, 1], needed), 4),
        "auc_needed_call_index": round(auc(-table[:, 2], needed), 4),
    }


def evaluate(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, *, n: int = 256, seed: int = 0
) -> dict[str, Any]:
    """Answer n held-out questions sampled at temperature 1 and once more greedily.

    Args:
        model: The agent.
        tokenizer: Its tokenizer.
        n: Number of questions about one evaluation world.
        seed: Seed of the world, the questions and the sampling; sets torch's global generator.

    Returns:
        `{"sampled": figures, "greedy": figures}`, each as `summarize` gives them.
    """
    import torch

    world = World(seed, Split.EVAL)
    asked = list(questions(world, n, seed=seed))
    tools = {"search": make_search(SearchIndex(world.documents), top_k=2), "python": make_python()}
    torch.manual_seed(seed)
    return {
        name: summarize(run(asked, make_generate(model, tokenizer, temperature=temperature), tokenizer, tools))
        for name, temperature in (("sampled", 1.0), ("greedy", 0.0))
    }
