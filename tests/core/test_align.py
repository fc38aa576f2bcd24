"""Alignment: the shift, scattering and padding, on numbers computed by hand."""

from __future__ import annotations

import numpy as np
import pytest

from deltah.core.align import pad, rows_that_predict, runs, scatter


def test_token_t_is_drawn_from_row_t_minus_1() -> None:
    """Row t of a toy model that always gives token ids[t] + 1 all mass predicts token t + 1."""
    ids = np.array([4, 5, 6, 7, 8])
    predicted = ids + 1
    rows = rows_that_predict(2, 5)
    assert list(rows) == [1, 2, 3]
    np.testing.assert_array_equal(predicted[rows.start : rows.stop], ids[2:5])
    with pytest.raises(ValueError, match="no row predicts token 0"):
        rows_that_predict(0, 2)


def test_runs() -> None:
    assert runs(np.array([True, True, False, True, False, False, True])) == [(0, 2), (3, 4), (6, 7)]
    assert runs(np.zeros(3, dtype=bool)) == runs(np.zeros(0, dtype=bool)) == []


def test_scatter_puts_nothing_outside_the_mask() -> None:
    out = scatter([0.5, -2.0], np.array([0, 0, 1, 1, 9]), np.array([True, False, True, True, False]))
    assert out.tolist() == [0.5, 0.0, -2.0, -2.0, 0.0]


def test_pad() -> None:
    assert pad([[1.0], [2.0, 3.0]], 3, fill=-1.0).tolist() == [[1.0, -1.0, -1.0], [2.0, 3.0, -1.0]]
    with pytest.raises(ValueError, match="could not broadcast"):
        pad([[1.0, 2.0]], 1)
