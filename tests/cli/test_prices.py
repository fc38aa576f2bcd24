"""Prices and latencies as options."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from builders import make_trajectory
from call_builders import search, written
from click.testing import Result
from typer.testing import CliRunner

from deltah.calls.savings import Prices
from deltah.cli.app import app
from deltah.cli.arguments import costs
from deltah.errors import ConfigError
from deltah.traces import write_traces


def test_tokens_and_calls_are_told_apart() -> None:
    found = costs(["input=2", "output=8", "search=0.005", "a=b=1"], "EUR", ["search=0.8"])
    assert found.prices == Prices(
        input_per_million=2.0, output_per_million=8.0, per_call={"search": 0.005, "a=b": 1.0}, currency="EUR"
    )
    assert found.latency_s == {"search": 0.8}
    assert costs(None, "USD", None).prices == Prices()


@pytest.mark.parametrize("wrong", ["search", "=1", "search=", "search=-1", "search=nan", "search=many"])
def test_what_is_no_price_is_refused(wrong: str) -> None:
    with pytest.raises(ConfigError, match="expected a name and a number, 0 or more"):
        costs([wrong], "USD", None)


def test_the_report_takes_them(tmp_path: Path) -> None:
    write_traces(tmp_path / "t.jsonl", [make_trajectory([[2.0], [1.0], [1.5]])])
    arguments = ["report", str(tmp_path / "t.jsonl"), "--price", "input=2", "--currency", "EUR"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    twin = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert twin["waste"]["tables"][0]["currency"] == "EUR"


def test_small_sums_are_shown_as_on_the_page(tmp_path: Path) -> None:
    """The second of two equal calls with equal answers is waste; its fee is a fifth of a cent."""
    path = tmp_path / "t.jsonl"
    write_traces(path, [make_trajectory([[1.0], [1.0], [1.5]])])
    (tmp_path / "tools.toml").write_text('search = {kind = "read", cost = 0.002}\n')
    prices = ["--price", "input=0", "--price", "output=0", "--tools", str(tmp_path / "tools.toml")]
    result = CliRunner().invoke(app, ["score", str(path), *prices])
    assert result.exit_code == 0, result.output
    (row,) = (line for line in result.output.splitlines() if line.strip().startswith("certified "))
    assert "0.0020" in row


def test_a_tool_that_no_call_is_of_is_named_with_the_closest(tmp_path: Path) -> None:
    """A misspelt price would be a sum that is too small, without a word."""
    path, page = tmp_path / "t.jsonl", tmp_path / "page.html"
    write_traces(path, [make_trajectory([[1.0], [1.0], [1.5]])])
    wrong = ["--price", "serch=0.002", "--price", "outptu=8", "--latency", "zzz=1"]
    said = (
        "--price or --latency names 3 tools that the log never calls: serch (did you mean search?), "
        "outptu (did you mean output?), zzz."
    )
    shown = CliRunner().invoke(app, ["score", str(path), *wrong])
    assert shown.exit_code == 0, shown.output
    assert said in shown.stderr
    asked = CliRunner().invoke(app, ["score", str(path), "--json", *wrong])
    assert said in json.loads(asked.stdout)["notes"]
    reported = CliRunner().invoke(app, ["report", str(path), "--out", str(page), *wrong])
    assert reported.exit_code == 0, reported.output
    assert said in reported.stderr
    assert json.loads(page.with_suffix(".json").read_text(encoding="utf-8"))["notes"] == [said]
    assert "did you mean search?" in page.read_text(encoding="utf-8").split('id="deltah-data"')[0]
    right = CliRunner().invoke(app, ["score", str(path), "--price", "search=0.002", "--latency", "search=1"])
    assert "never calls" not in right.output


def test_a_tool_of_one_side_is_known(tmp_path: Path) -> None:
    """Of two runs side by side, only one need call a tool."""
    write_traces(tmp_path / "a.jsonl", [make_trajectory([[1.0], [1.0], [1.5]])])
    write_traces(tmp_path / "b.jsonl", [make_trajectory([[1.0]])])
    logs = [str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")]
    done = CliRunner().invoke(app, ["report", *logs, "--out", str(tmp_path / "p.html"), "--price", "search=0.002"])
    assert done.exit_code == 0, done.output
    assert "never calls" not in done.output


def test_tools_are_drafted_corrected_and_read(tmp_path: Path) -> None:
    log, tools, page = tmp_path / "log.jsonl", tmp_path / "tools.toml", tmp_path / "page.html"
    fact = "Orin Tade lives in Ostbridge and works for Arden Optics."
    write_traces(log, [written(search("Orin", fact), search("Orin", fact))])

    def run(*arguments: object) -> Result:
        done = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert done.exit_code == 0, done.output
        return done

    drafted = run("score", log, "--write-tools", tools)
    assert "tools drafted in" in drafted.stderr
    assert "1 call with the result of an earlier equal one (of search) may be waste" in drafted.stderr
    numbers = "2 calls in 1 trajectory, 1 repeat of 1 call, 0 of them with another result"
    assert f'"search" = "unknown"  # {numbers}' in tools.read_text()
    assert json.loads(run("score", log, "--tools", tools, "--json").stdout)["waste"]["likely"] == 0
    tools.write_text(tools.read_text().replace('= "unknown"', '= "read"') + 'lookup = {kind = "read", cost = 0.5}\n')
    summary = json.loads(run("score", log, "--tools", tools, "--json").stdout)
    assert summary["waste"]["likely"] == 1
    assert "--price or --tools names 1 tool that the log never calls: lookup." in summary["notes"]
    refused = CliRunner().invoke(app, ["score", str(log), "--write-tools", str(tools)])
    assert "would overwrite" in str(refused.exception), "what was corrected stays"
    run("score", log, "--tools", tools, "--write-tools", tmp_path / "again.toml")
    assert f'"search" = "read"  # declared: {numbers}' in (tmp_path / "again.toml").read_text()
    assert "lookup" in run("report", log, "--tools", tools, "--out", page).stderr
    twin = json.loads(page.with_suffix(".json").read_text(encoding="utf-8"))
    assert twin["waste"]["tables"][0]["arms"][0]["levels"]["likely"] == 1
    run("study", log, "--tools", tools, "--resamples", 100)
