"""UMT5 text tokens as Wan takes them."""

import html
import re
from typing import Any

from torch import Tensor

from vampo_core.models.text.lazy import LazyTextEncoder


class T5TextEncoder(LazyTextEncoder):
    """Frozen UMT5 tokens in float32, padded with zeros to ``max_length`` (``WanImageToVideoPipeline``)."""

    model_class = "UMT5EncoderModel"
    kind = "UMT5"
    width_setting = "text_dim"
    tokenizer_files = ("tokenizer.json", "spiece.model")

    @staticmethod
    def width(config: Any) -> int:
        """Width of the tokens (D)."""
        return config.d_model

    def cleaned(self, text: str) -> str:
        """A text without HTML entities and repeated spaces, as Wan's pipelines clean prompts."""
        return re.sub(r"\s+", " ", html.unescape(html.unescape(text))).strip()

    def embed(self, tokenizer: Any, model: Any, text: str) -> Tensor:  # [number of tokens, D]
        """The last layer's tokens."""
        inputs = tokenizer(text, truncation=True, max_length=self.max_length, return_tensors="pt")
        return model(inputs.input_ids, inputs.attention_mask).last_hidden_state[0].float()
