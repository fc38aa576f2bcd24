"""Photograph a report for the README: its beginning, and one trajectory; needs a Chromium on the machine.

    deltah report examples/lab/vllm.jsonl.zst --vocab-size 1394 --answers examples/lab/tasks.jsonl \\
        --title "A tool-calling agent behind vLLM, 28 questions" \\
        --price input=2 --price cached=0.2 --price output=8 --price search=0.005 --out runs/agent.html
    python experiments/report_images.py runs/agent.html --question "Which coin is used in the country where Hedda"
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from urllib.parse import quote

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "tests" / "report"))

from chromium import Browser, browser  # noqa: E402 - the client lives with the tests

WIDTH = 1240
TOP = "document.querySelector('#%s').getBoundingClientRect().top + scrollY"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("page", type=Path)
    parser.add_argument("--question", default="", help="beginning of the question whose trajectory is shown")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, browser(Path(folder) / "profile") as chromium:
        chromium.resize(WIDTH, 900)
        overview(chromium, options.page, options.out / "report-overview.png")
        trajectory(chromium, options.page, options.question, options.out / "report-trajectory.png")


def overview(chromium: Browser, page: Path, out: Path) -> None:
    chromium.open(page.resolve().as_uri())
    height = chromium.js(TOP % "calls") - 10
    chromium.screenshot(out, clip={"x": 0, "y": 0, "width": WIDTH, "height": height})


def trajectory(chromium: Browser, page: Path, question: str, out: Path) -> None:
    records = json.loads(page.with_suffix(".json").read_text(encoding="utf-8"))["viewer"]["trajectories"]
    record = next(r for r in records if (r["text"] or "").startswith(question))
    chromium.open(f"{page.resolve().as_uri()}#t={quote(record['key'], safe='')}")
    top = chromium.js(TOP % "viewer") + 20
    chromium.js("document.querySelector('#v-list').style.maxHeight = '620px'")
    chromium.screenshot(out, clip={"x": 0, "y": top, "width": WIDTH, "height": 1180})


if __name__ == "__main__":
    main()
