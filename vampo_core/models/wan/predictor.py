"""Wan's backbone."""

from pathlib import Path
from typing import Any

import torch
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from torch import Tensor

from vampo_core.models.flow.predictor import FlowPredictor
from vampo_core.models.settings import PredictorSettings
from vampo_core.models.text.t5 import T5TextEncoder
from vampo_core.models.wan import folder as parts
from vampo_core.models.wan.default import default_transformer


class WanPredictor(FlowPredictor):
    """A predictor on Wan's transformer (Wan2.2-TI2V): every token has a time, which is 0 for the given frame's."""

    transformer_class = WanTransformer3DModel
    blocks = "blocks"
    input_layer = "patch_embedding"
    published_text_encoder = T5TextEncoder
    pipeline = parts.PIPELINE

    @staticmethod
    def check_folder(folder: Path) -> None:
        """Raise a ValueError that says why a folder holds no Wan model that this code runs."""
        parts.check_folder(folder)

    @staticmethod
    def new_transformer(latent_channels: int, **overrides: Any) -> WanTransformer3DModel:
        """An untrained small transformer."""
        return default_transformer(latent_channels, **overrides)

    @staticmethod
    def text_width(transformer: WanTransformer3DModel) -> int:
        """Width of the text tokens that the transformer takes (D)."""
        return transformer.config["text_dim"]

    @staticmethod
    def published_settings() -> PredictorSettings:
        """What a published folder is sampled with."""
        return parts.PUBLISHED_SETTINGS

    def network_inputs(
        self,
        video: Tensor,  # [N, C, F, h, w]
        time: Tensor,  # [N]
        tokens: Tensor,  # [N, L, D]
    ) -> dict[str, Tensor]:
        """Arguments of the transformer; times are those of tokens, ``[N, F h w / patch size]``."""
        _, height, width = self.transformer.config["patch_size"]
        rows, _, frames = video.shape[:3]
        per_frame = video.shape[3] // height * (video.shape[4] // width)
        noisy = time.view(-1, 1).expand(rows, (frames - 1) * per_frame)
        times = torch.cat([time.new_zeros(rows, per_frame), noisy], dim=1)
        return {"hidden_states": video, "timestep": times, "encoder_hidden_states": tokens}
