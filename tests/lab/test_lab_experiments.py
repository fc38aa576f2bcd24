"""The commands behind docs/lab.md and docs/results/margin.md: their counts by hand, and what the pages must say."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import numpy as np
import pytest
from builders import make_trajectory
from study_builders import demo as made_up_demo

from deltah.core.signals import SignalConfig
from deltah.errors import ConfigError
from deltah.lab import demo
from deltah.report.data import ArmData, load_arm
from deltah.traces import write_traces

pytest.importorskip("trl")
ROOT = Path(__file__).parents[2]


def experiment(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "experiments" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def test_repeats_and_first_calls_are_told_apart_and_counted() -> None:
    dead_band = experiment("dead_band")
    # The builder gives every call the same name and arguments: the first of a trajectory is new, the others repeat it.
    trajectories = [
        make_trajectory([[1.0], [0.5], [0.485]], id="a", question="q"),  # first -0.5, repeat -0.015
        make_trajectory([[1.0], [0.97], [1.5]], id="b", question="q"),  # first -0.03, repeat +0.53
        make_trajectory([[1.0], []], id="c", question="other"),  # first, no ΔH
    ]
    calls = dead_band.calls_by_question(trajectories)
    assert [len(rows) for rows in calls] == [4, 1]
    repeats, firsts = dead_band.shares(np.concatenate(calls))
    at = dead_band.MARGINS.index
    assert (repeats[at(0.01)], firsts[at(0.01)]) == (1 / 2, 2 / 3)
    assert (repeats[at(0.02)], firsts[at(0.02)]) == (0, 2 / 3)
    assert (repeats[at(0.05)], firsts[at(0.05)]) == (0, 1 / 3)
    text = dead_band.page(trajectories[:2])
    assert "1 different questions with a call, 2 exact repeats, 2 first calls (0 calls without" in text
    assert "| 0.01 | 0.500 | 1.000 | 0.500 [0.500, 0.500] |" in text


def test_the_margin_page_compares_with_the_outcome_arm(tmp_path: Path) -> None:
    lab_arms = experiment("lab_arms")
    arms = {}
    for name, calls in (("outcome", 3), ("sparse, margin 0.02", 1)):
        for decoding in ("sampled", "greedy"):
            segments = [[1.0]] * (calls + 1)
            rows = [make_trajectory(segments, id=str(i), question=str(i), outcome=0.5) for i in range(20)]
            write_traces(tmp_path / name / "eval" / f"{decoding}.jsonl", rows)
        (tmp_path / name / "run.json").write_text('{"command": "train", "config": {}}')
        arms[name] = load_arm(tmp_path / name, name=name)
    page = lab_arms.margin_page(arms, "python x.py")
    assert "Made by `python x.py` on" in page
    assert "| sampled | outcome | 0.500 [0.500, 0.500] | 3.00 [3.00, 3.00] | – | – |" in page
    assert (
        "| greedy | sparse, margin 0.02 | 0.500 [0.500, 0.500] | 1.00 [1.00, 1.00] | +0.000 [+0.000, +0.000] "
        "| -2.000 [-2.000, -2.000] |"
    ) in page


def test_the_picture_is_a_whole_svg_with_its_own_colours(tmp_path: Path) -> None:
    data = made_up_demo(12)
    experiment("lab_arms").write_picture(data, tmp_path / "plane.svg")
    root = ElementTree.parse(tmp_path / "plane.svg").getroot()
    assert root.tag.endswith("svg")
    text = (tmp_path / "plane.svg").read_text(encoding="utf-8")
    assert all(arm.name in text for arm in data.columns)
    assert "--a1:" in text


def test_a_demo_judges_all_arms_by_its_own_margin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "_run_all", lambda jobs, watch: None)
    monkeypatch.setattr(demo, "load_arm", lambda path, **options: demo_arm(path))
    monkeypatch.setattr(demo, "write_report", lambda data, path: None)
    config = demo.DemoConfig(arms=("sparse",), signal=SignalConfig(margin=0.0))
    data = demo.run_demo(config, tmp_path)
    for name in ("start", "sparse"):
        assert json.loads((tmp_path / "logs" / f"{name}.json").read_text())["signal"]["margin"] == 0.0
    assert "entropy falls by more than 0 nats" in data.facts["dead band"]
    with pytest.raises(ConfigError, match=r"margin: 0\.0 then, 0\.02 now"):
        demo.run_demo(replace(config, signal=demo.SIGNAL), tmp_path)


def demo_arm(path: Path) -> ArmData:
    return ArmData(name=path.name)
