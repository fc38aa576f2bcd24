"""Traces of verifiers and prime-rl's stream with its trainer's annotations, against entropies computed by hand."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path
from typing import Any

import pytest

import deltah
from deltah.core.types import Estimator, SegmentKind, SpanQuality, StopReason

OPEN, CLOSE, END = 151657, 151658, 151645
"""Ids of `<tool_call>`, `</tool_call>` and `<|im_end|>` in Qwen3's vocabulary."""
HALF = 0.5e-4
"""nats: half of the last of the four decimals that prime-rl writes."""


def node(
    parent: int | None, message: dict[str, Any], prompt: list[int], drawn: list[int], **more: Any
) -> dict[str, Any]:
    """One message with the template's tokens before it and those that the model drew."""
    mask = [False] * len(prompt) + [True] * len(drawn)
    place = {} if parent is None else {"parent": parent}
    values = {"token_ids": prompt + drawn, "mask": mask, "logprobs": [-0.25] * len(drawn)}
    return place | {"message": message, "sampled": bool(drawn)} | values | more


def assistant(content: str, **call: Any) -> dict[str, Any]:
    calls = {"tool_calls": [{"id": "k1", "type": "function", "name": "almanac", "arguments": json.dumps(call)}]}
    return {"role": "assistant", "content": content} | (calls if call else {})


def nodes() -> list[dict[str, Any]]:
    return [
        node(None, {"role": "user", "content": "How high is Mount Tarn?"}, [1, 2, 3], []),
        node(0, assistant("I look", peak="Tarn"), [4], [10, 11, OPEN, 12, 13, CLOSE, END]),
        node(1, {"role": "tool", "tool_call_id": "k1", "content": "Tarn: 812 m"}, [5, 6], []),
        node(2, assistant("812 m"), [4], [20, 21, 22, END]),
    ]


ENTROPIES = [None] * 4 + [0.9, 0.5, 0.02, 0.01, 0.03, 0.0, 0.0] + [None] * 3 + [0.3, 0.2, 0.1, 0.0]
"""Of the 18 tokens of `nodes()`, the template's included. H(r_0) = (0.9 + 0.5) / 2 = 0.7 over the text before the call,
H(r_1) = (0.3 + 0.2 + 0.1) / 3 = 0.2 without the end token: the call changes it by -0.5 nats."""


def trace(**fields: Any) -> dict[str, Any]:
    request = {"model": "Qwen/Qwen3-1.7B", "sampling": {"temperature": 0.7}}
    calls = [
        {"node": 1, "finish_reason": "tool_calls", "time": {"start": 10.0, "end": 11.0}} | request,
        {"node": 3, "finish_reason": "stop", "time": {"start": 13.5, "end": 14.0}} | request,
    ]
    rewards = {"exact": {"score": 1.0, "weight": 0.5}, "style": {"score": 0.5, "weight": 0.2}, "judge": None}
    known = {"version": 1, "id": "t1", "nodes": nodes(), "calls": calls, "rewards": rewards, "metrics": {"turns": 2}}
    return known | {"agent": {"name": "solver", "config": {"model": "x"}}, "stop_condition": "done"} | fields


def episode(*traces: dict[str, Any]) -> dict[str, Any]:
    task = {"type": "Peaks", "data": {"prompt": "How high is Mount Tarn?", "answer": "812 m"}}
    run = {"type": "train", "id": "r", "work": {"type": "train", "step": 4, "policy": {"start": 3, "end": 3}}}
    head = {"id": "e1", "env": {"id": "peaks"}, "task": task, "group": {"id": "g7"}, "run": run, "ok": True}
    return head | {"traces": list(traces)}


def update(entropies: list[float | None], trace_id: str = "t1", index: int = 0) -> dict[str, Any]:
    branch = {"index": index, "trainer_logprobs": [None] * len(entropies), "entropies": entropies}
    return {"version": 1, "trace_id": trace_id, "info": {"trainer": {"step": 4}}, "branches": [branch]}


def stream(folder: Path, episodes: list[dict[str, Any]], updates: list[dict[str, Any]]) -> Path:
    """A run's `traces` folder."""
    (folder / "stream").mkdir(parents=True)
    (folder / "annotations" / "trainer").mkdir(parents=True)
    (folder / "stream" / "00000.jsonl").write_text("".join(json.dumps(e) + "\n" for e in episodes))
    text = "".join(json.dumps(u) + "\n" for u in updates)
    (folder / "annotations" / "trainer" / "00000.jsonl").write_text(text)
    return folder / "stream"


def only(path: Path) -> deltah.Trajectory:
    reader = deltah.read_traces(path, strict=True)
    (found,) = reader
    return found


