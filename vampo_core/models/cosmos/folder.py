"""What a folder of Cosmos-Predict2.5 is, beside what all folders of flows share."""

from pathlib import Path
from typing import Any

from vampo_core.models.flow.folder import check_parts, transformer_config
from vampo_core.models.settings import PredictorSettings

PIPELINE: dict[str, Any] = {
    "_class_name": "Cosmos2_5_PredictBasePipeline",
    "safety_checker": [None, None],  # no part of the folder: the pipeline makes its own, or is given one
    "scheduler": ["diffusers", "UniPCMultistepScheduler"],
    "text_encoder": ["transformers", "Qwen2_5_VLForConditionalGeneration"],
    "tokenizer": ["transformers", "Qwen2TokenizerFast"],
    "transformer": ["diffusers", "CosmosTransformer3DModel"],
    "vae": ["diffusers", "AutoencoderKLWan"],
}
"""``model_index.json`` of Cosmos-Predict2.5."""


def published_settings() -> PredictorSettings:
    """What a published folder is sampled with: 93 frames, and the defaults of ``Cosmos2_5_PredictBasePipeline``.

    That pipeline's ``guidance_scale`` 7 is 8 here: it adds ``scale * (cond - uncond)`` to the conditional output.
    """
    from diffusers.pipelines.cosmos.pipeline_cosmos2_5_predict import DEFAULT_NEGATIVE_PROMPT  # needs transformers

    return PredictorSettings(
        num_frames=24,
        num_inference_steps=36,
        guidance_scale=8.0,
        min_guidance_scale=8.0,
        solver="unipc",
        negative_prompt=DEFAULT_NEGATIVE_PROMPT,
    )


def check_folder(folder: Path) -> None:
    """Raise a ValueError that says why ``folder`` holds no Cosmos model that this code runs."""
    config = transformer_config(folder)
    if config.get("controlnet_block_every_n") or config.get("img_context_dim_in"):
        kind = "of Cosmos-Transfer2.5: it takes control signals or image tokens"
    elif config.get("extra_pos_embed_type", "learnable") is not None:
        kind = "of Cosmos 1.0: it has learned positions (extra_pos_embed_type)"
    elif not config.get("use_crossattn_projection"):
        kind = "of Cosmos-Predict2: it has no projection of text tokens (use_crossattn_projection)"
    elif config.get("in_channels", 16) != config.get("out_channels", 16) + 1:
        kind = "without a channel for the mask of given frames"
    else:
        check_parts(folder, "a Qwen2_5_VLForConditionalGeneration")
        return
    raise ValueError(f"{folder}/transformer is one {kind}, expected Cosmos-Predict2.5's")
