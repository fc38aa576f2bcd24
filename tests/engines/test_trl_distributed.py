"""Two processes over gloo: groups span ranks with unequal numbers of tool rounds, and the numbers stay those of one.

Run by torchrun on this file: `main` trains one step in each process and writes what it saw.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("trl")

ROOT = Path(__file__).parents[2]
WORLD = 2


def main(out: Path, name: str) -> None:
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
    seen = {
        "calls": [t.n_calls for t in recorder.trajectories],
        "advantages": [[ids, advantage] for ids, advantage in rows],
        "logged": {k: v for k, v in trainer.state.log_history[0].items() if k.startswith("deltah/")},
    }
    (out / f"rank{rank}.json").write_text(json.dumps(seen))


def launch(tmp_path: Path, name: str) -> list[dict]:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(WORLD)]
    done = subprocess.run(
        [*command, __file__, str(tmp_path), name], env=environment, capture_output=True, text=True, check=False
    )
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


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
