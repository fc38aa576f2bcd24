"""The embedded lab: a fictional world, a shipped agent of about one million parameters, and the demo.

`checkpoint_path()` is the agent, an ordinary transformers checkpoint that no trainer can tell from a larger one.
`deltah.lab.world` and `deltah.lab.questions` write its tasks and corpora; `deltah.lab.demo` trains and compares it.
The training that made it is not part of the package: see experiments/coldstart in the repository.
"""

from __future__ import annotations

from pathlib import Path


def checkpoint_path() -> Path:
    """Directory of the shipped agent, for `AutoModelForCausalLM.from_pretrained` and `AutoTokenizer`."""
    return Path(__file__).parent / "checkpoint"
