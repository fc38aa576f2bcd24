"""Configuration keys mean the same in every command, with their table or, where it is clear, without."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from deltah.cli.settings import resolve
from deltah.engines.config import EvaluateConfig, RolloutRunConfig, TrainConfig
from deltah.errors import ConfigError

KINDS = {
    TrainConfig: {"tasks": "a.jsonl"},
    EvaluateConfig: {"eval.tasks": "a.jsonl"},
    RolloutRunConfig: {},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("key", ["rollout.max_rounds", "max_rounds"])
def test_a_key_is_the_same_in_every_command(kind: type, key: str, tmp_path: Path) -> None:
    assert resolve(kind, options=KINDS[kind], settings=[f"{key}=4"]).rollout.max_rounds == 4
    path = tmp_path / "run.toml"
    path.write_text(f"{key} = 5\ntool.top_k = 3\n[rollout.tool]\npython_timeout_s = 1.5\n")
    found = resolve(kind, path, options=KINDS[kind]).rollout
    assert (found.max_rounds, found.tool.top_k, found.tool.python_timeout_s) == (5, 3, 1.5)


def test_a_key_of_several_tables_names_them() -> None:
    with pytest.raises(ConfigError, match=r"'batch_size'; write one of: rollout.batch_size, eval"):
        resolve(TrainConfig, options={"tasks": "a.jsonl"}, settings=["batch_size=4"])
    assert resolve(RolloutRunConfig, settings=["batch_size=4"]).rollout.batch_size == 4


def test_options_of_rewards_and_signals_are_keys_of_their_tables() -> None:
    found = resolve(TrainConfig, options={"tasks": "a.jsonl", "reward.name": "dense"}, settings=["reward.alpha=0.25"])
    assert found.reward.arguments == {"alpha": 0.25, "centred": False}
    wrong = {
        "reward.alhpa=1": "reward: the reward 'sparse' has no option 'alhpa'; it has: no_call_efficiency",
        "signal.margn=1": "signal: the signal 'delta_h' has no option 'margn'; it has: none",
        "signal.name=delta": "signal: unknown signal 'delta'; choose one of: delta_h, ratio",
        "rollout.max_round=1": "unknown configuration key 'rollout.max_round'; choose from: batch_size",
    }
    for setting, message in wrong.items():
        with pytest.raises(ConfigError, match=message):
            resolve(TrainConfig, options={"tasks": "a.jsonl"}, settings=[setting])


def test_a_fitted_signal_is_read_from_a_file_and_back(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    baseline = "index_means = [-0.5, -0.25]\nlength_slope = 0.5\nmean_log_tokens = 2.0\n"
    path.write_text(f'tasks = "a.jsonl"\n[signal]\nname = "position_corrected"\n[signal.baseline]\n{baseline}')
    found = resolve(TrainConfig, path)
    assert found.signal.baseline.index_means == (-0.5, -0.25)
    (tmp_path / "run.json").write_text(json.dumps(found.to_dict()))
    assert resolve(TrainConfig, tmp_path / "run.json") == found
