"""The batched Muon takes the steps of torch's own, up to the rounding of bfloat16, which torch's uses."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from coldstart.muon import BatchedMuon, orthogonalize  # noqa: E402


@pytest.mark.parametrize("shape", [(16, 16), (24, 8), (8, 24)])
def test_singular_values_come_near_one(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalize(torch.randn(3, *shape)))
    assert values.min() > 0.3
    assert values.max() < 1.3


def test_it_walks_as_torch_does() -> None:
    torch.manual_seed(0)
    start = [torch.randn(16, 16), torch.randn(16, 16), torch.randn(24, 8)]
    ours, theirs = ([torch.nn.Parameter(w.clone()) for w in start] for _ in range(2))
    optimizers = BatchedMuon(ours, lr=0.02), torch.optim.Muon(theirs, lr=0.02, weight_decay=0.0)
    for _ in range(5):
        gradients = [torch.randn_like(w) for w in start]
        for parameters, optimizer in zip((ours, theirs), optimizers, strict=True):
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient.clone()
            optimizer.step()
    for a, b, w in zip(ours, theirs, start, strict=True):
        moved, other = (a - w).flatten().detach(), (b - w).flatten().detach()
        assert torch.nn.functional.cosine_similarity(moved, other, dim=0) > 0.98
        assert float(moved.norm() / other.norm()) == pytest.approx(1.0, abs=0.05)