def test_the_trainers_entropies_join_the_episode_with_their_rounding(tmp_path: Path) -> None:
    found = only(stream(tmp_path, [episode(trace())], [update(ENTROPIES)]))
    signal = deltah.score(found)
    assert signal.value == pytest.approx([-0.5])
    assert signal.lower == pytest.approx([-0.5 - 2 * HALF])
    assert signal.upper == pytest.approx([-0.5 + 2 * HALF])
    assert (found.estimator, found.spans, found.temperature) == (Estimator.TOP_K, SpanQuality.EXACT, 0.7)
    assert found.logprobs == pytest.approx([-0.25] * 11)
    (call,) = found.calls
    assert (call.name, call.arguments, call.result, call.duration_s) == (
        "almanac", '{"peak": "Tarn"}', "Tarn: 812 m", 2.5,
    )  # fmt: skip


@pytest.mark.parametrize("drawn", [[OPEN, 12, OPEN, 13, CLOSE, 14, END], [10, 11, 15, 12, 13, 16, END]])
def test_where_ids_do_not_show_the_calls_the_change_is_undefined(tmp_path: Path, drawn: list[int]) -> None:
    known = nodes()
    known[1]["token_ids"][1:] = drawn
    found = only(stream(tmp_path, [episode(trace(nodes=known))], [update(ENTROPIES)]))
    signal = deltah.score(found)
    assert math.isnan(signal.value[0])
    assert "ids of tokens instead of texts" in str(signal.reasons[0])
    assert found.prediction == "812 m"


def test_bounds_of_a_rounded_zero_stay_at_or_above_0(tmp_path: Path) -> None:
    found = only(stream(tmp_path, [episode(trace())], [update(ENTROPIES)]))
    assert found.entropy_lower is not None
    assert found.entropy_upper is not None
    assert found.entropy_lower.min() == 0.0
    assert found.entropy_upper[-1] == pytest.approx(HALF)


def test_rewards_and_the_place_in_the_run_are_kept(tmp_path: Path) -> None:
    found = only(stream(tmp_path, [episode(trace())], []))
    assert found.outcome == pytest.approx(0.5 * 1.0 + 0.2 * 0.5)
    assert found.group_id == "g7"
    assert found.id == "t1"
    assert found.model == "Qwen/Qwen3-1.7B"
    assert found.golden_answers == ("812 m",)
    known = {"env_name": "peaks", "step": 4, "policy_version": 3, "reward/exact": 1.0, "metric/turns": 2}
    assert known.items() <= dict(found.metadata).items()


def test_a_reward_of_zero_is_the_outcome_though_the_answer_is_right(tmp_path: Path) -> None:
    found = stream(tmp_path, [episode(trace(rewards={"exact": {"score": 0.0}}))], [])
    table = deltah.read_calls(found)
    assert table.sql("SELECT outcome FROM trajectories").fetchall() == [(0.0,)]


def test_with_all_digits_the_entropies_are_exact(tmp_path: Path) -> None:
    third = 1 / 3
    values = [None if e is None else e * third for e in ENTROPIES]
    found = only(stream(tmp_path, [episode(trace())], [update(values)]))
    assert found.estimator is Estimator.EXACT
    assert deltah.score(found).value == pytest.approx([-0.5 * third])


def test_a_run_that_kept_two_decimals_has_wider_bounds(tmp_path: Path) -> None:
    long = nodes()
    drawn = [30 + i for i in range(40)]
    long[3] = node(2, assistant("812 m"), [4], [*drawn, END])
    entropies = [*ENTROPIES[:14], *([0.25, 0.15] * 20), 0.0]
    found = only(stream(tmp_path, [episode(trace(nodes=long))], [update(entropies)]))
    # All values have two decimals. H(r_1) = 0.2, so the change is 0.2 - 0.7; each side may err by 0.005.
    assert deltah.score(found).lower == pytest.approx([-0.5 - 0.01])


def test_chunks_that_were_sealed_are_read(tmp_path: Path) -> None:
    folder = stream(tmp_path, [episode(trace())], [update(ENTROPIES)])
    for file in (folder / "00000.jsonl", tmp_path / "annotations" / "trainer" / "00000.jsonl"):
        file.with_suffix(".jsonl.gz").write_bytes(gzip.compress(file.read_bytes()))
        file.unlink()
    assert deltah.score(only(folder)).value == pytest.approx([-0.5])


def test_the_last_annotation_counts_and_one_being_written_is_left_out(tmp_path: Path) -> None:
    doubled = [None if e is None else 2 * e for e in ENTROPIES]
    folder = stream(tmp_path, [episode(trace())], [update(doubled), update(ENTROPIES)])
    with (tmp_path / "annotations" / "trainer" / "00000.jsonl").open("a") as file:
        file.write('{"version": 1, "trace_id": "t1", "bran')
    found = only(folder)
    assert deltah.score(found).value == pytest.approx([-0.5])
    assert "annotation_lines_unread" not in found.metadata


def test_a_run_is_read_as_a_whole_without_passing_over_its_annotations(tmp_path: Path) -> None:
    stream(tmp_path, [episode(trace())], [update(ENTROPIES)])
    reader = deltah.read_traces(tmp_path)
    assert [deltah.score(t).value[0] for t in reader] == pytest.approx([-0.5])
    assert (reader.skipped, reader.problems) == ([], [])


