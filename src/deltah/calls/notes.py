"""Notes on a log: what a reader of its numbers must know, and how to get better ones."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Final

from deltah.calls.table import CallTable, ScoredLog
from deltah.core.entropy import DEFAULT_VOCAB_SIZE
from deltah.core.segments import UNOPENED, UNREADABLE
from deltah.core.types import Estimator
from deltah.errors import DataError
from deltah.text_format import agreeing, count, share
from deltah.traces.conversation import (
    TOKENS_WITHOUT_LOGPROBS,
    UNCLAIMED,
    UNREAD_FIELDS,
    UNREAD_PARTS,
    WITHOUT_ALTERNATIVES,
)
from deltah.traces.importing import UNFIT_OUTCOME
from deltah.traces.reader import ReadCounts
from deltah.traces.vocabularies import FROM_DEFAULT, FROM_MODEL_NAME

MAX_FILES_NAMED: Final = 5
_UNLISTED: Final = f"coalesce(try_cast(metadata->>'{TOKENS_WITHOUT_LOGPROBS}' AS BIGINT), 0)"
_UNFIT: Final = f"if(outcome IS NULL, try_cast(metadata->>'{UNFIT_OUTCOME}' AS DOUBLE), NULL)"
_FACTS: Final = f"""
    SELECT count(*) AS trajectories,
        coalesce(sum(calls), 0)::BIGINT AS calls,
        coalesce(sum(calls) FILTER (signal IS NULL), 0)::BIGINT AS unmeasured,
        (SELECT count(*) FROM calls WHERE verdict <> 'undefined' AND upper IS NULL) AS unbounded,
        count(*) FILTER (estimator = '{Estimator.TOP_K.value}') AS top_k,
        count(*) FILTER (metadata->>'mixed_sampling' = 'true') AS mixed,
        list_sort(list_distinct(list(temperature))) AS temperatures,
        coalesce(sum(calls) FILTER (metadata->>'{WITHOUT_ALTERNATIVES}' <> ''), 0)::BIGINT AS without_alternatives,
        list_sort(list_distinct(list(metadata->>'{WITHOUT_ALTERNATIVES}'))) AS options,
        list_sort(list_distinct(list(metadata->>'{UNREAD_FIELDS}'))) AS unread_fields,
        list_sort(list_distinct(list(metadata->>'{UNREAD_PARTS}'))) AS unread_parts,
        coalesce(sum({_UNLISTED}), 0)::BIGINT AS unlisted_tokens,
        count(*) FILTER ({_UNLISTED} > 0) AS with_unlisted,
        count(*) FILTER (spans = 'approximate') AS approximate,
        count({_UNFIT}) AS unfit_outcomes,
        arg_min({_UNFIT}, key) FILTER ({_UNFIT} IS NOT NULL) AS unfit_outcome,
        coalesce(sum(try_cast(metadata->>'{UNCLAIMED}' AS BIGINT)), 0)::BIGINT AS unclaimed,
        count(*) FILTER (matched) AS matched,
        count(*) FILTER (metadata->>'vocab_size_from' = '{FROM_DEFAULT}') AS without_vocabulary
    FROM trajectories
"""
_DOUBTED: Final = "SELECT reason, count(*) FROM calls WHERE list_contains($doubts, reason) GROUP BY reason ORDER BY ALL"
_ASSUMED_SIZES: Final = f"""
    SELECT model, arg_max(coalesce(try_cast(metadata->>'vocab_size' AS BIGINT), 0), key)
    FROM trajectories WHERE metadata->>'vocab_size_from' = '{FROM_MODEL_NAME}' AND model IS NOT NULL
    GROUP BY model ORDER BY model
"""
"""Models whose vocabulary size was taken from their name."""


_UNKNOWN_REPEATS: Final = """
    SELECT tool, count(*) FROM calls
    WHERE repeats IS NOT NULL AND redundant IS NULL AND waste IS NOT NULL AND coalesce(verdict, '') <> 'reduced'
    GROUP BY tool ORDER BY count(*) DESC, tool
