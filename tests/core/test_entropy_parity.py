"""Parity of the exact entropy with the hosts' formulas, where theirs are right, and the place where they are not."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from deltah import entropy_from_logits

torch = pytest.importorskip("torch")


def verl_formula(logits: torch.Tensor) -> torch.Tensor:
    """verl's `entropy_from_logits`: logsumexp(z) - sum(softmax(z) z)."""
    return torch.logsumexp(logits, dim=-1) - torch.sum(torch.softmax(logits, dim=-1) * logits, dim=-1)


@pytest.fixture(scope="module")
def logits() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(64, 3000)) * np.linspace(0.1, 12, 64)[:, None]


def test_scipy(logits: np.ndarray) -> None:
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    np.testing.assert_allclose(entropy_from_logits(logits), stats.entropy(p, axis=1), atol=1e-10)


def test_verl(logits: np.ndarray) -> None:
    np.testing.assert_allclose(entropy_from_logits(logits), verl_formula(torch.from_numpy(logits)), atol=1e-9)


def test_trl(logits: np.ndarray) -> None:
    utils = pytest.importorskip("trl.trainer.utils")
    if not hasattr(utils, "entropy_from_logits"):
        pytest.skip("this TRL computes entropies inside its fused head only, which the trainer's tests cover")
    theirs = utils.entropy_from_logits(torch.from_numpy(logits).float())
    np.testing.assert_allclose(entropy_from_logits(logits), theirs, atol=1e-4)


def test_impossible_tokens_are_where_the_formulas_part() -> None:
    masked = np.array([[0.0, 0.0, -np.inf]])
    assert torch.isnan(verl_formula(torch.from_numpy(masked))).all()
    assert entropy_from_logits(masked)[0] == pytest.approx(np.log(2))
