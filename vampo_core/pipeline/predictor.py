"""Predictors as a configuration asks for them: loaded, ready to predict, below a policy, or new."""

from pathlib import Path
from typing import Any

import torch

from vampo_core.config import ConfigError, VampoConfig
from vampo_core.diffusion.settings import EulerHybridSettings
from vampo_core.models.codecs.base import Codec
from vampo_core.models.predictor import VideoPredictor
from vampo_core.models.registry import backbone_of, is_model_folder
from vampo_core.training.checkpoint import find_checkpoint
from vampo_core.training.processes import new_accelerator


def load_predictor(config: VampoConfig, folder: str | Path) -> VideoPredictor:
    """A predictor with the adapters and the precision of the configuration.

    Args:
        config: configuration of the run.
        folder: model folder, checkpoint or run folder.

    Raises:
        ValueError: there is no such model.
    """
    path = predictor_folder(folder)
    model = VideoPredictor.from_pretrained(path, text_encoder=config.model.text_encoder, dtype=config.model.dtype)
    add_adapters(config, model)
    return _prepared(config, model)


def load_encoders(config: VampoConfig) -> tuple[Codec, Any]:
    """Codec and text encoder of ``model.pretrained``.

    Raises:
        ValueError: there is no such model.
    """
    assert config.model.pretrained is not None
    folder = predictor_folder(config.model.pretrained)
    return backbone_of(folder).load_encoders(folder, config.model.text_encoder)


def add_adapters(config: VampoConfig, model: VideoPredictor) -> None:
    """Put the configuration's adapters on a model, and its frozen weights in the precision that they are used in."""
    if config.model.lora:
        half = None if config.model.dtype == "float32" else config.model.dtype
        with torch.random.fork_rng():
            torch.manual_seed(config.run.seed)
            model.add_lora(rank=config.model.lora, base_dtype=half)


def check_sampler(config: VampoConfig, model: VideoPredictor) -> None:
    """Refuse settings of the sampler that a model has no place for, before any work.

    Raises:
        ConfigError: there is one.
    """
    try:
        model.sampler(**config.sampler.overrides())
    except ValueError as error:
        raise ConfigError(f"sampler.{error}") from None


def predictor_folder(folder: str | Path) -> Path:
    """The model folder that a model folder, a checkpoint or a run folder stands for.

    Raises:
        ValueError: there is none.
    """
    path = Path(folder)
    if not is_model_folder(path):
        path = find_checkpoint(path)
    backbone_of(path)  # says what is wrong with the folder
    return path


def inference_predictor(config: VampoConfig, folder: str | Path) -> VideoPredictor:
    """As :func:`load_predictor`, on the device of this process and in eval mode."""
    return load_predictor(config, folder).to(new_accelerator().device).eval()


def policy_predictor(config: VampoConfig, folder: str | Path) -> VideoPredictor:
    """As :func:`inference_predictor`, for a policy: with the configuration's sampler, for which VAMPO trains it.

    Raises:
        ConfigError: the predictor has fewer feature layers than ``policy.feature_layers`` asks for.
        ValueError: there is no such model.
    """
    model = inference_predictor(config, folder)
    layers, num_layers = list(config.policy.feature_layers), model.num_feature_layers
    is_vpp = config.policy.kind == "vpp"
    if is_vpp and config.policy.features == "predictive" and layers[-1] >= num_layers:
        raise ConfigError(
            f"policy.feature_layers is {layers}, expected indices below {num_layers}, the number of feature layers "
            f"of the model at {str(folder)!r}"
        )
    model.set_sampler(model.sampler(**config.sampler.overrides()))
    return model


def new_predictor(config: VampoConfig, codec: Codec) -> VideoPredictor:
    """The embedded default, untrained; its weights follow from ``run.seed``."""
    with torch.random.fork_rng():
        torch.manual_seed(config.run.seed)
        model = VideoPredictor.create(
            codec,
            num_frames=config.data.num_frames,
            backbone=config.model.backbone,
            sigma_max=config.sampler.sigma_max or EulerHybridSettings.sigma_max,
            dtype=config.model.dtype,
            **config.model.network_options(),
        )
    return _prepared(config, model)


def _prepared(config: VampoConfig, model: VideoPredictor) -> VideoPredictor:
    """The model as its denoiser is to be run, on the device of this process."""
    if config.model.gradient_checkpointing:
        model.enable_gradient_checkpointing()
    if config.model.compile:
        model = model.to(new_accelerator().device)
        model.compile_denoiser()
    return model
