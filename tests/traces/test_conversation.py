"""Which call a result answers, ids that repeat, and the cost of long conversations."""

from __future__ import annotations

import pytest
from growth import growth
from hypothesis import given
from hypothesis import strategies as st

from deltah.traces.conversation import SegmentBuilder
from deltah.traces.openai_schema import FunctionCall, Message, MessageToolCall


def calling(*ids: str | None) -> Message:
    calls = [MessageToolCall(id=i, function=FunctionCall(name="f", arguments="{}")) for i in ids]
    return Message(role="assistant", tool_calls=calls)


def answering(server_id: str | None, text: str) -> Message:
    return Message(role="tool", tool_call_id=server_id, content=text)


IDS = st.sampled_from([None, "a", "b", "a#2"])


@given(st.lists(st.one_of(st.lists(IDS, min_size=1, max_size=3), IDS.map(lambda i: (i,))), max_size=30))
def test_results_and_ids_follow_the_stated_rules(steps: list[list[str | None] | tuple[str | None]]) -> None:
    """Against the rules read aloud: latest open call of the id, else the oldest open one without an id."""
    conversation, ids, expected = SegmentBuilder(), [], []
    for number, step in enumerate(steps):
        if isinstance(step, list):
            conversation.add(calling(*step))
            for server_id in step:
                wanted = server_id or f"call-{len(ids)}"
                free = (name for n in range(1, 99) if (name := wanted if n == 1 else f"{wanted}#{n}") not in ids)
                ids.append(next(free))
                expected.append([server_id, None])
            continue
        conversation.add(answering(step[0], str(number)))
        waiting = [call for call in expected if call[1] is None]
        same = [call for call in reversed(waiting) if call[0] == step[0]]
        nameless = [call for call in waiting if call[0] is None]
        answered = waiting[:1] if step[0] is None else same[:1] or nameless[:1]
        for call in answered:
            call[1] = str(number)
        assert bool(conversation.open_calls) == any(call[1] is None for call in expected)
    found = conversation.calls
    assert [call.id for call in found] == ids
    assert [call.result for call in found] == [result for _, result in expected]


@pytest.mark.parametrize("server_id", ["same", None])
@pytest.mark.parametrize("answer_at_once", [True, False])
def test_thousands_of_calls_cost_linear_time(server_id: str | None, answer_at_once: bool) -> None:
    def work(n_calls: int) -> None:
        conversation = SegmentBuilder()
        for _ in range(n_calls):
            conversation.add(calling(server_id))
            if answer_at_once:
                conversation.add(answering(server_id, "found"))
        for _ in range(0 if answer_at_once else n_calls):
            assert conversation.open_calls
            conversation.add(answering(server_id, "found"))
        assert not conversation.open_calls
        assert len({call.id for call in conversation.calls}) == n_calls

    assert growth(work, 500, 5000) < 30, "ten times the calls; quadratic time would be a hundred"
