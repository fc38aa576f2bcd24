"""The page in a real browser: it opens from disk, a deep link opens its trajectory, nothing hostile runs."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from urllib.parse import quote

import pytest
from study_builders import demo, evaluated
from test_report import HOSTILE, hostile_trajectory

from deltah.study import ArmData, ReportData, write_report

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (Debian: apt-get install chromium)"),
]


def dump_dom(url: str, profile: Path) -> str:
    """The document after its scripts have run."""
    command = [
        str(CHROMIUM),
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        f"--user-data-dir={profile}",
        "--virtual-time-budget=5000",
        "--dump-dom",
        url,
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def test_deep_link_opens_a_trajectory_beside_another(tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    write_report(demo(12), out)
    records = json.loads(out.with_suffix(".json").read_text())["viewer"]["trajectories"]
    record = next(r for r in records if r["arm"] == 2 and r["calls"] > 0)
    other = next(r for r in records if r["arm"] == 0 and r["question"] == record["question"])
    link = f"{out.as_uri()}#t={quote(record['key'], safe='')}&vs={quote(other['key'], safe='')}"
    dom = dump_dom(link, tmp_path / "profile")
    opened = dom[dom.index('id="v-main"') : dom.index('id="notes"')]
    assert f'data-key="{record["key"]}"' in opened
    assert f'data-key="{other["key"]}"' in opened
    assert opened.count('class="cards') == sum(b["kind"] == "round" for r in (record, other) for b in r["blocks"])
    assert 'class="tok h' in opened
    assert "96 of 96 trajectories" in dom


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    trajectories = [hostile_trajectory(text.replace("alert(1)", "document.title='broken'")) for text in HOSTILE]
    arm = ArmData(name="<b>arm", evaluations={"logs": evaluated(trajectories)})
    out = tmp_path / "report.html"
    write_report(ReportData(title="safe", arms=(arm,)), out)
    key = json.loads(out.with_suffix(".json").read_text())["viewer"]["trajectories"][1]["key"]
    dom = dump_dom(f"{out.as_uri()}#t={quote(key, safe='')}", tmp_path / "profile")
    assert "<title>safe</title>" in dom
    assert "<img" not in dom
    assert "&lt;img src=x" in dom[dom.index('id="v-main"') :]
