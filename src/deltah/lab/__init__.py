"""The embedded lab: a fictional world, an agent of about one million parameters, and the recipe that makes it.

`checkpoint_path()` is the shipped agent, an ordinary transformers checkpoint that no trainer can tell from a larger
one. `deltah.lab.world` and `deltah.lab.questions` write its tasks and corpora, `deltah.lab.teacher` is the scripted
agent that it imitates, `deltah.lab.coldstart` recreates it from a seed. Importing this package loads none of them.
"""

from __future__ import annotations

from pathlib import Path


def checkpoint_path() -> Path:
    """Directory of the shipped agent, for `AutoModelForCausalLM.from_pretrained` and `AutoTokenizer`."""
    return Path(__file__).parent / "checkpoint"
