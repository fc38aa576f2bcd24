"""Write the embedded agent as a GGUF file, so that llama.cpp can serve it.

    python examples/lab_to_gguf.py lab.gguf

Needs the packages `gguf` and `safetensors`. The weights stay float32. The tokenizer becomes llama.cpp's unigram one:
the same vocabulary and scores, spaces written as U+2581 in ordinary pieces. The chat template loses transformers'
`generation` tag, which other template engines do not know; it renders the same text.
"""

from __future__ import annotations

import json
import sys
from importlib import resources
from pathlib import Path

import numpy as np
from gguf import GGUFWriter, TokenType
from safetensors.numpy import load_file

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def main(out: str) -> None:
    """Convert the shipped checkpoint."""
    checkpoint = Path(str(resources.files("deltah.lab") / "checkpoint"))
    config = json.loads((checkpoint / "config.json").read_text())
    writer = GGUFWriter(out, "llama")
    write_config(writer, config)
    write_tokenizer(writer, checkpoint)
    for name, weight in load_file(checkpoint / "model.safetensors").items():
        heads = config["num_attention_heads"] if name.endswith(("q_proj.weight", "k_proj.weight")) else 0
        writer.add_tensor(renamed(name), interleaved(weight, heads) if heads else weight.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_config(writer: GGUFWriter, config: dict[str, int]) -> None:
    """Shape of the model."""
    writer.add_name("lab")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])


def write_tokenizer(writer: GGUFWriter, checkpoint: Path) -> None:
    """Vocabulary, special tokens and chat template."""
    content = json.loads((checkpoint / "tokenizer.json").read_text())
    pieces = [(text.replace(" ", "\u2581"), score, TokenType.NORMAL) for text, score in content["model"]["vocab"]]
    for added in content["added_tokens"]:
        kind = TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
        pieces[added["id"] : added["id"] + 1] = [(added["content"], 0.0, kind)]
    ids = {text: i for i, (text, _, _) in enumerate(pieces)}
    writer.add_tokenizer_model("t5")
    writer.add_token_list([text for text, _, _ in pieces])
    writer.add_token_scores([score for _, score, _ in pieces])
    writer.add_token_types([kind for _, _, kind in pieces])
    writer.add_eos_token_id(ids["<|end|>"])
    writer.add_pad_token_id(ids["<pad>"])
    writer.add_unk_token_id(ids["<unk>"])
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(False)
    writer.add_remove_extra_whitespaces(False)
    template = (checkpoint / "chat_template.jinja").read_text()
    for tag in ("{%- generation %}\n", "{%- endgeneration %}\n"):
        template = template.replace(tag, "")
    writer.add_chat_template(template)


def renamed(name: str) -> str:
    """GGUF's name of a weight."""
    stem = name.removesuffix(".weight")
    if stem.startswith("model.layers."):
        _, _, layer, rest = stem.split(".", 3)
        return f"blk.{layer}.{NAMES[rest]}.weight"
    return f"{NAMES[stem]}.weight"


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a projection in the order of llama.cpp's rotary embedding, which turns neighbouring pairs."""
    halves = weight.astype(np.float32).reshape(heads, 2, -1, weight.shape[1])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(weight.shape))


if __name__ == "__main__":
    main(sys.argv[1])
