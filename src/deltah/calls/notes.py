"""What a reader of a log's numbers must know of them, and how to get better ones: one sentence a note."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from deltah.calls.facts import LogFacts
from deltah.calls.logs import ScoredLog
from deltah.core.types import Estimator
from deltah.text_format import count, share

MAX_FILES_NAMED: Final = 5


def notes_on(log: ScoredLog, facts: LogFacts) -> list[str]:
    """Notes on a log that was read to its end, the most consequential first."""
    return [*_refuted(log, facts), *_measurement(log, facts), *_reading(log, facts)]


def _refuted(log: ScoredLog, facts: LogFacts) -> Iterator[str]:
    for size in log.reader.refuted_sizes:
        where = "" if size.where is None else f" at {size.where}"
        resting = facts.assumed_calls.get(size.model, 0)
        before = f" {resting:,} of its calls had been measured with it: do not rely on their upper bounds and verdicts."
        yield (
            f"The name of {size.model} stands for a vocabulary of {size.vocab_size:,} tokens, which the log refutes"
            f"{where} ({size.evidence}): that size was dropped.{before if resting else ''} State the model's own with "
            "--vocab-size (vocab_size in its config.json)."
        )


def _measurement(log: ScoredLog, facts: LogFacts) -> Iterator[str]:
    if not facts.calls:
        yield "No trajectory made a tool call: there is nothing to score."
    if facts.unmeasured:
        yield f"No entropies (no logprobs) of {share(facts.unmeasured, facts.calls, 'call')}: judged by text alone."
    if facts.unbounded and log.reader.options.imports.vocab_size is not None:
        yield (
            f"No upper bound for {share(facts.unbounded, facts.calls, 'call')}, so that none can be certified there: "
            "the traces were written without what --vocab-size needs; give it when reading the original log."
        )
    elif facts.unbounded:
        yield (
            f"No upper bound for {share(facts.unbounded, facts.calls, 'call')}, so that none can be certified there: "
            "state the vocabulary size with --vocab-size (vocab_size in the model's config.json)."
        )
    if Estimator.TOP_K.value in facts.estimators and facts.unmeasured < facts.calls:
        title = log.signal.entry.title
        yield (
            f"Certified are the verdicts (reduced, not reduced, undecided). A mean {title} averages point estimates, "
            "which extrapolate what lies beyond the listed logprobs; its bracket is the sampling of questions alone."
        )
    refuted = {size.model for size in log.reader.refuted_sizes}
    assumed = {model: size for model, size in facts.assumed_vocabularies.items() if model not in refuted}
    if assumed:
        sizes = ", ".join(f"{model}: {size:,}" for model, size in sorted(assumed.items()))
        stated = log.reader.options.imports.vocab_size is not None
        how = (
            "give --vocab-size when reading the log that these traces were written from"
            if stated
            else ("--vocab-size states it")
        )
        yield f"The vocabulary size was taken from the model's name ({sizes}); {how}."
    if facts.mixed:
        yield (
            f"Mixed sampling temperatures or logprob modes in {count(facts.mixed, 'trajectory')}: entropies there do "
            "not speak of one distribution."
        )
    if len(facts.temperatures) > 1:
        found = ", ".join(f"{value:g}" for value in sorted(facts.temperatures))
        yield f"The trajectories were measured at different temperatures ({found}); compare them with care."
    if facts.unlisted_tokens:
        tokens, trajectories = count(facts.unlisted_tokens, "sampled token"), count(facts.with_unlisted, "trajectory")
        yield (
            f"No logprobs of {tokens} of {trajectories}, by the server's own count (tokens of calls, hidden reasoning, "
            "or of one character that was listed once); no entropy speaks of them."
        )


def _reading(log: ScoredLog, facts: LogFacts) -> Iterator[str]:
    reader = log.reader
    if facts.approximate:
        yield (
            f"Approximate spans in {share(facts.approximate, facts.trajectories, 'trajectory')}: the borders of "
            "reasoning, calls and results are estimated."
        )
    if reader.n_unjoined:
        yield (
            f"{count(reader.n_unjoined, 'API call')} without the beginning of the conversation in the log, each a "
            "trajectory of its own."
        )
    if reader.n_branches:
        branches = count(reader.n_branches, "retry or fork", "retries or forks")
        yield f"{branches} without a continuation, each a trajectory of its own."
    if facts.unfit_outcomes:
        yield (
            f"The score of {count(facts.unfit_outcomes, 'trajectory')} is outside [0, 1] (such as "
            f"{facts.unfit_outcome:g}) and not taken as an outcome: give grades in [0, 1] with --answers."
        )
    if log.answers is not None:
        found, rows = share(log.n_matched, facts.trajectories, "trajectory"), count(log.answers.n_rows, "row")
        yield f"The answers' file of {rows} speaks of {found}."
    if skipped := reader.skipped:
        yield f"Passed over {count(len(skipped), 'file')} without traces: {_listed(skipped)}."
    if copies := reader.copies:
        listed = _listed([str(copy) for copy in copies])
        yield f"Left out {count(len(copies), 'file')} for repeating others, plain or compressed: {listed}."


def _listed(files: Sequence[str]) -> str:
    return ", ".join(files[:MAX_FILES_NAMED]) + (", …" if len(files) > MAX_FILES_NAMED else "")
