"""Reads and writes the parts that folders of flows share, and says what is wrong with one.

Ours: ``transformer/ codec/ text_encoder/ scheduler/ vampo.json``. Those of diffusers' pipelines:
``transformer/ vae/ text_encoder/ tokenizer/ scheduler/ model_index.json``.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler

from vampo_core.diffusion.sigmas import level_of_flow, shifted
from vampo_core.models.codecs.base import Codec
from vampo_core.models.codecs.wan_vae import WanVAECodec
from vampo_core.models.loading import empty_model, load_model, load_own_codec
from vampo_core.models.text.lazy import LazyTextEncoder
from vampo_core.models.text.text import InstructionEncoder
from vampo_core.models.weight_files import copy_weights

_OTHER_SCHEDULES = ("use_exponential_sigmas", "use_beta_sigmas", "use_dynamic_shifting", "shift_terminal")
"""Settings of schedulers that this code does not know."""


def transformer_config(folder: Path) -> dict[str, Any]:
    """Config of the folder's transformer; empty where there is none."""
    config = folder / "transformer" / "config.json"
    return json.loads(config.read_text()) if config.is_file() else {}


def check_parts(folder: Path, text_encoder: str) -> None:
    """Raise a ValueError that says what is missing beside the transformer.

    Args:
        folder: folder of the model.
        text_encoder: name of the text encoder that is expected.
    """
    if not (folder / "vae").is_dir() and not (folder / "codec").is_dir():
        raise ValueError(f"{folder} has neither vae/ nor codec/, expected one of them")
    if not (folder / "text_encoder" / "config.json").is_file():
        raise ValueError(f"{folder} has no text_encoder/config.json, expected {text_encoder}")
    scheduler = folder / "scheduler" / "scheduler_config.json"
    if not scheduler.is_file():
        raise ValueError(f"{folder} has no scheduler/scheduler_config.json, expected a UniPCMultistepScheduler's")
    config = json.loads(scheduler.read_text())
    other = next((name for name in _OTHER_SCHEDULES if config.get(name)), None)
    if other is not None:
        raise ValueError(f"{scheduler} has {other}, expected a schedule with a constant shift or use_karras_sigmas")
    if not config.get("use_karras_sigmas"):
        if not {"flow_shift", "shift"} & config.keys():
            raise ValueError(f"{scheduler} has neither flow_shift nor shift, expected the schedule of a flow")
    elif not config.get("use_flow_sigmas") or not config.get("sigma_min") or not config.get("sigma_max"):
        raise ValueError(
            f"{scheduler} has use_karras_sigmas, expected use_flow_sigmas, sigma_min and sigma_max with it, as "
            "Cosmos-Predict2.5 has them"
        )


def load_codec(folder: Path, variant: str | None) -> Codec:
    """Our patch codec, the stand-in for a missing codec, or Wan's VAE."""
    if (folder / "codec").is_dir():
        return load_own_codec(folder / "codec")
    return WanVAECodec(folder / "vae", variant=variant)


def empty_codec(folder: Path) -> Codec:
    """The codec without weights, or our small patch codec as it is."""
    if (folder / "codec").is_dir():
        return load_own_codec(folder / "codec")
    return WanVAECodec(empty_model(AutoencoderKLWan, folder / "vae"))


def flow_scheduler(**settings: Any) -> UniPCMultistepScheduler:
    """The scheduler that folders of flows name; only its noise levels count here."""
    return UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, **settings)


def load_scheduler(folder: Path) -> UniPCMultistepScheduler:
    """The scheduler, for its noise levels; one of ``FlowMatchEulerDiscreteScheduler`` is taken over."""
    config = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    num_train_timesteps = config.get("num_train_timesteps", 1000)
    if not config.get("use_karras_sigmas"):
        shift = config.get("flow_shift", config.get("shift"))
        return flow_scheduler(num_train_timesteps=num_train_timesteps, flow_shift=shift)
    levels = {name: config[name] for name in ("use_karras_sigmas", "sigma_min", "sigma_max")}
    return flow_scheduler(num_train_timesteps=num_train_timesteps, **levels)


def noise_levels(config: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """A sampler's noise levels, as a scheduler's config has them; a model folder has no place for others.

    Raises:
        ValueError: ``overrides`` has others, or a shift where the scheduler has none.
    """
    is_karras = config["use_karras_sigmas"]
    reason = "a flow goes from pure noise to none, see flow_shift"
    if is_karras:
        reason = "the noise levels of this model are those of its scheduler_config.json"
    for name in ("sigma_min", "sigma_max", "rho", *(["flow_shift"] if is_karras else [])):
        if overrides.get(name) is not None:
            raise ValueError(f"{name} is {overrides[name]}, expected null: {reason}")
    if is_karras:
        low, high = (level_of_flow(config[name]) for name in ("sigma_min", "sigma_max"))
        return {"schedule": "flow_karras", "sigma_min": low, "sigma_max": high}
    shift = overrides.get("flow_shift", config["flow_shift"])
    low = shifted(1 / config["num_train_timesteps"], shift)
    return {"schedule": "flow", "flow_shift": shift, "sigma_min": low, "sigma_max": 1.0}


def load_text_encoder(
    folder: Path, other: str | Path | None, published: type[LazyTextEncoder], embedding_dim: int
) -> InstructionEncoder | LazyTextEncoder:
    """The instruction encoder of ``folder``, or the published one of either folder.

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
    return published(source / "text_encoder", source / "tokenizer", embedding_dim=embedding_dim)


def save_codec_and_text(codec: Any, text_encoder: Any, folder: Path) -> None:
    """Write codec and text encoder; a published encoder's folder, which nothing changes, is copied."""
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


def write_model_index(folder: Path, index: dict[str, Any] | None, pipeline: dict[str, Any], *fixed: str) -> None:
    """``model_index.json``, with which stock diffusers opens the folder.

    Args:
        folder: folder of the model.
        index: that of the folder that the model came from.
        pipeline: that of the published pipeline, for what the other one does not say.
        fixed: entries of the published pipeline that hold whatever the other one says, beside the scheduler.
    """
    entries = {name: pipeline[name] for name in ("scheduler", *fixed)}
    merged = {"_diffusers_version": diffusers.__version__, **pipeline, **(index or {}), **entries}
    (folder / "model_index.json").write_text(json.dumps(merged, indent=2) + "\n")
