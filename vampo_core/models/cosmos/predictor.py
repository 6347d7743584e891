"""Cosmos-Predict2.5's backbone."""

from pathlib import Path
from typing import Any

from diffusers.models.transformers import transformer_cosmos
from diffusers.models.transformers.transformer_cosmos import CosmosTransformer3DModel
from torch import Tensor

from vampo_core.diffusion.process import Flow
from vampo_core.models.cosmos import folder as parts
from vampo_core.models.cosmos.default import default_transformer
from vampo_core.models.flow.predictor import FlowPredictor
from vampo_core.models.settings import PredictorSettings
from vampo_core.models.text.qwen import QwenTextEncoder

GIVEN_TIME = 1e-4
"""Time of the given frame: ``conditional_frame_timestep`` of ``Cosmos2_5_PredictBasePipeline``."""


class CosmosPredictor(FlowPredictor):
    """A predictor on the transformer of Cosmos-Predict2.5 (image to world, with one given latent frame).

    Times are noise levels, one for each frame. The pipeline runs the scheduler on the given frame too, with
    ``noise - x0`` in place of the transformer's velocity; here that frame is no part of what is sampled.

    Guidance is the library's, where 1 is none: ``guidance_scale`` is the pipeline's plus 1.

    The pipeline's safety checker is not run; the licence of NVIDIA's weights has conditions on that.

    Args:
        transformer: denoiser.
        codec: see :class:`FlowPredictor`, as for the other arguments.
        options: other arguments of :class:`FlowPredictor`.

    Raises:
        ImportError: torchvision is missing, which diffusers' transformer needs.
        ValueError: the parts do not fit each other.
    """

    transformer_class = CosmosTransformer3DModel
    blocks = "transformer_blocks"
    input_layer = "patch_embed.proj"
    published_text_encoder = QwenTextEncoder
    pipeline = parts.PIPELINE
    fixed_parts = ("safety_checker",)
    num_mask_channels = 1

    def __init__(self, transformer: CosmosTransformer3DModel, codec: Any, **options: Any) -> None:
        if not hasattr(transformer_cosmos, "transforms"):
            raise ImportError(
                "diffusers' CosmosTransformer3DModel needs torchvision, expected the version that belongs to this torch"
            )
        super().__init__(transformer, codec, **options)
        self.process = Flow(num_train_timesteps=1)

    @staticmethod
    def check_folder(folder: Path) -> None:
        """Raise a ValueError that says why a folder holds no Cosmos model that this code runs."""
        parts.check_folder(folder)

    @staticmethod
    def new_transformer(latent_channels: int, **overrides: Any) -> CosmosTransformer3DModel:
        """An untrained small transformer."""
        return default_transformer(latent_channels, **overrides)

    @staticmethod
    def text_width(transformer: CosmosTransformer3DModel) -> int:
        """Width of the text tokens that the transformer takes (D)."""
        return transformer.config["crossattn_proj_in_channels"]

    @staticmethod
    def published_settings() -> PredictorSettings:
        """What a published folder is sampled with."""
        return parts.published_settings()

    def network_inputs(
        self,
        video: Tensor,  # [N, C, F, h, w]
        time: Tensor,  # [N]
        tokens: Tensor,  # [N, L, D]
    ) -> dict[str, Tensor]:
        """Arguments of the transformer; times are those of frames, ``[N, 1, F, 1, 1]``.

        The mask says which frame is given. No place is padding. Frames per second are left out, as in the pipeline.
        """
        rows, _, frames, height, width = video.shape
        times = time.view(-1, 1).repeat(1, frames)
        times[:, 0] = GIVEN_TIME
        mask = video.new_zeros(rows, 1, frames, height, width)
        mask[:, :, 0] = 1
        return {
            "hidden_states": video,
            "condition_mask": mask,
            "timestep": times.view(rows, 1, frames, 1, 1),
            "encoder_hidden_states": tokens,
            "padding_mask": video.new_zeros(1, 1, height, width),
        }