def test_a_damaged_annotation_is_counted(tmp_path: Path) -> None:
    folder = stream(tmp_path, [episode(trace())], [{"trace_id": 5}, update(ENTROPIES)])
    assert only(folder).metadata["annotation_lines_unread"] == 1


def test_tokens_beyond_the_trainers_length_are_not_measured(tmp_path: Path) -> None:
    found = only(stream(tmp_path, [episode(trace())], [update(ENTROPIES[:14])]))
    assert math.isnan(deltah.score(found).value[0])
    assert found.entropy is not None
    assert [e == e for e in found.entropy] == [True] * 7 + [False] * 4


def test_annotations_of_another_length_are_a_problem(tmp_path: Path) -> None:
    reader = deltah.read_traces(stream(tmp_path, [episode(trace())], [update([*ENTROPIES, 0.1])]))
    assert [*reader] == []
    assert "19 entropies of the trainer for 18 tokens" in reader.problems[0].reason


def test_entropies_may_stand_in_the_trace_itself(tmp_path: Path) -> None:
    known = nodes()
    known[1]["entropies"], known[3]["entropies"] = ENTROPIES[4:11], ENTROPIES[14:]
    file = tmp_path / "traces.jsonl"
    file.write_text(json.dumps(trace(nodes=known)) + "\n")
    assert deltah.score(only(file)).value == pytest.approx([-0.5])


def test_a_tokenizer_beside_the_run_gives_the_texts(tmp_path: Path) -> None:
    words = {"I": 10, "\u0120look": 11, '{"': 12, "}": 13, "8": 20, "12": 21, "\u0120m": 22}
    added = [{"id": i, "content": t} for i, t in ((OPEN, "<tool_call>"), (CLOSE, "</tool_call>"), (END, "<|im_end|>"))]
    vocabulary = {"model": {"vocab": words}, "added_tokens": added, "decoder": {"type": "ByteLevel"}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(vocabulary))
    folder = stream(tmp_path / "monitors" / "file" / "traces", [episode(trace())], [update(ENTROPIES)])
    found = only(folder)
    assert [(s.kind, found.segment_text(s)) for s in found.segments if s.kind.sampled] == [
        (SegmentKind.REASONING, "I look"),
        (SegmentKind.CALL, '<tool_call>{"}</tool_call>'),
        (SegmentKind.CONTROL, "<|im_end|>"),
        (SegmentKind.REASONING, "812 m"),
        (SegmentKind.CONTROL, "<|im_end|>"),
    ]


def test_paths_of_one_trace_share_their_history_and_count_it_once(tmp_path: Path) -> None:
    known = nodes()
    known += [
        node(2, assistant("About", peak="Tarn, again"), [4], [30, OPEN, 31, CLOSE, END]),
        node(4, {"role": "tool", "tool_call_id": "k1", "content": "812"}, [5], []),
        node(5, assistant("800 m"), [4], [32, END]),
    ]
    longer = [*ENTROPIES[:14], 0.4, 0.0, 0.0, 0.0, 0.0, None, None, 0.1, 0.0]
    # Leaves are nodes 3 and 6, so the longer path is branch 1. Its history counts there, and only there.
    folder = stream(tmp_path, [episode(trace(nodes=known))], [update(ENTROPIES), update(longer, index=1)])
    main, branch = deltah.read_traces(folder, strict=True)
    assert (main.id, branch.id) == ("t1", "t1/branch-1")
    assert [call.result for call in main.calls] == ["Tarn: 812 m", "812"]
    # H: 0.7, then 0.4, then 0.1.
    assert deltah.score(main).value == pytest.approx([-0.3, -0.3])
    assert branch.calls == ()
    assert branch.entropy is not None
    assert branch.entropy == pytest.approx(ENTROPIES[14:])


def test_each_agent_of_an_episode_is_a_trajectory_and_one_without_tokens_is_read(tmp_path: Path) -> None:
    bare = [dict(n) | {"token_ids": [], "mask": [], "logprobs": []} for n in nodes()]
    critic = trace(id="t2", nodes=bare, agent={"name": "critic"})
    folder = stream(tmp_path, [episode(trace(), critic)], [])
    first, second = deltah.read_traces(folder, strict=True)
    assert (first.id, second.id) == ("t1", "t2")
    assert (first.group_id, second.group_id) == ("g7/solver", "g7/critic")
    assert len(second) == 0
    assert second.calls[0].result == "Tarn: 812 m"
    assert second.prediction == "812 m"
    assert second.stop_reason is StopReason.ANSWERED


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (episode(), "no message of role 'assistant'"),
        (episode(trace(version=2)), "version 2"),
        (episode(trace(nodes=[nodes()[1]])), "expected the number of an earlier node"),
        (episode(trace(nodes=[nodes()[0], dict(nodes()[1], mask=[True])])), "1 values for 8 token_ids"),
    ],
)
def test_what_does_not_fit_is_a_problem(tmp_path: Path, record: dict[str, Any], reason: str) -> None:
    reader = deltah.read_traces(stream(tmp_path, [record], []))
    assert [*reader] == []
    assert reason in reader.problems[0].reason
