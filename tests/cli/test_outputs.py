"""What `--out` names: an earlier output of the command is replaced, any other file only with --force."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import duckdb
import pytest
from builders import make_trajectory
from click.testing import Result
from typer.testing import CliRunner

from deltah.cli.app import app
from deltah.errors import ConfigError, DataError
from deltah.traces import write_traces


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "logs" / "agent.jsonl"
    rows = [[[2.0], [1.5], [0.5]], [[0.75], [1.0]]]
    write_traces(path, [make_trajectory(r, id=f"t{i}", outcome=0.0, question=f"Q{i}") for i, r in enumerate(rows)])
    return path


def deltah(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


COMMANDS = {
    "rows.csv": ("score",),
    "rows.jsonl": ("score",),
    "rows.parquet": ("score",),
    "page.html": ("report",),
    "page.json": ("report",),
    "study.json": ("study", "--resamples", "100"),
    "study.md": ("study", "--resamples", "100"),
}
"""Files by name, with the command that writes them."""


def write(log: Path, file: Path, *options: str) -> Result:
    """Run the command that writes a file."""
    command, *more = COMMANDS[file.name]
    named = {"page.json": file.with_suffix(".html"), "study.md": file.parent}.get(file.name, file)
    return deltah(command, log, "--out", named, *more, *options)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_second_run_replaces_what_the_first_one_wrote(log: Path, tmp_path: Path, name: str) -> None:
    file = tmp_path / "new" / "folder" / name
    for _ in range(2):
        done = write(log, file)
        assert done.exit_code == 0, done.output
    assert file.stat().st_size > 100


@pytest.mark.parametrize("name", COMMANDS)
def test_any_other_file_is_kept_unless_forced(log: Path, tmp_path: Path, name: str) -> None:
    """Its neighbours too: where one of two files cannot be written, neither is."""
    file = tmp_path / "out" / name
    file.parent.mkdir()
    if file.suffix == ".parquet":
        duckdb.sql(f"COPY (SELECT 'France' AS country, 'Paris' AS capital) TO '{file}'")
    else:
        file.write_text('{"country": "France", "capital": "Paris"}\n')
    before = file.read_bytes()
    refused = write(log, file)
    assert isinstance(refused.exception, ConfigError)
    said = f"{re.escape(str(file))}, which this command did not write; choose another name, or --force"
    assert re.search(f"^--out .* would overwrite {said}$", str(refused.exception))
    assert (file.read_bytes(), [p.name for p in file.parent.iterdir()]) == (before, [name])
    assert write(log, file, "--force").exit_code == 0
    assert file.read_bytes() != before
    assert write(log, file).exit_code == 0, "now it is an earlier output"


def test_rows_with_labels_of_ones_own_are_no_longer_the_commands(log: Path, tmp_path: Path) -> None:
    """`deltah study --labels` invites to add a column."""
    for ending in ("csv", "jsonl"):
        rows = tmp_path / f"rows.{ending}"
        assert write(log, rows).exit_code == 0
        first, *others = rows.read_text().splitlines()
        added = f"{first},good" if ending == "csv" else f'{first[:-1]},"good":1}}'
        rows.write_text("\n".join([added, *others]) + "\n")
        assert "which this command did not write" in str(write(log, rows).exception)


def test_one_commands_output_is_not_anothers(log: Path, tmp_path: Path) -> None:
    probe = tmp_path / "rows.jsonl"
    probe.write_text('{"trajectory":"t0","call":"c","tool":"s","round":1,"question":"Q","backend":"b","model":"m"}\n')
    assert "which this command did not write" in str(write(log, probe).exception)
    assert write(log, tmp_path / "study.json").exit_code == 0
    assert "study.json, which this command did not write" in str(
        deltah("report", log, "--out", tmp_path / "study.html").exception
    )
    shutil.copy(log, tmp_path / "rows.jsonl")
    assert "which this command did not write" in str(write(log, tmp_path / "rows.jsonl").exception), "traces"


def test_an_input_that_is_named_is_kept_even_if_it_is_an_earlier_output(log: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    assert write(log, rows).exit_code == 0
    before = rows.read_bytes()
    refused = deltah("score", log, "--answers", rows, "--out", rows)
    assert "which is read; choose another name, or --force" in str(refused.exception)
    assert rows.read_bytes() == before


def test_a_command_that_fails_leaves_no_folder(log: Path, tmp_path: Path) -> None:
    for command in ("score", "report", "study", "probe"):
        options = ["--server", "http://127.0.0.1:9"] if command == "probe" else []
        ending = {"report": "html", "study": "json"}.get(command, "jsonl")
        out = tmp_path / "new" / "sub" / f"a.{ending}"
        failed = deltah(command, tmp_path / "nowhere.jsonl", "--out", out, *options)
        assert isinstance(failed.exception, DataError), command
        assert not (tmp_path / "new").exists(), command
    under_a_file = deltah("score", log, "--out", log / "sub" / "a.csv")
    assert "a.csv: Not a directory; choose another place" in str(under_a_file.exception)
