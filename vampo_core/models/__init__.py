"""The video predictor and its parts."""

from vampo_core.models.codecs.codec import Codec, PatchCodec, VAECodec
from vampo_core.models.predictor import Condition, VideoPredictor
from vampo_core.models.settings import PredictorSettings
from vampo_core.models.text.text import ClipTextEncoder, InstructionEncoder

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
