r"""What the partial statistics hold fixed: call index, segment length and tool.

For correlations, a design matrix Z: an intercept, one column for each call index but the first (indices from the first
one with fewer than 20 calls on share a column), one for each tool but the most called (tools with fewer than 20 calls
share one), and $\log(1 + |r_{k-1}|)$ and $\log(1 + |r_k|)$. For the AUC, strata: pairs are compared only if they agree
in call index, tool and tertile of $|r_{k-1}| + |r_k|$.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from deltah.core.types import FloatArray, IntArray
from deltah.stats.table import StudyTable

MIN_LEVEL_CALLS = 20
"""A level with fewer calls shares a column with others."""
MAX_TOOLS = 12
"""Tools with a column of their own."""


class Controls(NamedTuple):
    """Controls of N calls."""

    design: FloatArray
    """(N, p) with an intercept first."""
    columns: tuple[str, ...]
    """(p,) names."""
    by_index: IntArray
    """(N,) stratum of each call: its index."""
    by_all: IntArray
    """(N,) stratum of each call: index, tool and length tertile."""


def controls_of(table: StudyTable) -> Controls:
    """Controls of a table's calls."""
    index, index_names = _index_levels(table.index)
    tool, tool_names = _tool_levels(table.tool, table.tools)
    lengths = np.log1p(table.tokens.astype(np.float64))
    total = table.tokens.sum(axis=1)
    tertile = np.searchsorted(np.quantile(total, (1 / 3, 2 / 3)), total, side="left") if len(total) else total
    design = [
        np.ones((len(table), 1)),
        _dummies(index, len(index_names)),
        _dummies(tool, len(tool_names)),
        lengths - lengths.mean(axis=0, keepdims=True) if len(table) else lengths,
    ]
    joint = np.stack([table.index, table.tool, tertile], axis=1)
    return Controls(
        design=np.concatenate(design, axis=1),
        columns=("1", *index_names[1:], *tool_names[1:], "log tokens before", "log tokens after"),
        by_index=np.unique(table.index, return_inverse=True)[1].reshape(-1),
        by_all=np.unique(joint, axis=0, return_inverse=True)[1].reshape(-1),
    )


def _index_levels(index: IntArray) -> tuple[IntArray, tuple[str, ...]]:
    """(N,) level from 0, and the levels' names; late, rare indices share the last level."""
    counts = np.bincount(index - 1)
    enough = max(1, int(np.cumprod(counts >= MIN_LEVEL_CALLS).sum()))
    later = len(counts) > enough
    names = [f"index {k}" for k in range(1, enough + 1)] + ["later index"] * later
    return np.minimum(index - 1, len(names) - 1), tuple(names)


def _tool_levels(tool: IntArray, tools: tuple[str, ...]) -> tuple[IntArray, tuple[str, ...]]:
    """(N,) level from 0, the most called tool first, and names; rare tools share the last level."""
    counts = np.bincount(tool, minlength=len(tools))
    order = np.argsort(-counts, kind="stable")
    own = [t for t in order[:MAX_TOOLS] if counts[t] >= MIN_LEVEL_CALLS] or order[:1].tolist()
    level = np.full(len(tools), len(own), dtype=np.int64)
    level[own] = np.arange(len(own))
    rest = len(own) < len(tools)
    return level[tool], tuple([f"tool {tools[t]}" for t in own] + ["other tools"] * rest)


def _dummies(levels: IntArray, n: int) -> FloatArray:
    """(N, n - 1) one column for each level but the first."""
    return np.asarray(levels[:, None] == np.arange(1, n), dtype=np.float64)
