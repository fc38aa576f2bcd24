"""Every Python example of the documentation runs, and every command it prints exists."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.fixture
def own_registries(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a page registers is forgotten after it."""
    import deltah

    for name in ("SIGNALS", "REWARDS", "POOLINGS", "GRADERS", "TOOLS", "IMPORTERS"):
        registry = getattr(deltah, name)
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))


@pytest.mark.usefixtures("own_registries")
@pytest.mark.parametrize("page", [p for p in PAGES if ">>>" in p.read_text(encoding="utf-8")], ids=lambda p: p.name)
def test_examples_run(page: Path) -> None:
    result = doctest.testfile(str(page), module_relative=False, encoding="utf-8")
    assert result.attempted > 0
    assert result.failed == 0


def named_files() -> set[str]:
    """Files of code that pages name, by their path in the repository or in the package."""
    pages = [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "benchmarks" / "README.md", ROOT / "examples" / "README.md"]
    texts = [page.read_text("utf-8") for page in pages]
    return {name for text in texts for name in re.findall(r"[\w/]+/[\w/]+\.py\b", text)}


@pytest.mark.parametrize("name", sorted(named_files()))
def test_named_files_exist(name: str) -> None:
    assert any((folder / name).is_file() for folder in (ROOT, ROOT / "src" / "deltah", ROOT / "examples"))


def printed_commands() -> set[str]:
    """Words after `deltah` at the start of a line of a shell block."""
    blocks = (
        block
        for page in PAGES
        for block in re.findall(r"```(?:sh|console|bash)\n(.*?)```", page.read_text("utf-8"), re.S)
    )
    return {match for block in blocks for match in re.findall(r"^\s*(?:\$ )?deltah ([a-z]+)", block, re.M)}


@pytest.mark.parametrize("name", sorted(printed_commands()))
def test_commands_exist(name: str) -> None:
    from deltah.cli.app import app

    assert CliRunner().invoke(app, [name, "--help"]).exit_code == 0


def test_example_records_of_the_pages_on_formats_are_read(tmp_path: Path) -> None:
    from deltah import read_traces

    pages = [ROOT / "docs" / "formats.md", ROOT / "docs" / "formats" / "openai.md"]
    records = [block for page in pages for block in re.findall(r"```json\n(.*?)```", page.read_text("utf-8"), re.S)]
    assert len(records) >= 2
    for record in records:
        path = tmp_path / "example.json"
        path.write_text(" ".join(record.split()))
        assert len(list(read_traces(path, strict=True))) == 1


def test_the_architecture_page_names_what_exists() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    named = re.findall(r"`((?:core|calls|engines|traces|tasks)/[\w/]+\.py)`: ((?:`[\w.]+`(?:, )?)+)", page)
    assert len(named) >= 6
    for file, names in named:
        source = (ROOT / "src" / "deltah" / file).read_text("utf-8")
        for name in re.findall(r"[\w.]+", names):
            assert re.search(rf"(def|class) {name.rpartition('.')[2]}\b", source), (file, name)
