"""Tiny random models in the layouts of Stable Video Diffusion and of VPP, for tests."""

import json
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKLTemporalDecoder,
    EulerDiscreteScheduler,
    StableVideoDiffusionPipeline,
    UNetSpatioTemporalConditionModel,
)
from transformers import (
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

CROSS_ATTENTION_DIM = 32


def make_svd_pipeline() -> StableVideoDiffusionPipeline:
    torch.manual_seed(0)
    unet = UNetSpatioTemporalConditionModel(
        sample_size=16,
        in_channels=8,
        out_channels=4,
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        block_out_channels=(32, 64),
        addition_time_embed_dim=32,
        projection_class_embeddings_input_dim=96,
        layers_per_block=1,
        cross_attention_dim=CROSS_ATTENTION_DIM,
        num_attention_heads=(2, 4),
        num_frames=3,
    )
    vae = AutoencoderKLTemporalDecoder(
        block_out_channels=(32, 64),
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
        latent_channels=4,
        layers_per_block=1,
        scaling_factor=0.18215,
    )
    image_encoder = CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=16,
            projection_dim=CROSS_ATTENTION_DIM,
            num_hidden_layers=1,
            num_attention_heads=2,
            image_size=224,
            patch_size=56,
            intermediate_size=16,
        )
    )
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        timestep_type="continuous",
        timestep_spacing="leading",
        use_karras_sigmas=True,
        sigma_min=0.002,
        sigma_max=700.0,
        steps_offset=1,
    )
    pipe = StableVideoDiffusionPipeline(
        unet=unet.eval(),
        vae=vae.eval(),
        image_encoder=image_encoder.eval(),
        scheduler=scheduler,
        feature_extractor=CLIPImageProcessor(crop_size=224, size=224),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def make_clip_text_folder(folder: Path) -> Path:
    """A CLIP folder as published: tokenizer and text model side by side."""
    folder.mkdir(parents=True)
    characters = [chr(c) for c in range(ord("a"), ord("z") + 1)] + ["-"]
    tokens = [*characters, *(c + "</w>" for c in characters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\nt h\n")
    vocabulary["th"] = len(vocabulary)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    CLIPTokenizer.from_pretrained(folder).save_pretrained(folder)
    torch.manual_seed(1)
    config = CLIPTextConfig(
        vocab_size=len(vocabulary),
        hidden_size=CROSS_ATTENTION_DIM // 2,
        projection_dim=CROSS_ATTENTION_DIM // 2,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        bos_token_id=vocabulary["<|startoftext|>"],
        eos_token_id=vocabulary["<|endoftext|>"],
    )
    CLIPTextModelWithProjection(config).eval().save_pretrained(folder)
    return folder
