"""The stand-alone picture: valid XML, its own colours, an unknown evaluation refused."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest
from study_builders import demo

from deltah.errors import InvalidValueError
from deltah.report.render import write_plane


def test_picture_is_a_whole_svg(tmp_path: Path) -> None:
    data = demo()
    write_plane(data, tmp_path / "plane.svg")
    root = ElementTree.parse(tmp_path / "plane.svg").getroot()
    assert root.tag.endswith("svg")
    text = (tmp_path / "plane.svg").read_text(encoding="utf-8")
    assert all(arm.name in text for arm in data.columns)
    assert "--a1:" in text
    with pytest.raises(InvalidValueError, match="no graded evaluation 'none'"):
        write_plane(data, tmp_path / "plane.svg", evaluation="none")
