"""The embedded default: a small UNet of SVD's class for patch-codec latents."""

from typing import Any

from diffusers.models.unets.unet_spatio_temporal_condition import UNetSpatioTemporalConditionModel
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler

TEXT_DIM = 64
SIGMA_MAX = 80.0
"""Largest noise level in training and sampling."""


def default_unet(latent_channels: int, num_frames: int, sample_size: int | None, **overrides: Any):
    """A small ``UNetSpatioTemporalConditionModel`` that attends to text, space and time only in its middle block.

    Of six arrangements of blocks and widths, each trained once for 150 s of CPU time on PushT, it predicted best:
    attention at full resolution costs more steps than it gains.

    Args:
        latent_channels: number of the codec's channels (C).
        num_frames: number of frames of a clip (F).
        sample_size: latents along each side; a note in the config, any multiple of 2 works.
        overrides: other arguments of ``UNetSpatioTemporalConditionModel``.
    """
    config: dict[str, Any] = {
        "sample_size": sample_size,
        "in_channels": 2 * latent_channels,
        "out_channels": latent_channels,
        "down_block_types": ("DownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        "up_block_types": ("UpBlockSpatioTemporal", "UpBlockSpatioTemporal"),
        "block_out_channels": (64, 64),
        "addition_time_embed_dim": 32,
        "projection_class_embeddings_input_dim": 96,
        "layers_per_block": 1,
        "cross_attention_dim": TEXT_DIM,
        "num_attention_heads": 4,
        "num_frames": num_frames,
    }
    return UNetSpatioTemporalConditionModel(**config | overrides)


def default_scheduler(sigma_min: float = 0.002, sigma_max: float = SIGMA_MAX, prediction_type: str = "v_prediction"):
    """SVD's scheduler with EDM's noise range."""
    return EulerDiscreteScheduler(
        prediction_type=prediction_type,
        timestep_type="continuous",
        timestep_spacing="leading",
        use_karras_sigmas=True,
        sigma_min=sigma_min,
        sigma_max=sigma_max,
    )
