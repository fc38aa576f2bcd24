"""Plan, budget, answers, rows, cache: what is asked, in what order, at what cost, and that nothing is asked twice."""

from __future__ import annotations

import math
import sqlite3
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from probe_fixtures import Scripted, Words, holds, searched

from deltah import Trajectory
from deltah.core.types import Estimator
from deltah.errors import ConfigError, InvalidValueError
from deltah.probe.contexts import LoggedCall
from deltah.probe.plan import (
    SENTENCE,
    ProbeConfig,
    continuations,
    make_plan,
    sample,
    sentence_of,
    template_of,
    templates,
)
from deltah.probe.queries import Query, Scores, TextContinuation, TokenContext, open_cache
from deltah.probe.run import Entropy, best_gold, cost_of, mean_entropy, run_plan


def world(words: Words, n: int = 6, calls: int = 3) -> list[Trajectory]:
    return [searched(words, f"q{i}", [f"alpha{i} beta{k} gamma" for k in range(calls)], f"gold{i}") for i in range(n)]


def probe(
    trajectories: list[Trajectory], backend: Scripted, path: Path, config: ProbeConfig | None = None
) -> list[dict[str, Any]]:
    config = config or ProbeConfig()
    with open_cache(path, backend.identity) as cache:
        return run_plan(make_plan(trajectories, backend, config), trajectories, backend, cache, config)


# Answers.


@pytest.mark.parametrize(
    ("text", "template"),
    [
        ("So.<answer> North Quarry</answer>", "<answer> {answer}</answer>"),
        ("<answer>a</answer> no <answer>\nb\n</answer>", "<answer>\n{answer}\n</answer>"),
        (r"Thus \boxed{7}.", r"\boxed{{answer}}"),
        ("6 * 7 = 42\n#### 42", "#### {answer}"),
        ("It is north.", "{answer}"),
        ("<answer>cut off", "{answer}"),
        ("<answer>" * 50_000, "{answer}"),
    ],
)
def test_the_answer_is_written_as_the_trajectory_wrote_its_own(text: str, template: str) -> None:
    assert template_of(text) == template


@pytest.mark.parametrize(
    ("text", "template"),
    [
        (" So Inka was born in North Quarry.<answer> North Quarry</answer>", " So Inka was born in {answer}"),
        ("First a look. Then: the coin is 12.<answer>12</answer>", "Then: the coin is {answer}"),
        ("<answer>12</answer>", "<answer>{answer}"),
        ("12", "{answer}"),
        ("{answer} is 12", "{answer}"),
    ],
)
def test_the_sentence_before_the_answer(text: str, template: str) -> None:
    assert sentence_of(text) == template


def test_a_cut_off_trajectory_takes_the_most_common_form() -> None:
    words = Words()
    cut = searched(words, "cut", ["a"], "x", stop_reason="length")
    assert templates([*world(words, 2), cut], None) == ["<answer> {answer}</answer>"] * 3
    assert templates([cut], None) == ["{answer}"]
    assert templates([cut], "A: {answer}") == ["A: {answer}"]
    assert templates([cut], SENTENCE) == ["{answer}"]


def test_continuations_are_distinct_and_limited() -> None:
    found = continuations(["a", " a ", "", "b", "c"], "<{answer}>!", 2)
    assert found == (
        TextContinuation(text="<a>!", opener=1, closer=2),
        TextContinuation(text="<b>!", opener=1, closer=2),
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"answer_template": "no field"}, "holds {answer} 0 times"),
        ({"answer_template": "{answer}{answer}"}, "2 times"),
        ({"max_calls": 0}, "max_calls is 0"),
        ({"max_answers": 0}, "max_answers is 0"),
        ({"threshold": math.nan}, "threshold is nan"),
    ],
)
def test_a_wrong_configuration_is_one_sentence(fields: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidValueError, match=message):
        ProbeConfig(**fields)  # type: ignore[arg-type]


# Sample and budget.


def test_every_question_counts_before_any_counts_twice() -> None:
    words = Words()
    trajectories = [searched(words, "big", [f"r{i}" for i in range(30)], "x"), *world(words, 4, calls=1)]
    targets = [LoggedCall(trajectory=t, index=i) for t in trajectories for i in range(t.n_calls)]
    order = sample(targets, seed=3)
    assert {t.trajectory.id for t in order[:5]} == {"big", "q0", "q1", "q2", "q3"}
    assert len(order) == len(targets)
    assert sample(targets[::-1], seed=3) == order, "the order of the files does not matter"
    assert sample(targets, seed=4) != order


