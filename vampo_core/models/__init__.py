"""The video predictor and its parts."""

from vampo_core.models.codec import Codec, PatchCodec, VAECodec
from vampo_core.models.condition import Condition
from vampo_core.models.settings import PredictorSettings
from vampo_core.models.text import ClipTextEncoder, InstructionEncoder
from vampo_core.models.video_predictor import VideoPredictor

__all__ = [
    "ClipTextEncoder",
    "Codec",
    "Condition",
    "InstructionEncoder",
    "PatchCodec",
    "PredictorSettings",
    "VAECodec",
    "VideoPredictor",
]
