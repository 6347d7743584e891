"""The video predictor and its parts."""

from vampo_core.models.codecs.base import Codec
from vampo_core.models.codecs.patch import PatchCodec
from vampo_core.models.codecs.vae import VAECodec
from vampo_core.models.condition import Condition
from vampo_core.models.predictor import VideoPredictor
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
