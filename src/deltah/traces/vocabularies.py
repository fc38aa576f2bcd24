"""Vocabulary sizes of model families, for logs that name a model and not its V.

Only the upper bound of an entropy uses V, and it grows with log V, so a size that is too great widens the interval and
never breaks it. Of a family with several sizes the greatest stands here; rows of the output layer count, padding
included, as servers take the softmax over all of them. Sources: `vocab_size` in the models' published `config.json`.
"""

from __future__ import annotations

import re
from typing import Final

from deltah.core.entropy import DEFAULT_VOCAB_SIZE

FROM_MODEL_NAME: Final = "model name"
FROM_DEFAULT: Final = "default"
"""Values of the metadata key `vocab_size_from`: where a size comes from that neither the log nor the caller states."""

_FAMILIES: Final = (
    (r"qwen-?3\.5|qwen-?3\.6", 248_320),
    (r"qwen|qwq", 152_064),
    (r"llama-?4", 202_048),
    (r"llama-?3|hermes-3|nemotron", 128_256),
    (r"llama-?2|vicuna|tinyllama", 32_000),
    (r"gpt-oss", 201_088),
    (r"gpt-4o|gpt-4\.1|gpt-5|\bo[134]\b", 200_064),
    (r"gpt-4|gpt-3\.5", 100_352),
    (r"deepseek-r1-distill-llama", 128_256),
    (r"deepseek", 129_280),
    (r"kimi|moonlight", 163_840),
    (r"glm-?4|glm-?5", 151_552),
    (r"gemma-?3|gemma-?4", 262_208),
    (r"gemma", 256_000),
    (r"mistral-nemo|ministral|mistral-small|magistral|devstral|pixtral", 131_072),
    (r"mistral|mixtral", 32_768),
    (r"phi-?4-mini", 200_064),
    (r"phi-?4", 100_352),
    (r"smollm3", 128_256),
    (r"smollm", 49_152),
    (r"olmo-?[23]", 100_352),
    (r"granite-?3", 49_155),
)
"""Pattern of a model's name and V; the first that matches counts."""


def vocab_size_of(model: str | None) -> tuple[int, str]:
    """V of the family that a model's name belongs to, else the default; and which of the two it is."""
    name = (model or "").lower().replace("_", "-").replace(" ", "-")
    known = next((size for pattern, size in _FAMILIES if re.search(pattern, name)), None)
    return (DEFAULT_VOCAB_SIZE, FROM_DEFAULT) if known is None else (known, FROM_MODEL_NAME)
