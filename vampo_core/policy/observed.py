"""What a policy observes, in the terms of its predictor."""

from torch import Tensor

from vampo_core.models.predictor import Condition, VideoPredictor


def current_latents(predictor: VideoPredictor, condition: Condition) -> Tensor:  # [B, C, h, w] float32
    """Latents of the observed frame, as the codec gives them."""
    return (condition.image_latents * predictor.codec.scaling_factor).float()
