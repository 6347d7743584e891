"""What a folder of Wan's is, beside what all folders of flows share."""

from pathlib import Path
from typing import Any

from vampo_core.models.flow.folder import check_parts, transformer_config
from vampo_core.models.settings import PredictorSettings

PUBLISHED_SETTINGS = PredictorSettings(
    num_frames=21, num_inference_steps=50, guidance_scale=5.0, min_guidance_scale=5.0, solver="unipc"
)
"""What a published folder is sampled with: 81 frames, and the defaults of ``WanImageToVideoPipeline``."""
PIPELINE: dict[str, Any] = {
    "_class_name": "WanImageToVideoPipeline",
    "expand_timesteps": True,  # the first frame is given in its place
    "boundary_ratio": None,
    "image_encoder": [None, None],
    "image_processor": [None, None],
    "scheduler": ["diffusers", "UniPCMultistepScheduler"],
    "text_encoder": ["transformers", "UMT5EncoderModel"],
    "tokenizer": ["transformers", "T5TokenizerFast"],
    "transformer": ["diffusers", "WanTransformer3DModel"],
    "transformer_2": [None, None],
    "vae": ["diffusers", "AutoencoderKLWan"],
}
"""``model_index.json`` of Wan2.2-TI2V."""


def check_folder(folder: Path) -> None:
    """Raise a ValueError that says why ``folder`` holds no Wan model that this code runs."""
    config = transformer_config(folder)
    sizes = config.get("in_channels", 16), config.get("out_channels", 16)
    if (folder / "transformer_2").is_dir():
        raise ValueError(
            f"{folder} holds two transformers, transformer/ and transformer_2/, as Wan2.2-A14B does, expected one that "
            "takes the first frame in its place, as Wan2.2-TI2V-5B does"
        )
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"{folder}/transformer takes {sizes[0]} channels and returns {sizes[1]}: its first frame is given on "
            "channels, as in Wan2.1-I2V, expected one that takes it in its place, as Wan2.2-TI2V-5B does"
        )
    check_parts(folder, "Wan's UMT5EncoderModel")
