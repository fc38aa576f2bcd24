"""The page of a log of every format that is read: it is written and opens without an error."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from chromium import CHROMIUM, Browser, browser
from traces.test_foreign_hostile import SOUND
from typer.testing import CliRunner

from deltah.cli.app import app

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (Debian: apt-get install chromium)"),
]
RECORDED = sorted((Path(__file__).parents[1] / "traces" / "data").glob("*.*"))


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("chromium") / "profile") as found:
        yield found


def opens(page: Browser, log: Path, out: Path) -> None:
    page.errors.clear()
    result = CliRunner().invoke(app, ["report", str(log), "--out", str(out)])
    assert result.exit_code in (0, 1), result.output  # 1: a record could not be read, which the page says
    page.open(out.as_uri())
    assert page.errors == []
    assert page.text("h1")
    assert page.js("document.documentElement.scrollWidth <= window.innerWidth")


@pytest.mark.slow
@pytest.mark.parametrize("name", SOUND)
def test_a_page_of_every_foreign_format(page: Browser, tmp_path: Path, name: str) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text("".join(json.dumps(record) + "\n" for record in SOUND[name]()), encoding="utf-8")
    opens(page, log, tmp_path / "page.html")


@pytest.mark.slow
@pytest.mark.parametrize(
    "log", [p for p in RECORDED if p.suffix != ".py" and "error" not in p.name], ids=lambda p: p.name
)
def test_a_page_of_every_recorded_log(page: Browser, tmp_path: Path, log: Path) -> None:
    opens(page, log, tmp_path / "page.html")
