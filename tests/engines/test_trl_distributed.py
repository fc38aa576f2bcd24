"""Two processes over gloo: groups span ranks with unequal numbers of tool rounds, and the numbers stay those of one.

Run by torchrun on this file: `main` trains one step in each process and writes what it saw. The second half runs the
command line itself under torchrun.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("trl")

ROOT = Path(__file__).parents[2]
WORLD = 2


def main(out: Path, name: str) -> None:
    """Train, leave the group, and write what was seen."""
    from deltah.engines.trl.trl_compat import alone, rank

    number, seen = rank(), train_one_step(out, name)
    with alone():
        seen["gloo_threads"] = [thread for thread in thread_names() if "gloo" in thread]
    (out / f"rank{number}.json").write_text(json.dumps(seen))


def train_one_step(out: Path, name: str) -> dict[str, Any]:
    """One training step of two rows a rank; all four rows are one group."""
    from engines.test_trl_trainer import CALLS, Recorder
    from engines.trl_fixtures import make_trainer

    from deltah import RewardConfig

    rank = int(os.environ["RANK"])
    recorder, captured = Recorder(), {}
    trainer = make_trainer(
        out / f"rank{rank}",
        CALLS[2 * rank : 2 * rank + 2],
        reward=RewardConfig(name=name),
        on_trajectories=recorder,
        grpo={"num_generations": 4, "per_device_train_batch_size": 2},
    )
    original = trainer._compute_loss
    trainer._compute_loss = lambda model, inputs: captured.update(inputs) or original(model, inputs)
    trainer.train()
    rows = zip(captured["completion_ids"].tolist(), captured["advantages"].tolist(), strict=True)
    return {
        "calls": [t.n_calls for t in recorder.trajectories],
        "advantages": [[ids, advantage] for ids, advantage in rows],
        "logged": {k: v for k, v in trainer.state.log_history[0].items() if k.startswith("deltah/")},
    }


def thread_names() -> list[str]:
    """Names of this process's threads, where the system tells them."""
    names = []
    for path in Path("/proc/self/task").glob("*/comm"):
        with contextlib.suppress(OSError):  # it has just ended
            names.append(path.read_text().strip())
    return names


def torchrun(*arguments: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(WORLD)]
    return subprocess.run(
        [*command, *map(str, arguments)], env=environment, capture_output=True, text=True, check=False, timeout=300
    )


def launch(tmp_path: Path, name: str) -> list[dict[str, Any]]:
    done = torchrun(__file__, tmp_path, name)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(WORLD)]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dense", "sparse"])
def test_two_ranks_compute_what_one_process_computes(tmp_path: Path, name: str) -> None:
    from engines.test_trl_trainer import CALLS, Recorder
    from engines.trl_fixtures import make_trainer

    from deltah import Group, RewardConfig
    from deltah.core.advantages import token_advantages

    ranks = launch(tmp_path, name)
    assert [n for rank in ranks for n in rank["calls"]] == [2, 1, 2, 0]
    assert not any(rank["gloo_threads"] for rank in ranks)  # one left at exit may abort the process
    make_trainer(tmp_path / "one", CALLS, on_trajectories=(recorder := Recorder())).train()
    group = Group(
        trajectories=recorder.trajectories,
        signals=recorder.signals,
        outcomes=np.array([t.outcome for t in recorder.trajectories]),
    )
    wanted = {
        tuple(t.token_ids.tolist()): a
        for t, a in zip(recorder.trajectories, token_advantages(group, RewardConfig(name=name)), strict=True)
    }
    for ids, got in (row for rank in ranks for row in rank["advantages"]):
        key = next(k for k in wanted if tuple(ids[: len(k)]) == k)
        if name == "dense":
            np.testing.assert_allclose(got[: len(key)], wanted[key], atol=1e-4)
        else:
            np.testing.assert_allclose(got, wanted[key][wanted[key] != 0][:1].sum(), atol=1e-4)
    assert ranks[0]["logged"] == pytest.approx(ranks[1]["logged"])


def config_file(path: Path, files: Path, **fields: object) -> Path:
    """A run with one checkpoint a step and an evaluation, as TOML-able JSON."""
    from engines.training_fixtures import make_config

    from deltah.engines.config import EvalConfig

    held_out = EvalConfig(tasks=str(files / "tasks.jsonl"), limit=3)
    config = make_config(files, **{"eval": held_out, "steps": 2, "save_every": 1, **fields}).to_dict()
    path.write_text(json.dumps(config))
    return path


@pytest.mark.slow
def test_two_processes_train_the_same_batch_and_one_evaluates(files: Path, tmp_path: Path) -> None:
    from engines.training_fixtures import weights

    from deltah import read_traces
    from deltah.runs import RunDirectory

    config = config_file(tmp_path / "run.json", files, prompts_per_step=4)
    command = ["-m", "deltah", "train", "--config", config, "--out", tmp_path / "run"]
    done = torchrun(*command)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("report  deltah report") == 1
    run = RunDirectory(tmp_path / "run")
    rows = list(run.read_metrics())
    assert [row["step"] for row in rows] == [1, 2]
    traces = [t for rank in range(WORLD) for t in read_traces(run.step_traces(1, rank))]
    assert len(traces) == len({t.id for t in traces}) == 16  # 4 prompts x 4 generations, as in one process
    for name in ("sampled", "greedy"):
        evaluated = [t.metadata["task_id"] for t in read_traces(run.evaluation(name))]
        assert evaluated == ["t0", "t1", "t2"]
    assert json.loads((run.path / "result.json").read_text())["steps"] == 2
    assert (run.checkpoints / "checkpoint-2" / "rng_state_1.pth").exists()

    before = weights(run.path)  # stopped in its evaluation, and run again
    (run.path / "result.json").unlink()
    run.evaluation("greedy").unlink()
    assert torchrun(*command).returncode == 0
    assert len(list(read_traces(run.evaluation("greedy")))) == 3
    assert all((before[key] == value).all() for key, value in weights(run.path).items())

    done = torchrun("-m", "deltah", "eval", "--config", eval_file(tmp_path, config), "--out", tmp_path / "eval")
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(list(read_traces(RunDirectory(tmp_path / "eval").evaluation("sampled")))) == 3


def eval_file(folder: Path, config: Path) -> Path:
    fields = json.loads(config.read_text())
    path = folder / "eval.json"
    path.write_text(json.dumps({key: fields[key] for key in ("rollout", "eval", "signal")}))
    return path


@pytest.mark.slow
def test_processes_that_cannot_share_a_step_are_refused(files: Path, tmp_path: Path) -> None:
    config = config_file(tmp_path / "run.json", files)
    done = torchrun("-m", "deltah", "train", "--config", config, "--out", tmp_path / "run")
    assert done.returncode != 0
    assert "= 8 rows per step is not a multiple of 2 processes x rollout.batch_size 8" in done.stderr
    assert not (tmp_path / "run").exists()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
