"""Reads and writes the parts of a Wan folder, and says what is wrong with one.

Ours: ``transformer/ codec/ text_encoder/ scheduler/ vampo.json``. Wan's, as ``WanImageToVideoPipeline`` has it:
``transformer/ vae/ text_encoder/ tokenizer/ scheduler/ model_index.json``.
"""

import json
from pathlib import Path
from typing import Any

import diffusers
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler

from vampo_core.models.codecs.base import Codec
from vampo_core.models.codecs.wan_vae import WanVAECodec
from vampo_core.models.loading import empty_model, load_model, load_own_codec
from vampo_core.models.settings import PredictorSettings
from vampo_core.models.text.t5 import MAX_TOKENS, T5TextEncoder
from vampo_core.models.text.text import InstructionEncoder
from vampo_core.models.weight_files import copy_weights

PUBLISHED_SETTINGS = PredictorSettings(
    num_frames=21, num_inference_steps=50, guidance_scale=5.0, min_guidance_scale=5.0, solver="unipc"
)
"""What a published folder is sampled with: 81 frames, and the defaults of ``WanImageToVideoPipeline``."""
_PIPELINE: dict[str, Any] = {
    "_class_name": "WanImageToVideoPipeline",
    "_diffusers_version": diffusers.__version__,
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


def transformer_class(folder: Path) -> str | None:
    """Class of the folder's transformer, as its config names it; None where there is none."""
    config = folder / "transformer" / "config.json"
    return json.loads(config.read_text()).get("_class_name") if config.is_file() else None


def check_folder(folder: Path) -> None:
    """Raise a ValueError that says why ``folder`` holds no Wan model that this code runs."""
    config = json.loads((folder / "transformer" / "config.json").read_text())
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
    if not (folder / "vae").is_dir() and not (folder / "codec").is_dir():
        raise ValueError(f"{folder} has neither vae/ nor codec/, expected one of them")
    if not (folder / "text_encoder" / "config.json").is_file():
        raise ValueError(f"{folder} has no text_encoder/config.json, expected Wan's UMT5EncoderModel")
    scheduler = folder / "scheduler" / "scheduler_config.json"
    if not scheduler.is_file():
        raise ValueError(f"{folder} has no scheduler/scheduler_config.json, expected a UniPCMultistepScheduler's")
    if not {"flow_shift", "shift"} & json.loads(scheduler.read_text()).keys():
        raise ValueError(f"{scheduler} has neither flow_shift nor shift, expected the schedule of a flow")


def load_transformer(folder: Path, variant: str | None) -> WanTransformer3DModel:
    """The transformer in float32."""
    return load_model(WanTransformer3DModel, folder / "transformer", variant)


def load_codec(folder: Path, variant: str | None) -> Codec:
    """Our patch codec, the stand-in for a missing codec, or Wan's VAE."""
    if (folder / "codec").is_dir():
        return load_own_codec(folder / "codec")
    return WanVAECodec(load_model(AutoencoderKLWan, folder / "vae", variant))


def empty_transformer(folder: Path) -> WanTransformer3DModel:
    """The transformer without weights, on torch's meta device."""
    return empty_model(WanTransformer3DModel, folder / "transformer")


def empty_codec(folder: Path) -> Codec:
    """The codec without weights, or our small patch codec as it is."""
    if (folder / "codec").is_dir():
        return load_own_codec(folder / "codec")
    return WanVAECodec(empty_model(AutoencoderKLWan, folder / "vae"))


def stand_in_text(folder: Path) -> InstructionEncoder:
    """A small encoder that gives as many tokens of the same width."""
    text_dim = json.loads((folder / "transformer" / "config.json").read_text()).get("text_dim", 4096)
    is_own = (folder / "codec").is_dir()
    return InstructionEncoder(embedding_dim=text_dim, max_length=16 if is_own else MAX_TOKENS)


def load_scheduler(folder: Path) -> UniPCMultistepScheduler:
    """The scheduler, for the shift of its flow; one of ``FlowMatchEulerDiscreteScheduler`` is taken over."""
    config = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    return UniPCMultistepScheduler(
        num_train_timesteps=config.get("num_train_timesteps", 1000),
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        flow_shift=config.get("flow_shift", config.get("shift")),
    )


def load_text_encoder(folder: Path, other: str | Path | None, embedding_dim: int) -> InstructionEncoder | T5TextEncoder:
    """The instruction encoder of ``folder``, or UMT5's of either folder.

    Raises:
        ValueError: there is none, or its width is not the transformer's.
    """
    source = folder if other is None else Path(other)
    if not (source / "text_encoder" / "config.json").is_file():
        raise ValueError(
            f"{source} has no text_encoder/config.json, expected a folder with text_encoder/ and tokenizer/"
        )
    description = json.loads((source / "text_encoder" / "config.json").read_text())
    if description.get("_class_name") == "InstructionEncoder":
        return load_model(InstructionEncoder, source / "text_encoder")
    return T5TextEncoder(source / "text_encoder", source / "tokenizer", embedding_dim=embedding_dim)


def save_codec_and_text(codec: Any, text_encoder: Any, folder: Path) -> None:
    """Write codec and text encoder; UMT5's folder, which nothing changes, is copied."""
    if isinstance(text_encoder, InstructionEncoder):
        text_encoder.save_pretrained(folder / "text_encoder")
    elif text_encoder.folder.resolve() != (folder / "text_encoder").resolve():
        copy_weights(text_encoder.folder, folder / "text_encoder")
        copy_weights(text_encoder.tokenizer_folder, folder / "tokenizer")
    codec.save_pretrained(folder / ("vae" if isinstance(codec, WanVAECodec) else "codec"))


def read_model_index(folder: Path) -> dict[str, Any] | None:
    """``model_index.json`` of a pipeline's folder; None where there is none."""
    path = folder / "model_index.json"
    return json.loads(path.read_text()) if path.is_file() else None


def write_model_index(folder: Path, index: dict[str, Any] | None) -> None:
    """``model_index.json``, with which stock diffusers opens the folder: the original's, or that of Wan2.2-TI2V."""
    index = {**_PIPELINE, **(index or {}), "scheduler": _PIPELINE["scheduler"]}
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
