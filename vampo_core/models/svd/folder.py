"""Reads and writes the parts of a model folder, and says what is wrong with one.

Ours: ``unet/ codec/ text_encoder/ scheduler/ vampo.json``. SVD's: ``unet/ vae/ image_encoder/ feature_extractor/
scheduler/ model_index.json``. VPP's is SVD's and a CLIP text model, which we keep in ``text_encoder/ tokenizer/``.
"""

import json
from pathlib import Path
from typing import Any

import diffusers
from diffusers.models.autoencoders.autoencoder_kl_temporal_decoder import AutoencoderKLTemporalDecoder
from diffusers.models.unets.unet_spatio_temporal_condition import UNetSpatioTemporalConditionModel
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from torch import nn

from vampo_core.models.codecs.base import Codec
from vampo_core.models.codecs.vae import VAECodec
from vampo_core.models.loading import empty_model, load_model, load_own_codec
from vampo_core.models.settings import PredictorSettings
from vampo_core.models.text.clip import import_transformers
from vampo_core.models.text.text import ClipTextEncoder, InstructionEncoder
from vampo_core.models.weight_files import copy_weights

SVD_ONLY_PARTS = ("image_encoder", "feature_extractor")
_PIPELINE_PARTS = {
    "vae": ("diffusers", "AutoencoderKLTemporalDecoder"),
    "image_encoder": ("transformers", "CLIPVisionModelWithProjection"),
    "unet": ("diffusers", "UNetSpatioTemporalConditionModel"),
    "scheduler": ("diffusers", "EulerDiscreteScheduler"),
    "feature_extractor": ("transformers", "CLIPImageProcessor"),
}


def check_folder(folder: Path) -> None:
    """Raise a ValueError that says why ``folder`` holds no video predictor."""
    if not folder.is_dir():
        raise ValueError(f"checkpoint folder is {str(folder)!r}, expected an existing folder")
    if (folder / "adapter_config.json").is_file():
        raise ValueError(f"{folder} holds a LoRA adapter: load its base model, then load_adapter({str(folder)!r})")
    if (folder / "policy.json").is_file():
        raise ValueError(
            f"{folder} holds a policy, expected a predictor, such as the policy's own in {folder}/predictor"
        )
    if not (folder / "unet" / "config.json").is_file():
        raise ValueError(
            f"{folder} has no unet/config.json, expected a StableVideoDiffusionPipeline folder or one that "
            "VideoPredictor.save_pretrained wrote"
        )
    if not (folder / "vae").is_dir() and not (folder / "codec").is_dir():
        raise ValueError(f"{folder} has neither vae/ nor codec/, expected one of them")
    if not (folder / "scheduler" / "scheduler_config.json").is_file():
        raise ValueError(f"{folder} has no scheduler/scheduler_config.json, expected an EulerDiscreteScheduler's")


def load_unet(folder: Path, variant: str | None) -> UNetSpatioTemporalConditionModel:
    """The UNet in float32."""
    return load_model(UNetSpatioTemporalConditionModel, folder / "unet", variant)


def empty_unet(folder: Path) -> UNetSpatioTemporalConditionModel:
    """The UNet without weights, on torch's meta device."""
    return empty_model(UNetSpatioTemporalConditionModel, folder / "unet")


def empty_codec(folder: Path) -> Codec:
    """SVD's VAE without weights, or our small codec as it is."""
    if (folder / "codec").is_dir():
        return load_own_codec(folder / "codec")
    return VAECodec(empty_model(AutoencoderKLTemporalDecoder, folder / "vae"))


def load_codec(folder: Path, variant: str | None) -> Codec:
    """Our patch codec, the stand-in for a missing codec, or SVD's VAE."""
    if (folder / "codec").is_dir():
        return load_own_codec(folder / "codec")
    return VAECodec(load_model(AutoencoderKLTemporalDecoder, folder / "vae", variant))


def load_scheduler(folder: Path) -> EulerDiscreteScheduler:
    """The scheduler, for its noise range and prediction type."""
    return EulerDiscreteScheduler.from_pretrained(folder / "scheduler", local_files_only=True)


def load_text_encoder(
    folder: Path, clip_folder: Path | None, embedding_dim: int, settings: PredictorSettings
) -> InstructionEncoder | ClipTextEncoder | None:
    """The instruction encoder of ``folder``, or CLIP's text model of either folder; None where there is none."""
    arguments: dict[str, Any] = {
        "embedding_dim": embedding_dim,
        "max_length": settings.text_max_length,
        "position_code": settings.text_position_code,
    }
    if clip_folder is not None:
        if not clip_folder.is_dir():
            raise ValueError(f"text_encoder is {str(clip_folder)!r}, expected an existing folder")
        nested = (clip_folder / "text_encoder").is_dir()
        parts = (clip_folder / "text_encoder", clip_folder / "tokenizer") if nested else (clip_folder, clip_folder)
        return ClipTextEncoder.from_pretrained(*parts, **arguments)
    own = folder / "text_encoder"
    if not own.is_dir():
        return None
    if json.loads((own / "config.json").read_text()).get("_class_name") == "InstructionEncoder":
        return load_model(InstructionEncoder, own)
    return ClipTextEncoder.from_pretrained(own, folder / "tokenizer", **arguments)


def load_image_encoder(folder: Path, variant: str | None) -> nn.Module:
    """SVD's CLIP image encoder."""
    # imported here, because these modules are slow to import and warn about a missing torchvision
    transformers = import_transformers()

    from vampo_core.models.svd.image_encoder import ClipImageEncoder

    if not (folder / "feature_extractor" / "preprocessor_config.json").is_file():
        raise ValueError(f"{folder} has no feature_extractor/preprocessor_config.json, expected CLIP's image processor")
    extractor = transformers.CLIPImageProcessor.from_pretrained(folder / "feature_extractor", local_files_only=True)
    return ClipImageEncoder(
        extractor, load_model(transformers.CLIPVisionModelWithProjection, folder / "image_encoder", variant)
    )


def copy_parts(source: Path | None, folder: Path) -> None:
    """Copy the parts that a stock pipeline needs and we do not load, from the folder the predictor came from."""
    for name in SVD_ONLY_PARTS:
        part = None if source is None else source / name
        if part is None or not part.is_dir():
            raise ValueError(
                f"{name}/ of the checkpoint that this model was loaded from ({source}) is gone, "
                "expected it to be still there: a pipeline folder needs it"
            )
        if part.resolve() != (folder / name).resolve():
            copy_weights(part, folder / name)


def write_model_index(folder: Path) -> None:
    """``model_index.json``, with which stock diffusers opens the folder."""
    index: dict[str, object] = {
        "_class_name": "StableVideoDiffusionPipeline",
        "_diffusers_version": diffusers.__version__,
    }
    index |= {name: list(kind) for name, kind in _PIPELINE_PARTS.items()}
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


def published_settings(
    folder: Path, unet: UNetSpatioTemporalConditionModel, text_encoder: str | Path | None
) -> PredictorSettings:
    """What SVD (image condition, fps - 1) and VPP (text condition) were trained with."""
    num_frames = unet.config["num_frames"]
    if text_encoder is None and not (folder / "text_encoder").is_dir():
        return PredictorSettings(num_frames=num_frames, fps=6, num_inference_steps=25, guidance_scale=3.0)
    return PredictorSettings(num_frames=num_frames, num_inference_steps=30)