"""
"""Tools with repeats that are no waste only because too little is known."""


def notes_on(table: CallTable, log: ScoredLog) -> list[str]:
    """Notes on a log that was read to its end into a table, the most consequential first."""
    found = table.sql(_FACTS)
    facts = SimpleNamespace(**dict(zip(found.columns, found.fetchall()[0], strict=True)))
    facts.assumed = table.sql(_ASSUMED_SIZES).fetchall()
    facts.doubted = table.sql(_DOUBTED, doubts=[UNOPENED, UNREADABLE]).fetchall()
    facts.repeats = table.sql(_UNKNOWN_REPEATS).fetchall()
    return [*_found(facts), *_unmeasured(log, facts), *_measurement(log, facts), *_reading(log, facts)]


def _found(facts: SimpleNamespace) -> Iterator[str]:
    results = count(facts.unclaimed, "result of a tool", "results of tools")
    if facts.unread_parts:
        yield f"Parts of messages were not read as calls or results: {', '.join(facts.unread_parts)}."
    if not facts.calls and not facts.unclaimed and not facts.unread_parts:
        yield "No trajectory has a tool call, so there is nothing to score."
    elif not facts.calls and facts.unclaimed:
        yield f"No tool call was found, but {results}: the log leaves the calls out, or spells them in an unknown way."
    elif facts.unclaimed:
        yield f"No call was found for {results}: they are in no number."


def nothing_read(log: ScoredLog, paths: Sequence[str | os.PathLike[str]]) -> DataError:
    """The error for logs without a single trajectory."""
    reason = f"{agreeing(len(paths), 'it holds', 'they hold')} nothing to read"
    if log.reader.problems:
        reason = f"the first problem: {log.reader.problems[0]}"
    elif log.reader.skipped:
        reason = f"passed over {log.reader.skipped[0]} (no known trace format)"
    return DataError(f"no trajectory could be read from {', '.join(map(str, paths))}; {reason}")


def losses(log: ScoredLog) -> str:
    """How many records of a log could not be read, the first of them, and where the others are."""
    n, kept = log.reader.n_problems, log.reader.problems
    others = "" if n == 1 else f"; {'all' if n == len(kept) else f'the first {len(kept):,}'} are in .problems"
    read = count(log.reader.n_read, "trajectory")
    return f"{count(n, 'record')} could not be read; {read} could. First: {kept[0]}{others}"


def _unmeasured(log: ScoredLog, facts: SimpleNamespace) -> Iterator[str]:
    """Calls without a value, and why."""
    if facts.unmeasured > facts.without_alternatives:
        unmeasured = share(facts.unmeasured - facts.without_alternatives, facts.calls, "call")
        yield (
            f"No log-probabilities for {unmeasured}, so only the text is judged there. To measure entropy, log with "
            "logprobs=true and top_logprobs=20."
        )
    if facts.options:
        yield (
            f"Log-probabilities without alternatives for {share(facts.without_alternatives, facts.calls, 'call')}, so "
            f"only the text is judged there. To measure entropy, ask the server for {' or '.join(facts.options)}."
        )
    for reason, n in facts.doubted:
        yield f"{log.signal.entry.title} is undefined for {share(n, facts.calls, 'call')}: {reason}."


def _measurement(log: ScoredLog, facts: SimpleNamespace) -> Iterator[str]:
    if facts.unbounded:
        yield (
            f"No reduction can be certified for {share(facts.unbounded, facts.calls, 'call')}: the traces were written "
            "by an earlier release, without a vocabulary size. Read their log again."
        )
    if facts.top_k and facts.unmeasured < facts.calls:
        yield (
            "The log lists only the most likely tokens, so entropies are estimates with certified bounds. Verdicts "
            f"(reduced, not reduced, undecided) rest on the bounds. A mean {log.signal.entry.title} rests on the "
            "estimates; its interval shows how much questions differ, not how far the estimates may be off."
        )
    given = log.reader.options.vocab_size is not None
    how = "--vocab-size where the log of these traces is read" if given else "--vocab-size"
    if facts.without_vocabulary:
        yield (
            f"The model's vocabulary size is not known, so {DEFAULT_VOCAB_SIZE:,} tokens are assumed, more than any "
            f"published model has. Give the true size with {how} (vocab_size in the model's config.json), and "
            "fewer calls stay undecided."
        )
    if facts.assumed:
        sizes = ", ".join(f"{model}: {size:,}" for model, size in facts.assumed)
        yield f"The vocabulary size was taken from the model's name ({sizes}). If it is another, give {how}."
    yield from _sampling(facts)


def _sampling(facts: SimpleNamespace) -> Iterator[str]:
    """Whether the entropies are those of one distribution, and of all tokens."""
    if facts.mixed:
        yield (
            f"{count(facts.mixed, 'trajectory')} mixed sampling temperatures or logprob modes: the entropies before "
            "and after a call cannot be compared there. Keep both settings fixed within a conversation."
        )
    if len(facts.temperatures) > 1:
        found = ", ".join(f"{value:g}" for value in facts.temperatures)
        yield f"Temperatures differ between trajectories ({found}), and entropies with them: score each one apart."
    if facts.unlisted_tokens:
        tokens, trajectories = count(facts.unlisted_tokens, "token"), count(facts.with_unlisted, "trajectory")
        yield (
            f"The server sampled {tokens} of {trajectories} without listing log-probabilities (tokens of calls, hidden "
            "reasoning, or of one character that was listed once). No entropy includes them."
        )


def _reading(log: ScoredLog, facts: SimpleNamespace) -> Iterator[str]:
    reader = log.reader
    if facts.repeats:
        repeated = count(sum(n for _, n in facts.repeats), "call")
        named = ", ".join(tool for tool, _ in facts.repeats[:MAX_FILES_NAMED])
        named += ", …" if len(facts.repeats) > MAX_FILES_NAMED else ""
        yield (
            f"{repeated} with the result of an earlier equal one (of {named}) may be waste: say with --tools which "
            "tools only read; deltah score --write-tools tools.toml drafts the file."
        )
    if facts.approximate:
        yield (
            f"Token positions are approximate in {share(facts.approximate, facts.trajectories, 'trajectory')}: the log "
            "does not mark where reasoning, calls and results begin, so these borders are estimated."
        )
    if facts.unread_fields:
        yield f"Fields of logprobs were not read, as they are not known: {', '.join(facts.unread_fields)}."
    yield from _joining(reader)
    if facts.unfit_outcomes:
        yield (
            f"The score of {count(facts.unfit_outcomes, 'trajectory')} is outside [0, 1] (such as "
            f"{facts.unfit_outcome:g}), so it is not used. Give grades between 0 and 1 with --answers."
        )
    if log.answers.n_rows:
        found, rows = share(facts.matched, facts.trajectories, "trajectory"), count(log.answers.n_rows, "row")
        hint = "" if facts.matched else " Its ids or questions must be those of the log."
        yield f"Grades matched {found} (the file of answers has {rows}).{hint}"
    if skipped := reader.skipped:
        named = ", ".join(skipped[:MAX_FILES_NAMED]) + (", …" if len(skipped) > MAX_FILES_NAMED else "")
        yield f"Passed over {count(len(skipped), 'file')} without traces: {named}."


def _joining(reader: ReadCounts) -> Iterator[str]:
    if reader.n_unjoined:
        yield (
            f"{count(reader.n_unjoined, 'API call')} without the beginning of the conversation, each counted as a "
            "trajectory of its own. Read all files of the log together."
        )
    if reader.n_weakly_joined:
        kinds = ", ".join(f"{n:,} by {kind}" for kind, n in reader.weakly_joined.most_common())
        yield f"{count(reader.n_weakly_joined, 'API call')} joined although the client rewrote the history: {kinds}."
    if reader.n_repeated:
        yield f"{count(reader.n_repeated, 'API call')} logged once more with the response's id, counted once."
    if reader.n_branches:
        branches = count(reader.n_branches, "retry or fork", "retries or forks")
        yield f"{branches} without a continuation, each counted as a trajectory of its own."
