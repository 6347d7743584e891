"""What a policy sees of a video predictor: predictive features, or in the control only the current frame."""

from collections.abc import Sequence

from torch import Tensor

from vampo_core.models.predictor import Condition, FeatureExtractor, VideoPredictor
from vampo_core.policy.observed import current_latents


def feature_extractor(
    predictor: VideoPredictor, features: str, layers: Sequence[int], *, compiled: bool = False
) -> FeatureExtractor | None:
    """The extractor of a policy's features; None for the control on latents."""
    return None if features == "latents" else predictor.feature_extractor(layers, compiled=compiled)


def observed_features(
    predictor: VideoPredictor, extractor: FeatureExtractor | None, condition: Condition
) -> Tensor:  # [B, F, D, h, w] float32
    """Predictive features, or without an extractor the current frame's latents as features of one frame."""
    return current_latents(predictor, condition).unsqueeze(1) if extractor is None else extractor(condition).float()
