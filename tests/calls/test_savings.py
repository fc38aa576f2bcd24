"""Savings against numbers computed by hand."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from builders import make_trajectory
from call_builders import Call, search, written

from deltah import Segment, SegmentKind, Signal, ToolCall, Trajectory, score
from deltah.calls.evidence import Waste, WasteLevel
from deltah.calls.savings import Costs, Prices, SavingsReport, savings
from deltah.calls.table import CallTable
from deltah.core.signals import Verdict
from deltah.core.types import Estimator
from deltah.errors import InvalidValueError

READS = {"search": "read", "get": "read"}
FACT = "Mira Kovel lives in Larkholm and works for Tessen Paper."


def estimate(
    *pairs: tuple[Trajectory, Signal | None], prices: Prices | None = None, **options: Mapping[str, float]
) -> SavingsReport:
    table = CallTable.of([t for t, _ in pairs], [s for _, s in pairs], tools=READS)
    return savings(table, Costs(prices=prices or Prices(), **options))


def dropping(t: Trajectory, call: str) -> SavingsReport:
    """Savings if one call were waste."""
    table = CallTable.of([t])
    assert len(table) == t.n_calls  # all rows are in
    table.connection.execute("UPDATE calls SET waste_level = 'likely' WHERE call = $call", {"call": call})
    return savings(table)


def labelled(trajectory: Trajectory, *labels: Verdict) -> Signal:
    """A signal that says nothing but labels."""
    rounds, blank = len(labels), np.zeros(len(labels))
    return Signal(
        name="delta_h",
        unit="nats",
        margin=0.0,
        value=blank.copy(),
        lower=blank.copy(),
        upper=blank.copy(),
        verdicts=labels,
        segment_entropy=np.zeros(rounds + 1),
        segment_lower=np.zeros(rounds + 1),
        segment_upper=np.zeros(rounds + 1),
        segment_tokens=np.ones(rounds + 1, dtype=np.int64),
        round_of_call=trajectory.round_of_call,
        estimator=Estimator.EXACT,
        temperature=1.0,
        answered=np.ones(trajectory.n_calls, dtype=np.bool_),
    )


def token_trajectory(**fields: object) -> Trajectory:
    """Four turns of one equal call each: 2 call tokens, 3 result tokens; a final answer in a fifth message."""
    return make_trajectory([[1.0], [2.0], [2.5], [2.4], [2.6]], **fields)


def test_tokens_of_dropped_calls_by_hand() -> None:
    # Calls 1, 2, 3 repeat call 0. ΔH: +1, +0.5, -0.1, +0.2, so calls 1 and 3 are certified and call 2 reduced.
    t = token_trajectory()
    prices = Prices(input_per_million=2.0, cached_input_per_million=0.5, output_per_million=8.0)
    report = estimate((t, score(t)), prices=prices)
    saved = report.certified
    assert (saved.calls, saved.turns) == (2, 2)
    assert (saved.call_tokens, saved.result_tokens) == (4, 6)
    # Call 1 is followed by the messages 2, 3, 4, call 3 by message 4: 5 tokens read 3 + 1 times, 2 of them again.
    assert (saved.prompt_tokens, saved.repeated_prompt_tokens) == (20, 10)
    assert saved.money == pytest.approx((4 * 8 + 20 * 2) * 1e-6)
    assert saved.money_with_cache == pytest.approx((4 * 8 + 10 * 2 + 10 * 0.5) * 1e-6)
    assert saved.calls_with_estimated_tokens == 0
    assert (math.isnan(saved.seconds), saved.calls_without_seconds) == (True, 2)
    assert report.certified_and_likely.prompt_tokens == saved.prompt_tokens
    assert report.levels == {WasteLevel.CERTIFIED: 2, WasteLevel.LIKELY: 0, WasteLevel.HINT: 0, WasteLevel.NONE: 2}
    assert report.classes[Waste.EXACT_DUPLICATE] == 3
    assert (report.trajectories, report.calls) == (1, 4)


def test_without_entropies_nothing_is_certified_and_repeats_are_likely() -> None:
    report = estimate((token_trajectory(), None))
    assert (report.certified.calls, report.certified_and_likely.calls) == (0, 3)
    assert report.levels[WasteLevel.LIKELY] == 3


@pytest.mark.parametrize(
    ("label", "certified", "likely"),
    [
        (Verdict.NOT_REDUCED, 1, 1),
        (Verdict.UNDECIDED, 0, 1),
        (Verdict.UNDEFINED, 0, 1),
        (Verdict.REDUCED, 0, 0),
    ],
)
def test_a_label_decides_the_level(label: Verdict, certified: int, likely: int) -> None:
    t = written(search("a", FACT), search("a", FACT))
    report = estimate((t, labelled(t, Verdict.REDUCED, label)))
    assert (report.certified.calls, report.certified_and_likely.calls) == (certified, likely)


def test_a_hint_is_never_saved() -> None:
    t = written(search("a", FACT))
    report = estimate((t, labelled(t, Verdict.NOT_REDUCED)))
    assert (report.levels[WasteLevel.HINT], report.certified_and_likely.calls) == (1, 0)


def test_tokens_are_estimated_from_characters_where_the_record_has_none() -> None:
    t = written(Call("get", '{"a": 1}', "x" * 40), Call("get", '{"a": 1}', "x" * 40))
    report = estimate((t, None))
    saved = report.certified_and_likely
    assert (saved.call_tokens, saved.result_tokens, saved.prompt_tokens) == (11 / 4, 10, 12.75)
    assert (saved.repeated_prompt_tokens, saved.calls_with_estimated_tokens) == (0, 1)
    assert "Tokens of 1 dropped call were estimated at 4 characters a token." in report.assumptions


def test_parallel_calls_share_the_tokens_of_one_segment_by_their_characters() -> None:
    # Two calls in one message of 6 tokens, spelled by 12 and 6 characters; results of 30 and 10 characters in 8 tokens.
    kinds = ((SegmentKind.CALL, 0, 6, 0), (SegmentKind.RESULT, 6, 14, 0), (SegmentKind.REASONING, 14, 16, 1))
    segments = tuple(Segment(kind=kind, start=a, stop=b, turn=turn) for kind, a, b, turn in kinds)
    calls = (
        ToolCall(id="a", name="get", arguments="x" * 9, turn=0, result="r" * 30),
        ToolCall(id="b", name="get", arguments="x" * 3, turn=0, result="r" * 10),
    )
    t = Trajectory(id="t", segments=segments, calls=calls)
    saved = dropping(t, "b").certified_and_likely
    assert (saved.call_tokens, saved.result_tokens) == (2, 2)
    assert (saved.calls, saved.turns) == (1, 0)
    one_each = (*(Segment(kind=SegmentKind.CALL, start=3 * i, stop=3 * i + 3, turn=0) for i in (0, 1)), *segments[1:])
    t = Trajectory(id="t", segments=one_each, calls=calls)
    assert dropping(t, "b").certified_and_likely.call_tokens == 3


def test_a_dropped_call_of_the_last_message_is_read_by_nobody() -> None:
    t = written(search("a", FACT), search("a", FACT), end=None)
    saved = estimate((t, None)).certified_and_likely
    assert (saved.prompt_tokens, saved.calls) == (0, 1)


def test_fees_and_seconds_measured_and_given() -> None:
    measured = Call("search", {"query": "a"}, FACT, 0.25)
    get, other = Call("get", "1", "x"), search("b", FACT)
    t = written(measured, measured, other, other, other, get, get)
    report = estimate((t, None), prices=Prices(per_call={"search": 0.01}), latency_s={"search": 2.0})
    saved = report.certified_and_likely
    # Dropped: the second `a` (0.25 s measured), the later two `b` (2 s given), the second `get`.
    assert (saved.calls, saved.seconds, saved.calls_without_seconds) == (4, 4.25, 1)
    assert math.isnan(saved.money)
    free = Prices(per_call={"search": 0.01}, input_per_million=0.0, output_per_million=0.0)
    saved = estimate((t, None), prices=free).certified_and_likely
    assert saved.money == pytest.approx(0.03)
    assert math.isnan(saved.money_with_cache)


def test_seconds_that_are_gaps_between_api_calls_are_said_to_be() -> None:
    def idle_time_is_named(duration_s: float | None, **metadata: str) -> bool:
        one = Call("search", {"query": "a"}, FACT, duration_s)
        report = estimate((replace(written(one, one), metadata=metadata), None))
        return any("idle time" in sentence for sentence in report.assumptions)

    assert idle_time_is_named(9.0, duration_s_from="gap between API calls")
    assert not idle_time_is_named(9.0), "durations that the log states"
    assert not idle_time_is_named(None, duration_s_from="gap between API calls"), "none of the dropped call"


def test_money_needs_every_price_of_tokens_that_are_there() -> None:
    t = token_trajectory()
    assert math.isnan(estimate((t, None), prices=Prices(input_per_million=1.0)).certified_and_likely.money)
    assert estimate((t, None), prices=Prices(input_per_million=1.0)).certified.money == 0.0
    assert estimate().certified.calls == 0


def test_trajectories_add_up() -> None:
    t = token_trajectory()
    once, many = estimate((t, score(t))), estimate(*[(t, score(t))] * 3)
    assert many.certified.prompt_tokens == 3 * once.certified.prompt_tokens
    assert many.calls == 12
    assert once.assumptions == many.assumptions


def test_assumptions_are_sentences_that_name_what_was_given() -> None:
    report = estimate(prices=Prices(per_call={"search": 0.01}), latency_s={"search": 1.0})
    assert all(sentence.endswith(".") for sentence in report.assumptions)
    assert any("search" in sentence for sentence in report.assumptions)
    assert any("prefix cache" in sentence for sentence in report.assumptions)
    assert len(report.assumptions) == len(estimate().assumptions) + 2


def test_sums_of_money_are_named_as_tables_name_them() -> None:
    [said] = [s for s in estimate(prices=Prices(input_per_million=1.0, currency="EUR")).assumptions if "EUR" in s]
    assert '"EUR" is the cost at the stated prices without a prefix cache' in said
    assert '"EUR, cached"' in said
    [said] = [s for s in estimate().assumptions if "USD" in s]
    assert said == "No price was stated, so no sum in USD is given."
    assert not any("money_with_cache" in s or "`" in s for s in estimate(prices=Prices(per_call={"f": 1})).assumptions)


def test_wrong_input_is_refused_with_its_name() -> None:
    with pytest.raises(InvalidValueError, match="input_per_million is -1"):
        Prices(input_per_million=-1)
    with pytest.raises(InvalidValueError, match="fee of 'search' is nan"):
        Prices(per_call={"search": math.nan})
    with pytest.raises(InvalidValueError, match="latency of 'x'"):
        Costs(latency_s={"x": math.inf})
    t = token_trajectory()
    with pytest.raises(InvalidValueError, match="has 4 calls, its signal 1"):
        estimate((t, score(make_trajectory([[1.0], [1.0]]))))
