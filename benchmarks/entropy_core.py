"""The entropy core: tokens a second of exact entropies and of certified bounds, against scipy and torch.

    python benchmarks/entropy_core.py --repetitions 7

* exact: `entropy_from_logits` on (T, V) float32 logits, against the entropy of a torch softmax and
  `scipy.stats.entropy` of the same distribution; all three on one thread.
* bounds: `entropy_bounds` on (T, 20) log-probabilities, against `scipy.stats.entropy` over the same 20 columns, which
  is no entropy of the distribution but the least that any reader of such a log must compute.
"""

from __future__ import annotations

import harness
import numpy as np
import synthetic

T_EXACT, V, T_TOP = 512, 32_000, 100_000
EXACT = ("deltah, exact", "torch, exact", "scipy, exact")
BOUNDS = ("deltah, bounds of top 20", "scipy, top 20 alone")


def logits() -> np.ndarray:
    """(T, V) float32."""
    return np.random.default_rng(0).normal(0.0, 3.0, (T_EXACT, V)).astype(np.float32)


def top_logprobs() -> np.ndarray:
    """(T, 20)."""
    return synthetic.Generator(0).logprobs(T_TOP).astype(np.float64)


def exact_deltah(_: str) -> harness.Work:
    from deltah.core.entropy import entropy_from_logits

    values = logits()
    return lambda: len(entropy_from_logits(values))


def exact_scipy(_: str) -> harness.Work:
    from scipy.special import softmax
    from scipy.stats import entropy

    values = logits()
    return lambda: len(entropy(softmax(values, axis=1), axis=1))


def exact_torch(_: str) -> harness.Work:
    import torch

    torch.set_num_threads(1)
    values = torch.from_numpy(logits())

    def work() -> int:
        logp = torch.log_softmax(values, dim=-1)
        return len(-(logp.exp() * logp).sum(-1))

    return work


def bounds_deltah(_: str) -> harness.Work:
    from deltah.core.entropy import entropy_bounds

    values = top_logprobs()
    return lambda: len(entropy_bounds(values, synthetic.VOCAB_SIZE).point)


def bounds_scipy(_: str) -> harness.Work:
    from scipy.stats import entropy

    values = top_logprobs()
    return lambda: len(entropy(np.exp(values), axis=1))


CASES: dict[str, harness.Case] = dict(
    zip((*EXACT, *BOUNDS), (exact_deltah, exact_torch, exact_scipy, bounds_deltah, bounds_scipy), strict=True)
)


def check() -> None:
    """The three exact entropies agree."""
    from scipy.special import softmax
    from scipy.stats import entropy

    from deltah.core.entropy import entropy_from_logits

    values = logits()[:8]
    np.testing.assert_allclose(entropy_from_logits(values), entropy(softmax(values.astype(float), axis=1), axis=1))


def main() -> None:
    arguments = harness.parser(__doc__).parse_args()
    check()
    harness.print_machine(["deltah", "numpy", "scipy", "torch"])
    print(f"\n== exact: (T, V) = ({T_EXACT}, {V}) float32 logits")
    harness.report(harness.measure(EXACT, "", arguments.repetitions), 1e3, "k tokens/s", EXACT[:1])
    print(f"\n== bounds: (T, K) = ({T_TOP}, {synthetic.K})")
    harness.report(harness.measure(BOUNDS, "", arguments.repetitions), 1e3, "k tokens/s", BOUNDS[:1])


if __name__ == "__main__":
    harness.main(CASES, main)
