"""Muon for many small matrices: momentum, then an update whose singular values are all near one.

    B <- beta B + (1 - beta) G        U = NewtonSchulz((1 - beta) G + beta B)        W <- W - lr sqrt(max(1, m / n)) U

as in torch.optim.Muon (K. Jordan, "Muon: an optimizer for hidden layers", 2024), with two differences that matter on a
CPU: matrices of one shape are orthogonalised in one batched product, and in float32, because bfloat16 may be emulated
there. For the lab's model that is about five times faster, and no result depends on how a processor rounds bfloat16.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any, Final

import torch

COEFFICIENTS: Final = (3.4445, -4.775, 2.0315)
"""Quintic whose iteration sends singular values in (0, 1] to about [0.7, 1.2]."""


def orthogonalize(matrices: torch.Tensor, *, iterations: int = 5) -> torch.Tensor:
    """Bring the singular values of (N, m, n) matrices near one by Newton-Schulz iterations."""
    a, b, c = COEFFICIENTS
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-7)
    for _ in range(iterations):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class BatchedMuon(torch.optim.Optimizer):
    """Muon over 2-D parameters, one batched orthogonalisation for each shape.

    Args:
        params: 2-D parameters.
        lr: Learning rate.
        momentum: beta of the formula above.
    """

    def __init__(self, params: Iterable[torch.nn.Parameter], *, lr: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """Update every parameter that has a gradient; a closure is not supported and is ignored."""
        for group in self.param_groups:
            by_shape = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape[tuple(parameter.shape)].append(parameter)
            for (rows, columns), parameters in by_shape.items():
                directions = torch.stack([self._direction(p, group["momentum"]) for p in parameters])
                scale = -group["lr"] * max(1.0, rows / columns) ** 0.5
                for parameter, update in zip(parameters, orthogonalize(directions), strict=True):
                    parameter.add_(update, alpha=scale)

    def _direction(self, parameter: torch.nn.Parameter, momentum: float) -> torch.Tensor:
        """Nesterov momentum of one parameter."""
        state, gradient = self.state[parameter], parameter.grad
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        state["momentum"].lerp_(gradient, 1.0 - momentum)
        return torch.lerp(gradient, state["momentum"], momentum)
