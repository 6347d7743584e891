"""What a backbone is to the rest of the library."""

from vampo_core.models.svd.condition import Condition
from vampo_core.models.svd.predictor import VideoPredictor

__all__ = ["Condition", "VideoPredictor"]