def test_the_budget_is_kept_and_the_cost_is_what_is_read(tmp_path: Path) -> None:
    words = Words()
    trajectories, backend = world(words), Scripted(view=words)
    config = ProbeConfig(max_calls=7, seed=1)
    plan = make_plan(trajectories, backend, config)
    with open_cache(tmp_path / "c.sqlite", backend.identity) as cache:
        cost = cost_of(plan, backend, cache)
        assert backend.asked == []
        rows = run_plan(plan, trajectories, backend, cache, config)
        assert cost_of(plan, backend, cache).tokens == 0
    assert (cost.calls, cost.queries, cost.cached) == (7, 7 * 6, 0)
    assert cost.tokens == sum(row["model_tokens"] for row in rows)
    assert [row["reason"] for row in rows] == [None] * 7
    assert plan.n_left == 18 - 7
    assert max(Counter(row["trajectory"] for row in rows).values()) == 2


def test_the_same_seed_gives_the_same_rows(tmp_path: Path) -> None:
    words = Words()
    trajectories, config = world(words), ProbeConfig(max_calls=5, seed=9)
    rows = [
        probe(order, Scripted(view=words), tmp_path / f"{i}.jsonl", config)
        for i, order in enumerate((trajectories, trajectories[::-1]))
    ]
    assert sorted(map(str, rows[0])) == sorted(map(str, rows[1]))


# What is measured.


def test_gains_and_labels_by_hand(tmp_path: Path) -> None:
    words = Words()
    trajectories = world(words, 2, calls=1)
    # Real: -0.5 a character, control result: -1.5, no result: -1.0; "goldN" has five characters.
    backend = Scripted(
        lambda q: -0.5 if holds(q, words, "alpha0") else -1.5 if holds(q, words, "alpha1") else -1.0,
        lambda q: 0.25 if holds(q, words, "alpha0") else 0.75 if holds(q, words, "alpha1") else 1.0,
        view=words,
    )
    first, second = probe(trajectories, backend, tmp_path / "c.sqlite")
    assert (first["gold_logprob_real"], first["gold_logprob_placebo"], first["gold_logprob_none"]) == (-2.5, -7.5, -5.0)
    assert (first["gain_placebo"], first["gain_none"], first["gain_per_token_placebo"]) == (5.0, 2.5, 1.0)
    assert (first["useful"], first["beats_placebo"], first["beats_none"]) == (True, True, True)
    assert (first["h_real"], first["delta_h_placebo"], first["delta_h_none"]) == (0.25, -0.5, -0.75)
    assert (first["gold_tokens"], first["segment_tokens"], first["round"], first["tool"]) == (5, 2, 1, "search")
    assert (first["placebo_trajectory"], first["placebo_call"]) == ("q1", "0.0")
    assert second["gain_placebo"] == -5.0
    assert second["useful"] is False


def test_a_call_that_only_beats_its_control_result_is_not_useful(tmp_path: Path) -> None:
    words = Words()
    trajectories = world(words, 2, calls=1)
    backend = Scripted(lambda q: -1.5 if holds(q, words, "alpha1") else -0.5, view=words)
    row = probe(trajectories, backend, tmp_path / "c.sqlite")[0]
    assert (row["beats_placebo"], row["beats_none"], row["useful"]) == (True, False, False)


def test_the_best_answer_is_taken_in_each_context_alike() -> None:
    def scores(*logprobs: float) -> Scores:
        nan = np.full(len(logprobs), np.nan)
        return Scores(
            logprobs=np.array(logprobs), entropy=nan, lower=nan, upper=nan, focus=np.ones(len(logprobs), bool),
            estimator=Estimator.NONE, n_context=1,
        )  # fmt: skip

    gold = best_gold([scores(-3.0, -3.0), scores(-1.0, -2.0, -1.0), scores(math.nan)])
    assert (gold.total, gold.n_tokens) == (-4.0, 3)
    assert gold.per_token == pytest.approx(-4 / 3)
    assert math.isnan(best_gold([scores(math.nan, -1.0)]).total)
    assert math.isnan(best_gold([]).total)
    assert math.isnan(mean_entropy(scores(-1.0)).point)


def test_differences_of_intervals() -> None:
    a, b = Entropy(point=1.0, lower=0.5, upper=2.0), Entropy(point=3.0, lower=2.5, upper=math.inf)
    assert a.minus(b) == (-2.0, -math.inf, -0.5)
    assert b.minus(a) == (2.0, 0.5, math.inf)
    assert a.minus(a) == (0.0, -1.5, 1.5)
    assert b.minus(b) == (0.0, -math.inf, math.inf)


# What cannot be probed.


