"""The page's colours: told apart by colour-blind eyes, text readable on every one of them, in both themes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib import resources

import numpy as np
import pytest

from deltah.core.types import FloatArray
from deltah.report.page import ENTROPY_LEVELS

CSS = (resources.files("deltah.report") / "templates" / "style.css").read_text(encoding="utf-8")
SIGHT = {
    "normal": np.eye(3),
    # Machado, Oliveira and Fernandes (2009), severity 1, on linear RGB.
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
}
LUMINANCE = np.array([0.2126, 0.7152, 0.0722])
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
WHITE = TO_XYZ.sum(axis=1)


def theme(name: str) -> Mapping[str, str]:
    """Custom properties of one theme; the dark one replaces some of the light one's."""
    light, dark = (
        dict(re.findall(r"--([\w-]+): ([^;]+);", block)) for block in re.findall(r":root \{(.*?)\}", CSS, re.S)[:2]
    )
    return light if name == "light" else {**light, **dark}


def linear(colours: Mapping[str, str], name: str) -> FloatArray:
    """Linear RGB of a property, references followed."""
    value = colours[name]
    if value == "transparent":
        return linear(colours, "bg")
    if reference := re.fullmatch(r"var\(--([\w-]+)\)", value):
        return linear(colours, reference[1])
    digits = value.removeprefix("#")
    digits = "".join(d * 2 for d in digits) if len(digits) == 3 else digits
    srgb = np.array([int(digits[i : i + 2], 16) for i in (0, 2, 4)]) / 255
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def contrast(a: FloatArray, b: FloatArray) -> float:
    """Ratio of WCAG 2, from 1 to 21."""
    high, low = sorted((float(LUMINANCE @ a), float(LUMINANCE @ b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def lab(rgb: FloatArray) -> FloatArray:
    t = TO_XYZ @ np.clip(rgb, 0, 1) / WHITE
    f = np.where(t > (6 / 29) ** 3, np.cbrt(t), t / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def test_the_measures_themselves() -> None:
    black, white, grey = (linear({"c": code}, "c") for code in ("#000", "#ffffff", "#777777"))
    assert contrast(black, white) == pytest.approx(21)
    assert contrast(grey, white) == pytest.approx(4.48, abs=0.01)  # the known example just below 4.5
    assert lab(white) == pytest.approx([100, 0, 0], abs=0.1)


@pytest.mark.parametrize("name", ["light", "dark"])
@pytest.mark.parametrize("sight", SIGHT)
def test_entropy_colours_are_in_order_of_lightness(name: str, sight: str) -> None:
    colours, seen = theme(name), np.asarray(SIGHT[sight])
    levels = [lab(seen @ linear(colours, f"h{k}")) for k in range(len(ENTROPY_LEVELS) + 1)]
    steps = np.diff([level[0] for level in levels]) * (-1 if name == "light" else 1)
    assert (steps > 1.5).all()
    assert np.linalg.norm(levels[-1] - levels[0]) > 60


@pytest.mark.parametrize("name", ["light", "dark"])
@pytest.mark.parametrize("sight", SIGHT)
def test_verdicts_are_told_apart(name: str, sight: str) -> None:
    colours, seen = theme(name), np.asarray(SIGHT[sight])
    good, bad, none = (lab(seen @ linear(colours, key)) for key in ("good", "bad", "none"))
    assert np.linalg.norm(good - bad) > 35
    assert min(np.linalg.norm(good - none), np.linalg.norm(bad - none)) > 20


@pytest.mark.parametrize("name", ["light", "dark"])
def test_text_stands_out(name: str) -> None:
    colours = theme(name)
    pairs = [("ink", "bg"), ("ink", "card"), ("soft", "bg"), ("soft", "card"), ("accent", "bg"), ("bg", "waste")]
    pairs += [("good", "good-bg"), ("bad", "bad-bg"), ("none", "none-bg"), ("waste", "card")]
    pairs += [(f"flip{k}" if k >= 5 else "h-dark", f"h{k}") for k in range(len(ENTROPY_LEVELS) + 1)]
    weak = {pair: contrast(linear(colours, pair[0]), linear(colours, pair[1])) for pair in pairs}
    assert {pair: ratio for pair, ratio in weak.items() if ratio < 4.5} == {}


@pytest.mark.parametrize("name", ["light", "dark"])
def test_lines_of_arms_stand_out(name: str) -> None:
    colours = theme(name)
    assert min(contrast(linear(colours, f"a{i}"), linear(colours, "bg")) for i in range(8)) > 3
