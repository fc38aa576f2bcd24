"""prime-rl token exports: a micro batch exported as prime-rl does it, read back against the logits it came from."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import log_softmax
from scipy.stats import entropy as scipy_entropy

from deltah.core.segments import segment_entropies
from deltah.core.types import CallStatus, Estimator, SegmentKind, SpanQuality
from deltah.errors import DataError
from deltah.traces import read_traces, write_traces

from .chat import read_as
from .test_record import assert_same

V, TEMPERATURE = 7, 0.6


def shift_right(values: np.ndarray, pad: float) -> list[float]:
    """What the trainer does to a packed batch: value i moves to i + 1, across the borders of sequences."""
    return [pad, *values[:-1].tolist()]


def export(masks: list[str], padding: int, seed: int = 0) -> tuple[list[dict[str, Any]], np.ndarray, np.ndarray]:
    """Records of one packed micro batch, its token ids and its scaled logits.

    Args:
        masks: One text a sequence, "x" for a token the policy sampled, "." for context.
        padding: Tokens that fill up the last sequence.
        seed: Of the logits.
    """
    rng = np.random.default_rng(seed)
    packed = "".join(masks) + "." * padding
    ids = rng.integers(0, V, len(packed))
    scaled = rng.normal(size=(len(packed), V)) / TEMPERATURE
    labels = np.append(ids[1:], 0)
    logprobs = log_softmax(scaled, axis=1)[np.arange(len(ids)), labels]
    columns = {
        "token_ids": ids.tolist(),
        "loss_mask": [sign == "x" for sign in packed],
        "advantages": [0.25] * len(packed),
        "trainer_logprobs": shift_right(logprobs, -math.log(V)),
        "entropy": shift_right(scipy_entropy(np.exp(log_softmax(scaled, axis=1)), axis=1), math.log(V)),
        "is_masked_low": [None] * len(packed),
    }
    records, start = [], 0
    for i, mask in enumerate(masks):
        head = {"schema_version": 1, "step": 3, "rank": 1, "micro_step": 0, "micro_sequence_idx": i}
        head |= {"export_sequence_idx": i, "env_name": "wiki"}
        records.append(head | {key: column[start : start + len(mask)] for key, column in columns.items()})
        start += len(mask)
    return records, ids, scaled


def read(record: dict[str, Any]) -> Any:
    return read_as("prime-rl", json.dumps(record).encode())


def test_entropies_are_those_of_the_distribution_each_token_was_drawn_from() -> None:
    [_, record], ids, scaled = export(["..xx", "..xxx...xx.x"], padding=3)
    trajectory = read(record)
    assert trajectory.entropy is not None
    assert trajectory.logprobs is not None
    for t, sampled in enumerate(record["loss_mask"]):
        row = log_softmax(scaled[4 + t - 1])
        expected = -float((np.exp(row) * row).sum()) if sampled else math.nan
        np.testing.assert_allclose(trajectory.entropy[t], expected, rtol=1e-12)
        np.testing.assert_allclose(trajectory.logprobs[t], row[ids[4 + t]] if sampled else math.nan, rtol=1e-12)
    assert trajectory.estimator is Estimator.EXACT
    assert trajectory.temperature is None
    assert trajectory.spans is SpanQuality.APPROXIMATE


def test_runs_of_the_mask_become_turns_results_and_calls() -> None:
    [record], _, _ = export(["..xxx...xx.x.."], padding=0)
    trajectory = read(record)
    assert [(s.kind.value, s.start, s.stop, s.turn) for s in trajectory.segments] == [
        ("prompt", 0, 2, 0), ("reasoning", 2, 5, 0), ("result", 5, 8, 0), ("reasoning", 8, 10, 1),
        ("result", 10, 11, 1), ("reasoning", 11, 12, 2), ("result", 12, 14, 2),
    ]  # fmt: skip
    assert [(c.id, c.name, c.arguments, c.result, c.turn, c.status) for c in trajectory.calls] == [
        ("call-0", "unknown", "tokens 2:5", "tokens 5:8", 0, CallStatus.OK),
        ("call-1", "unknown", "tokens 8:10", "tokens 10:11", 1, CallStatus.OK),
    ]
    h = np.array(record["entropy"])
    point = segment_entropies(trajectory).point
    np.testing.assert_allclose(point, [h[2:5].mean(), h[8:10].mean(), h[11]], rtol=1e-12)


def test_identity_group_and_metadata() -> None:
    one, other, same = export(["..xx", "..x", "..xx"], padding=0)[0]
    same["token_ids"][:2], other["token_ids"][:2] = one["token_ids"][:2], [6, 6]
    one["token_ids"][:2] = same["token_ids"][:2] = [1, 2]
    first, second, third = map(read, (one, other, same))
    assert (first.id, third.id) == ("step-3/rank-1/0", "step-3/rank-1/2")
    assert first.group_id == third.group_id != second.group_id
    assert dict(first.metadata) == {"step": 3, "rank": 1, "env_name": "wiki", "advantage": 0.25, "has_text": False}
    assert first.outcome is None
    del one["export_sequence_idx"]
    assert read(one).id == "d:1"


def test_advantages_and_rewards_count_only_where_one_number_stands_on_every_policy_token() -> None:
    [record], _, _ = export([".x.x"], padding=0)
    assert read(record | {"rewards": [0, 1.0, 0, 1.0]}).outcome == 1.0
    assert read(record | {"rewards": [0, 1.0, 0, 0.5]}).outcome is None
    assert read(record | {"rewards": [None] * 4}).outcome is None
    assert "advantage" not in read(record | {"advantages": [0, 1, 0, 2]}).metadata


def test_null_entropies_and_the_padding_on_token_0_are_not_measured() -> None:
    [record], _, _ = export(["xx.x"], padding=0)
    record["entropy"] = [math.log(V), None, 1.0, -1e-4]
    trajectory = read(record)
    assert trajectory.entropy is not None
    np.testing.assert_array_equal(trajectory.entropy, [math.nan, math.nan, math.nan, 0.0])
    assert trajectory.logprobs is not None
    assert math.isnan(trajectory.logprobs[0])
    nothing = read(record | {"entropy": [None] * 4})
    assert nothing.entropy is None
    assert nothing.estimator is Estimator.NONE


def test_not_a_number_is_read_although_prime_rl_writes_null() -> None:
    [record], _, _ = export([".xx"], padding=0)
    record["entropy"] = [1.0, math.nan, math.inf]
    assert read(record).entropy is None


def test_survives_our_own_record(tmp_path: Path) -> None:
    records, _, _ = export(["..xxx...xx.x", "..x"], padding=2)
    trajectories = [read(record) for record in records]
    write_traces(tmp_path / "t.jsonl", trajectories)
    for again, trajectory in zip(read_traces(tmp_path / "t.jsonl", strict=True), trajectories, strict=True):
        assert_same(again, trajectory)
        assert again.mask([SegmentKind.REASONING]).tolist() == trajectory.response_mask.tolist()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 2}, "field schema_version: the prime-rl export is of version 2"),
        ({"entropy": [1.0]}, "field entropy: 1 values for 3 tokens"),
        ({"token_ids": [1, 2, 2**70]}, "field token_ids"),
        ({"loss_mask": [False] * 3}, "field loss_mask: no token is True"),
        ({"loss_mask": []}, "field token_ids: 3 values for 0 tokens"),
        ({"loss_mask": [1, 0, 1]}, "field loss_mask"),
        ({"entropy": [1.0, -2.0, 1.0]}, "field entropy: -2 is negative"),
        ({"entropy": ["a", 1.0, 1.0]}, r"field entropy\[0\]"),
        ({"trainer_logprobs": [1.0]}, "field trainer_logprobs"),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, Any], message: str) -> None:
    [record], _, _ = export([".xx"], padding=0)
    with pytest.raises(DataError, match=message):
        read(record | change)


@pytest.mark.parametrize("field", ["schema_version", "token_ids", "loss_mask", "entropy"])
def test_a_missing_field_is_named(field: str) -> None:
    [record], _, _ = export([".xx"], padding=0)
    del record[field]
    with pytest.raises(DataError, match=field):
        read(record)
