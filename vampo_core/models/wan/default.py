"""A small transformer of Wan's class for models from scratch."""

from typing import Any

from diffusers.models.transformers.transformer_wan import WanTransformer3DModel

TEXT_DIM = 64
HEAD_DIM = 32


def default_transformer(latent_channels: int, **overrides: Any) -> WanTransformer3DModel:
    """A ``WanTransformer3DModel`` of 1.9 million weights.

    Args:
        latent_channels: number of the codec's channels (C).
        overrides: other arguments of ``WanTransformer3DModel``.
    """
    config: dict[str, Any] = {
        "in_channels": latent_channels,
        "out_channels": latent_channels,
        "patch_size": (1, 2, 2),
        "num_attention_heads": 4,
        "attention_head_dim": HEAD_DIM,
        "num_layers": 6,
        "ffn_dim": 512,
        "freq_dim": 128,
        "text_dim": TEXT_DIM,
        "rope_max_seq_len": 128,
    }
    return WanTransformer3DModel(**config | overrides)
