"""What a reader of a log's numbers must know of them, and how to get better ones: one sentence a note."""

from __future__ import annotations

from collections.abc import Iterator

from deltah.core.types import Estimator
from deltah.study.facts import LogFacts
from deltah.study.logs import ScoredLog


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
    if facts.unmeasured:
        yield (
            f"{facts.unmeasured:,} of {facts.calls:,} calls have no entropies (no logprobs): text alone judges them."
        )
    if facts.unbounded and log.reader.options.imports.vocab_size is not None:
        yield (
            f"{facts.unbounded:,} of {facts.calls:,} calls have no upper bound and cannot be certified: their "
            "traces were written without what --vocab-size needs; give it when reading the original log."
        )
    elif facts.unbounded:
        yield (
            f"{facts.unbounded:,} of {facts.calls:,} calls have no upper bound, so none of them can be certified: "
            "state the vocabulary size with --vocab-size (vocab_size in the model's config.json)."
        )
    if Estimator.TOP_K.value in facts.estimators and facts.unmeasured < facts.calls:
        yield (
            "Certified are the verdicts (reduced, not reduced, undecided). A mean ΔH averages point estimates, which "
            "extrapolate what lies beyond the listed logprobs; its bracket is the sampling of questions alone."
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
            f"{facts.mixed:,} trajectories mix sampling temperatures or logprob modes; their entropies do not "
            "speak of one distribution."
        )
    if len(facts.temperatures) > 1:
        found = ", ".join(f"{value:g}" for value in sorted(facts.temperatures))
        yield f"The trajectories were measured at different temperatures ({found}); compare them with care."
    if facts.unlisted_tokens:
        yield (
            f"{facts.unlisted_tokens:,} sampled tokens of {facts.with_unlisted:,} trajectories have no logprobs, by "
            "the server's own count (tokens of calls, hidden reasoning, or of one character that was listed once); no "
            "entropy speaks of them."
        )


def _reading(log: ScoredLog, facts: LogFacts) -> Iterator[str]:
    reader = log.reader
    if facts.approximate:
        yield (
            f"{facts.approximate:,} of {facts.trajectories:,} trajectories have approximate spans: the borders of "
            "reasoning, calls and results are estimated."
        )
    if reader.n_unjoined:
        yield (
            f"{reader.n_unjoined:,} API calls continue conversations whose beginning is not in the log; each is a "
            "trajectory of its own."
        )
    if reader.n_branches:
        yield f"{reader.n_branches:,} retries or forks were not continued; each is a trajectory of its own."
    if log.answers is not None:
        matched, rows = log.n_matched, log.answers.n_rows
        yield f"{matched:,} of {facts.trajectories:,} trajectories found a row among the {rows:,} of the answers' file."
    if reader.skipped:
        yield f"{len(reader.skipped):,} files hold no traces and were passed over: {', '.join(reader.skipped[:5])}."
    if reader.copies:
        listed = ", ".join(map(str, reader.copies[:5]))
        yield f"{len(reader.copies):,} files repeat others, plain or compressed, and were left out: {listed}."
