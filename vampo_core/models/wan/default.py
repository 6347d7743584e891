"""A small transformer of Wan's class for models from scratch, and the schedule of its flow."""

from typing import Any

from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler

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


def default_scheduler(flow_shift: float = 1.0) -> UniPCMultistepScheduler:
    """The scheduler of Wan's folders; only its flow's settings count here."""
    return UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=flow_shift)
