"""What a policy is trained on: its predictor, and frames with actions and features."""

from dataclasses import replace
from pathlib import Path

import torch

from vampo_core.config import ConfigError, VampoConfig
from vampo_core.files.atomic import publish, temporary_beside
from vampo_core.models.predictor import VideoPredictor
from vampo_core.pipeline.base import base_checkpoint
from vampo_core.pipeline.clips import data_folder, prepare_clips
from vampo_core.pipeline.decoders import action_decoders
from vampo_core.pipeline.predictor import policy_predictor
from vampo_core.policy.base import PREDICTOR
from vampo_core.policy.data import ActionDataset
from vampo_core.policy.inverse_dynamics.policy import InverseDynamicsPolicy
from vampo_core.policy.registry import policy_class
from vampo_core.policy.settings import policy_settings
from vampo_core.policy.train import action_datasets, labelled


def policy_data(
    config: VampoConfig, checkpoint: Path | None = None
) -> tuple[VideoPredictor, ActionDataset, ActionDataset]:
    """The predictor of a policy, and frames of training and held-out episodes.

    Args:
        config: configuration of the policy's run.
        checkpoint: checkpoint from which the run continues, with the predictor that it began with: there may be
            another one by now in the place where the configuration says.

    Raises:
        ConfigError: ``data.root`` is not one folder, or the predictor does not fit ``policy.feature_layers``.
        ValueError: the checkpoint is of an older architecture.
    """
    check_one_dataset(config)
    source: str | Path | None = config.policy.predictor or config.model.pretrained
    if checkpoint is not None:
        policy_settings(checkpoint)  # an older architecture is refused before features are computed
        if not (config.policy.train_predictor and config.model.lora):  # adapters are merged into what is saved
            source = checkpoint / PREDICTOR
    predictor = policy_predictor(config, source or base_checkpoint(config))
    single_frames = not policy_class(config.policy.kind).learns_from_clips
    clips = prepare_clips(config, predictor.codec, single_frames=single_frames)
    return predictor, *action_datasets(config, predictor, clips, data_folder(config))


def imagined_policy(
    config: VampoConfig, predictor: str | Path, folder: str | Path, *, action_scale: float = 1.0
) -> Path:
    """Write a policy that acts on the videos of a predictor, with the configuration's action decoder.

    Nothing is trained for the predictor: its videos are read by the decoder that reads the expert's.

    Args:
        config: configuration of the policy.
        predictor: run folder, checkpoint or model folder of the predictor.
        folder: policy folder to write.
        action_scale: factor on decoded actions; a control for motion that has shrunk.

    Returns:
        ``folder``.
    """
    check_one_dataset(config)
    model = policy_predictor(replace(config, policy=replace(config.policy, kind="inverse_dynamics")), predictor)
    clips = prepare_clips(config, model.codec)
    (decoder,) = action_decoders(config, model.codec, clips).values()
    states = torch.cat([episode.states for episode in labelled(clips.train[0].episodes, config.policy.num_episodes)])
    state_range = torch.stack([states.amin(0), states.amax(0)]).to(decoder.action_range)
    policy = InverseDynamicsPolicy.of(decoder, model, config, state_range, action_scale=action_scale)
    folder = Path(folder)
    temporary = temporary_beside(folder)
    policy.save_pretrained(temporary)
    publish(temporary, folder)
    return folder


def check_one_dataset(config: VampoConfig) -> None:
    """Refuse several folders of data.

    Raises:
        ConfigError: ``data.root`` is not one folder.
    """
    if len(config.data.roots) > 1:
        raise ConfigError(
            f"data.root is {list(config.data.roots)}, expected one folder: a policy learns from one dataset"
        )


def cache_features(config: VampoConfig) -> Path:
    """Compute those features of a dataset's frames that are missing for a policy with this configuration.

    :func:`vampo_core.train_policy` does so too, before it trains.

    Returns:
        The folder that holds them.

    Raises:
        ConfigError: such a policy uses no cache, or a setting is wrong.
    """
    check_cacheable(config)
    _, dataset, _ = policy_data(config)
    assert dataset.cache is not None
    return dataset.cache.folder


def check_cacheable(config: VampoConfig) -> None:
    """Refuse a policy whose features cannot be computed in advance.

    Raises:
        ConfigError: it sees latents, or trains its predictor.
    """
    if config.policy.features != "predictive":
        raise ConfigError(f"policy.features is {config.policy.features!r}, expected predictive: latents need no cache")
    if config.policy.train_predictor:
        raise ConfigError("policy.train_predictor is true, expected false: features change with the predictor")
