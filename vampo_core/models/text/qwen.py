"""Qwen2.5-VL text tokens as Cosmos-Predict2.5 takes them."""

from typing import Any

import torch
from torch import Tensor

from vampo_core.models.text.lazy import LazyTextEncoder

_SYSTEM = "You are a helpful assistant who will provide prompts to an image generator."
"""What the pipeline puts before every text."""
_EPSILON = 1e-8


class QwenTextEncoder(LazyTextEncoder):
    """Frozen tokens of all layers of Qwen2.5-VL side by side, in the model's dtype (``Cosmos2_5_PredictBasePipeline``).

    A text is the user's part of a conversation, padded by the tokenizer to ``max_length`` tokens. Padding is masked
    neither here nor in the denoiser. In bfloat16 a text takes 103 MB (512 x 100352).
    """

    model_class = "Qwen2_5_VLForConditionalGeneration"
    kind = "Qwen2.5-VL"
    width_setting = "crossattn_proj_in_channels"
    tokenizer_files = ("tokenizer.json", "vocab.json")

    @staticmethod
    def width(config: Any) -> int:
        """Width of the tokens (D): that of all layers together."""
        text = config.get_text_config()
        return text.num_hidden_layers * text.hidden_size

    def embed(self, tokenizer: Any, model: Any, text: str) -> Tensor:  # [L, D]
        """Tokens of each layer behind the embedding, normalized and side by side."""
        parts = {"system": _SYSTEM, "user": text}
        tokens = tokenizer.apply_chat_template(
            [{"role": role, "content": [{"type": "text", "text": content}]} for role, content in parts.items()],
            tokenize=True,
            return_dict=True,
            add_generation_prompt=False,
            add_vision_id=False,
            max_length=self.max_length,
            truncation=True,
            padding="max_length",
        )
        ids = torch.tensor([tokens["input_ids"]])
        layers = model(ids, output_hidden_states=True, logits_to_keep=1).hidden_states[1:]
        return torch.cat([_normalized(states[0]) for states in layers], dim=-1)


def _normalized(states: Tensor) -> Tensor:  # [L, d]
    """Tokens of mean 0 and standard deviation 1."""
    return (states - states.mean(-1, keepdim=True)) / (states.std(-1, keepdim=True) + _EPSILON)