def test_reasons_are_counted_and_listed(tmp_path: Path) -> None:
    words = Words()
    trajectories = world(words, 3, calls=1)
    trajectories += [
        searched(words, "nogold", ["alpha beta"], "x", golden_answers=()),
        searched(words, "alone", ["a " * 300], "x"),
    ]
    unanswered = searched(words, "open", ["alpha"], "x")
    call = unanswered.calls[0]
    from dataclasses import replace

    trajectories.append(replace(unanswered, calls=(replace(call, result=None, status="unanswered"),)))
    rows = probe(trajectories, Scripted(view=words), tmp_path / "c.sqlite")
    assert [(row["trajectory"], row["reason"]) for row in rows if row["reason"]] == [
        ("nogold", "no_golden_answer"),
        ("alone", "no_placebo"),
        ("open", "unanswered"),
    ]


def test_a_context_too_long_does_not_use_up_the_budget(tmp_path: Path) -> None:
    words = Words()
    long = searched(words, "long", ["alpha beta delta"] * 40, "x")
    trajectories = [*world(words, 3, calls=1), long]
    backend = Scripted(view=words, window=120)
    rows = probe(trajectories, backend, tmp_path / "c.sqlite", ProbeConfig(max_calls=10, seed=0))
    assert sum(row["reason"] is None for row in rows) == 10
    too_long = [row for row in rows if row["reason"] == "context_too_long"]
    assert too_long
    assert all(row["detail"] for row in too_long)


# The cache.


def test_a_killed_probe_goes_on_and_repeats_nothing(tmp_path: Path) -> None:
    words = Words()
    trajectories, path = world(words), tmp_path / "c.sqlite"
    whole = probe(trajectories, Scripted(view=words), tmp_path / "whole.sqlite")
    asked: list[Query] = []
    for stop in (5, 20, 1):
        killed = Scripted(view=words, stop_after=stop)
        with pytest.raises(KeyboardInterrupt):
            probe(trajectories, killed, path)
        asked += killed.asked
    last = Scripted(view=words)
    result = probe(trajectories, last, path)
    asked += last.asked
    assert len(asked) == len({repr(query) for query in asked}) == 18 * 6
    assert str(result) == str(whole)


def test_a_larger_budget_asks_only_for_what_is_new(tmp_path: Path) -> None:
    words = Words()
    trajectories, path = world(words), tmp_path / "c.sqlite"
    probe(trajectories, Scripted(view=words), path, ProbeConfig(max_calls=4))
    more = Scripted(view=words)
    probe(trajectories, more, path, ProbeConfig(max_calls=6))
    assert len(more.asked) == 2 * 6


def test_a_cache_of_another_model_is_refused_by_name(tmp_path: Path) -> None:
    words = Words()
    path = tmp_path / "c.sqlite"
    probe(world(words), Scripted(view=words), path, ProbeConfig(max_calls=1))
    with pytest.raises(ConfigError, match="model: 'scripted' then, 'other' now"):
        probe(world(words), Scripted(view=words, name="other"), path)


@pytest.mark.parametrize("content", ["not a cache\n", '{"probe_cache": "x"}\n', '{"a": 1}\n', "half a line", "[]\n"])
def test_a_foreign_file_is_not_overwritten(tmp_path: Path, content: str) -> None:
    path = tmp_path / "c.sqlite"
    path.write_text(content)
    with pytest.raises(ConfigError, match="is not a cache of deltah probe"), open_cache(path, {"backend": "scripted"}):
        pass
    assert path.read_text() == content


def test_nothing_is_written_before_the_first_answer(tmp_path: Path) -> None:
    path = tmp_path / "c.sqlite"
    with open_cache(path, {"model": "m"}):
        pass
    assert not path.exists()


def test_another_database_is_not_written_to(tmp_path: Path) -> None:
    path = tmp_path / "c.sqlite"
    with closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE mine (x)")
    with pytest.raises(ConfigError, match="is not a cache of deltah probe"), open_cache(path, {"model": "m"}):
        pass


def test_answers_come_back_to_the_last_bit(tmp_path: Path) -> None:
    query = Query(context=TokenContext(ids=(1, 2)), continuation=TextContinuation(text="\ud800 x"))
    scores = Scores(
        logprobs=np.array([-1 / 3, -np.inf, np.nan]),
        entropy=np.array([0.1, np.nan, 2.0]),
        lower=np.array([0.1, np.nan, 1.0]),
        upper=np.array([0.2, np.nan, np.inf]),
        focus=np.array([True, False, True]),
        estimator=Estimator.TOP_K,
        n_context=2,
    )
    with open_cache(tmp_path / "c.sqlite", {"model": "m"}) as cache:
        cache.put(query, scores)
    with open_cache(tmp_path / "c.sqlite", {"model": "m"}) as cache:
        again = cache[query]
    for name in ("logprobs", "entropy", "lower", "upper", "focus"):
        np.testing.assert_array_equal(getattr(again, name), getattr(scores, name))
    assert (again.estimator, again.n_tokens) == (Estimator.TOP_K, 5)
