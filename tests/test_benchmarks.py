"""What the benchmarks measure with: generated logs are readable and repeatable, work is timed, intervals hold."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from deltah import read_traces, score
from deltah.core.types import Estimator

FOLDER = Path(__file__).parents[1] / "benchmarks"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generated_api_calls_are_the_same_conversations(tmp_path: Path) -> None:
    synthetic = load("synthetic")
    (tmp_path / "whole.jsonl").write_bytes(b"".join(synthetic.chat_lines(3_000_000)))
    (tmp_path / "calls.jsonl").write_bytes(b"".join(synthetic.api_lines(3_000_000)))
    whole = list(read_traces(tmp_path / "whole.jsonl"))
    reader = read_traces(tmp_path / "calls.jsonl")
    joined = sorted(reader, key=lambda t: int(t.id[1:].split("-")[0]))
    assert (reader.n_problems, reader.n_unjoined, reader.n_branches) == (0, 0, 0)
    assert len(whole) == len(joined)
    for a, b in zip(whole, joined, strict=True):
        assert [c.arguments for c in a.calls] == [c.arguments for c in b.calls]
        np.testing.assert_array_equal(a.entropy, b.entropy)


def test_generated_chat_lines_are_read_whole(tmp_path: Path) -> None:
    synthetic = load("synthetic")
    lines = list(synthetic.chat_lines(2_000_000))
    assert lines == list(synthetic.chat_lines(2_000_000))
    assert lines[0] != next(synthetic.chat_lines(1, seed=1))
    path = tmp_path / "log.jsonl"
    path.write_bytes(b"".join(lines))
    reader = read_traces(path)
    read = list(reader)
    assert (len(read), reader.problems) == (len(lines), [])
    for trajectory in read:
        assert trajectory.estimator is Estimator.TOP_K
        assert np.isfinite(trajectory.entropy_upper).all()
        assert 3 <= score(trajectory).n_rounds <= 6


@pytest.mark.parametrize("estimator", [Estimator.EXACT, Estimator.TOP_K])
def test_generated_trajectories_have_all_that_is_measured(estimator: Estimator) -> None:
    trajectories = list(load("synthetic").trajectories(5, estimator))
    for t in trajectories:
        assert np.isfinite(t.entropy[t.response_mask]).all()
        assert (t.entropy_lower is None) == (estimator is Estimator.EXACT)
        assert [call.result for call in t.calls] == [t.text(s.start, s.stop) for s in t.segments if s.kind == "result"]
    assert 500 < np.mean([len(t) for t in trajectories]) < 2000


def test_work_is_timed_without_its_preparation(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "__stdout__", sys.stdout)
    harness = load("harness")

    def prepare(path: str) -> object:
        sum(range(3_000_000))
        return lambda: len(path)

    harness.run_child({"length": prepare}, "length", "four")
    result = harness.json.loads(capsys.readouterr().out)
    assert result["amount"] == 4
    assert result["cpu_s"] < 0.02
    assert 10 < result["peak_mb"] < 10_000


def test_interval_surrounds_the_median() -> None:
    assert load("harness").median_interval([3.0, 1.0, 2.0]) == (2.0, 1.0, 3.0)
    assert load("harness").median_interval([5.0]) == (5.0, 5.0, 5.0)
