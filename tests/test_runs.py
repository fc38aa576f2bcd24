"""A run directory belongs to one configuration and to one process, and a run that never started leaves nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from deltah import runs as locks
from deltah.errors import ConfigError, DataError
from deltah.runs import RunDirectory, claim, open_run

HOLD = """
import sys
from pathlib import Path
from deltah.runs import claim
with claim(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def holder(path: Path) -> subprocess.Popen[str]:
    """A process that holds a directory until its input ends."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1] / "src")}
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_process_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "run"
    first = holder(path)
    try:
        message = rf"run is in use by process {first.pid} on .+; wait until it ends, or give another --out"
        with pytest.raises(ConfigError, match=message), claim(path):
            pytest.fail("two processes hold one directory")
        assert path.is_dir()  # the refused process removes nothing of the other's
    finally:
        first.kill()
        first.wait()
    with claim(path):
        assert (path / ".lock").read_text().startswith(f"process {os.getpid()} on ")


def test_claims_in_one_process_exclude_one_another_and_are_released(tmp_path: Path) -> None:
    with claim(tmp_path), pytest.raises(ConfigError, match=f"in use by process {os.getpid()}"), claim(tmp_path):
        pass
    with claim(tmp_path):
        pass


def test_a_file_system_without_locks_is_used_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def flock(*arguments: int) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(locks.fcntl, "flock", flock)
    with claim(tmp_path):
        pass
    assert "without locks" in caplog.text


def test_a_lock_on_a_file_that_its_holder_removed_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between opening the file and locking it, the holder before may fail and take its directory away."""
    path, flock, calls = tmp_path / "run", locks.fcntl.flock, []

    def late(lock: int, flags: int) -> None:
        if not calls:
            (path / ".lock").unlink()
            path.rmdir()
        calls.append(lock)
        flock(lock, flags)

    monkeypatch.setattr(locks.fcntl, "flock", late)
    with claim(path):
        assert (path / ".lock").exists()
    assert len(calls) == 2


def test_a_run_that_fails_before_its_first_result_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "a"

    def start() -> None:
        with claim(path):
            run = open_run(path, {"steps": 1}, command="train")
            run.set_status("training", 0, 1)
            run.checkpoints.mkdir()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        start()
    assert not (tmp_path / "runs").exists()


def test_a_run_that_fails_later_keeps_what_it_wrote(tmp_path: Path) -> None:
    def sitting() -> None:
        with claim(tmp_path / "run"):
            run = open_run(tmp_path / "run", {"steps": 1}, command="train")
            if not run.metrics_path.exists():
                run.append_metrics({"step": 1})
            raise ZeroDivisionError

    for _ in range(2):  # also when the second sitting fails before it adds anything
        with pytest.raises(ZeroDivisionError):
            sitting()
    assert list(RunDirectory(tmp_path / "run").read_metrics()) == [{"step": 1}]


def test_a_failed_start_leaves_an_existing_folder_and_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "out" / "empty").mkdir(parents=True)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ZeroDivisionError), claim(tmp_path / "out"):
        raise ZeroDivisionError
    assert sorted(p.name for p in tmp_path.iterdir()) == ["notes.txt", "out"]
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["empty"]
    with pytest.raises(ConfigError, match="is not a run of deltah"), claim(tmp_path):
        open_run(tmp_path, {}, command="train")
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_folders_of_our_names_that_were_there_before_are_kept(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights.bin").write_text("mine")
    with pytest.raises(ConfigError, match="is not a run of deltah"), claim(tmp_path):
        open_run(tmp_path, {}, command="train")
    assert [p.name for p in tmp_path.rglob("*")] == ["model", "weights.bin"]


def test_what_a_killed_start_left_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / ".lock").write_text("process 1 on nowhere")
    with claim(tmp_path / "run"):
        assert open_run(tmp_path / "run", {"a": 1}, command="train").config == {"a": 1}


@pytest.mark.parametrize("name", ["file", "file/run"])
def test_a_path_that_cannot_be_written_is_one_sentence(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(ConfigError, match=r"cannot write the run directory .*; choose another --out"),
        claim(tmp_path / name),
    ):
        pass


def test_changed_keys_are_named_as_the_command_line_writes_them(tmp_path: Path) -> None:
    old = {"steps": 1, "rollout": {"temperature": 1.0, "tool": {"top_k": 2}}, "report_to": [], "trainer": {}}
    new = {"steps": 1, "rollout": {"temperature": 0.7, "tool": {"top_k": 3}}, "report_to": ["x"], "trainer": {"a": 1}}
    open_run(tmp_path, old, command="train")
    with pytest.raises(ConfigError) as caught:
        open_run(tmp_path, new, command="train", free_keys=frozenset({"report_to"}))
    assert (
        "(rollout.temperature: 1.0 then, 0.7 now; rollout.tool.top_k: 2 then, 3 now; trainer.a: not set then, 1 now);"
        in str(caught.value)
    )
    with pytest.raises(ConfigError, match="and 4 more"):
        open_run(tmp_path, {**old, **{f"k{i}": i for i in range(10)}}, command="train")


def test_a_broken_manifest_is_named(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"config": 3}')
    with pytest.raises(DataError, match=r"run\.json: expected an object with the key 'config'"):
        open_run(tmp_path, {}, command="train")
