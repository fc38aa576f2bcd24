"""What a reader of a log's numbers must know of them, and how to get better ones: one sentence a note."""

from __future__ import annotations

from collections.abc import Iterator

from deltah.study.logs import ScoredLog
from deltah.study.report.evaluation import Evaluation


def notes_on(log: ScoredLog, evaluation: Evaluation) -> list[str]:
    """Notes on a log that was read to its end, the most consequential first."""
    return [*_measurement(evaluation), *_unlisted(log), *_reading(log, evaluation)]


def _measurement(evaluation: Evaluation) -> Iterator[str]:
    rows = evaluation.rows
    if unmeasured := sum(row.label is None for row in rows):
        yield f"{unmeasured:,} of {len(rows):,} calls have no entropies (no logprobs): text alone judges them."
    if unbounded := sum(not row.bounded for row in rows):
        yield (
            f"{unbounded:,} of {len(rows):,} calls have no upper bound, so none of them can be certified: state the "
            "vocabulary size with --vocab-size (vocab_size in the model's config.json)."
        )
    if evaluation.assumed_vocabularies:
        sizes = ", ".join(f"{model}: {size:,}" for model, size in sorted(evaluation.assumed_vocabularies.items()))
        yield f"The vocabulary size was taken from the model's name ({sizes}); --vocab-size states it."
    if evaluation.mixed:
        yield (
            f"{evaluation.mixed:,} trajectories mix sampling temperatures or logprob modes; their entropies do not "
            "speak of one distribution."
        )
    if len(evaluation.temperatures) > 1:
        found = ", ".join(f"{value:g}" for value in sorted(evaluation.temperatures))
        yield f"The trajectories were measured at different temperatures ({found}); compare them with care."


def _unlisted(log: ScoredLog) -> Iterator[str]:
    if log.unlisted.tokens:
        yield (
            f"{log.unlisted.tokens:,} sampled tokens of {log.unlisted.trajectories:,} trajectories have no logprobs, "
            "by the server's own count: llama.cpp's server lists the several tokens of one character (an emoji) once, "
            "other servers leave out hidden reasoning or calls. No entropy speaks of them."
        )


def _reading(log: ScoredLog, evaluation: Evaluation) -> Iterator[str]:
    reader = log.reader
    if evaluation.approximate:
        yield (
            f"{evaluation.approximate:,} of {len(evaluation):,} trajectories have approximate spans: the borders of "
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
        matched, rows = log.answers.n_matched, log.answers.n_rows
        yield f"{matched:,} of {len(evaluation):,} trajectories found a row among the {rows:,} of the answers' file."
    if reader.skipped:
        yield f"{len(reader.skipped):,} files hold no traces and were passed over: {', '.join(reader.skipped[:5])}."
