"""The lab's model: a Llama of about one million parameters, in the stock transformers class.

Nothing in it is special, so nothing in a trainer has to know it. End of turn ends generation; sampling settings are
left unset, so that the caller's temperature is the only one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from deltah.errors import missing_dependency

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Shape of the network."""

    hidden_size: int = 128
    intermediate_size: int = 344
    n_layers: int = 4
    n_heads: int = 4
    max_positions: int = 1024
    embedding_std: float = 0.08
    """Wide enough that the tokens stay nearly orthogonal while they learn, which copying of rare numbers lives on."""


def build_model(tokenizer: PreTrainedTokenizerFast, config: ModelConfig, *, seed: int) -> LlamaForCausalLM:
    """Build the network with random weights.

    Args:
        tokenizer: Fixes the vocabulary and the ids of padding and end of turn.
        config: Shape.
        seed: Seed of the weights; sets torch's global generator.

    Raises:
        MissingDependencyError: if torch or transformers is not installed.
    """
    try:
        import torch
        from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM
    except ImportError as error:
        raise missing_dependency("transformers", extra="train", purpose="The lab's model") from error

    torch.manual_seed(seed)
    llama = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.n_layers,
        num_attention_heads=config.n_heads,
        num_key_value_heads=config.n_heads,
        max_position_embeddings=config.max_positions,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    model = LlamaForCausalLM(llama)
    torch.nn.init.normal_(model.model.embed_tokens.weight, std=config.embedding_std)
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    return model
