"""A small transformer of Cosmos-Predict2.5's class for models from scratch."""

from typing import Any

from diffusers.models.transformers.transformer_cosmos import CosmosTransformer3DModel

TEXT_DIM = 64
HEAD_DIM = 32


def default_transformer(latent_channels: int, **overrides: Any) -> CosmosTransformer3DModel:
    """A ``CosmosTransformer3DModel`` of 2 million weights.

    Args:
        latent_channels: number of the codec's channels (C).
        overrides: other arguments of ``CosmosTransformer3DModel``.
    """
    config: dict[str, Any] = {
        "in_channels": latent_channels + 1,  # the last one is the mask of given frames
        "out_channels": latent_channels,
        "num_attention_heads": 4,
        "attention_head_dim": HEAD_DIM,
        "num_layers": 6,
        "adaln_lora_dim": 64,
        "text_embed_dim": TEXT_DIM,
        "max_size": (128, 128, 128),
        "rope_scale": (1.0, 1.0, 1.0),
        "extra_pos_embed_type": None,
        "use_crossattn_projection": True,
        "crossattn_proj_in_channels": TEXT_DIM,
        "encoder_hidden_states_channels": TEXT_DIM,
    }
    return CosmosTransformer3DModel(**config | overrides)
