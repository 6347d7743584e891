"""Action decoders of a configuration: for the action reward, for policies on imagined videos, and as a judge.

Each is trained once and found again as long as everything that decides it stays the same: the folder beside ``run.dir``
is named after that.
"""

import copy
import warnings
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch

from vampo_core.config import AdamWConfig, ConfigError, PolicyConfig, VampoConfig, deciding
from vampo_core.data.clips import ClipDataset, Clips
from vampo_core.diffusion.streams import JUDGE, stream_seed
from vampo_core.evaluation.judge import Judge
from vampo_core.models.codecs.base import Codec
from vampo_core.pipeline.names import beside_run, digest
from vampo_core.pipeline.runs import POLICY, completed, find_continue_or_begin
from vampo_core.policy.evaluation import PolicyEvalResult
from vampo_core.policy.inverse_dynamics.decoder import ActionDecoder
from vampo_core.policy.inverse_dynamics.pairs import PairDataset, pairs_of
from vampo_core.policy.inverse_dynamics.settings import Network
from vampo_core.policy.train import PolicyTrainer, datasets_of, labelled
from vampo_core.training.loop import TrainResult
from vampo_core.training.processes import new_accelerator


def reward_decoders(config: VampoConfig, codec: Codec, clips: Clips) -> dict[str, ActionDecoder] | None:
    """Decoders of the action reward by dataset; None where there is no such reward.

    Raises:
        ConfigError: a decoder does not fit the data or the codec, or there are no actions to decode.
    """
    if not config.reward.action_weight:
        return None
    return action_decoders(config, codec, clips)


def action_decoders(config: VampoConfig, codec: Codec, clips: Clips) -> dict[str, ActionDecoder]:
    """Those of ``reward.action_decoder``, or decoders that are trained when missing, by dataset.

    Raises:
        ConfigError: a decoder does not fit the data or the codec, or there are no actions to decode.
    """
    given, device = config.reward.action_decoder, new_accelerator().device
    folders = [given] if isinstance(given, str) else list(given or [])
    if folders and len(folders) != len(clips.train):
        raise ConfigError(
            f"reward.action_decoder is {folders}, expected one folder for each of data.root = {list(config.data.roots)}"
        )
    decoders = {}
    for number, train in enumerate(clips.train):
        name, action_dim = train.episodes[0].dataset, _action_dim(train)
        if config.data.sampling != "stride" or not action_dim:
            raise ConfigError(
                f"an action decoder is asked for, but dataset {name!r} has "
                + ("no actions" if not action_dim else "clips of whole episodes (data.sampling)")
                + ", expected actions between frames at a fixed distance"
            )
        decoder = _given(folders[number]) if folders else _trained(config, codec, train, clips.held_out, "difference")
        decoder.check(
            f"reward.action_decoder = {folders[number]!r}" if folders else "the action decoder",
            codec=codec.fingerprint(),
            num_actions=config.data.stride * codec.temporal_ratio,
            action_dim=action_dim,
        )
        decoders[name] = decoder.to(device)
    return decoders


def judge_of(
    config: VampoConfig, codec: Codec, clips: Clips, trained_on: dict[str, ActionDecoder] | None = None
) -> Judge | None:
    """The judge of a configuration, on the CPU; None where it asks for none, or where there are no actions to judge.

    Args:
        config: settings of the run.
        codec: codec of the latents.
        clips: clips that the run is trained and evaluated on.
        trained_on: decoders of the action reward, measured beside the judge.
    """
    judged = config.evaluation.action_error and config.data.sampling == "stride"
    if not judged or not all(_action_dim(train) for train in clips.train):
        return None
    # of all labels whatever a policy may see, and the same for all seeds of a run: it is a yardstick
    seed = stream_seed(config.evaluation.seed, JUDGE) % 2**32
    own = replace(config, policy=replace(config.policy, num_episodes=None), run=replace(config.run, seed=seed))
    decoders = {
        train.episodes[0].dataset: _trained(own, codec, train, clips.held_out, "judge").cpu() for train in clips.train
    }
    on_cpu = None if trained_on is None else {name: _copy_on_cpu(decoder) for name, decoder in trained_on.items()}
    return Judge(decoders=decoders, trained_on=on_cpu)


def _given(folder: str) -> ActionDecoder:
    """The decoder of ``reward.action_decoder``."""
    try:
        return ActionDecoder.from_pretrained(folder)
    except ValueError as error:
        raise ConfigError(f"reward.action_decoder is {folder!r}, expected an action decoder: {error}") from error


def _trained(
    config: VampoConfig, codec: Codec, train: ClipDataset, held_out: ClipDataset, network: Network
) -> ActionDecoder:
    """A decoder of one dataset, found complete, continued or begun."""
    dataset_name = train.episodes[0].dataset
    decided_by = [network, codec.fingerprint(), dataset_name, config.run.seed, deciding(config, "decoder")]
    label = "judge" if network == "judge" else "action decoder"
    folder = beside_run(config, f"{'judge' if network == 'judge' else 'decoder'}-{digest(decided_by)}")
    run = replace(config.run, dir=str(folder), overwrite=False, trackers=())
    settings = replace(config, run=run, policy=_training(config, train))

    def begin(settings: VampoConfig, *, resume_from: Path | None) -> TrainResult[PolicyEvalResult]:
        learned, measured = datasets_of(pairs_of, settings, train, held_out)
        with torch.random.fork_rng():
            torch.manual_seed(settings.run.seed)
            decoder = ActionDecoder.new(settings, codec.fingerprint(), learned, network)
        trainer = PolicyTrainer(
            model=decoder, config=settings, train_dataset=learned, eval_dataset=measured, name=label
        )
        result = trainer.train(resume_from)
        if not result.interrupted:
            _warn_if_useless(label, dataset_name, result.after.action_l1.mean, decoder, learned, trainer.eval_batch)
        return result

    result = find_continue_or_begin(POLICY, settings, begin, label=label, named=True)
    return ActionDecoder.from_pretrained(completed(result).checkpoint)


def _training(config: VampoConfig, train: ClipDataset) -> PolicyConfig:
    """The training of a decoder, in the section that :class:`PolicyTrainer` reads."""
    settings = config.decoder
    num_frames = sum(episode.length for episode in labelled(train.episodes, config.policy.num_episodes))
    num_steps = min(settings.num_steps, -(-settings.max_epochs * num_frames // settings.batch_size))
    optimizer = {field.name: getattr(settings, field.name) for field in fields(AdamWConfig)}
    return replace(
        config.policy,
        **optimizer | {"decay_steps": min(settings.decay_steps, num_steps)},
        kind="inverse_dynamics",
        batch_size=settings.batch_size,
        num_steps=num_steps,
        eval_every=num_steps,
        save_every=max(1, num_steps // 4),
        ema_decay=0.0,
        train_predictor=False,
    )


def _warn_if_useless(
    label: str,
    dataset: str,
    error: float,
    decoder: ActionDecoder,
    learned: PairDataset,
    measured: Mapping[str, Any],
) -> None:
    """Warn of a decoder that is no better on held-out episodes than always the same action."""
    actions = torch.cat([learned[i]["actions"] for i in range(0, len(learned), max(1, len(learned) // 4096))])
    median = decoder.normalize(actions).median(0).values  # [A]
    constant = (decoder.normalize(measured["actions"]) - median).abs().mean().item()
    if error >= constant > 0:
        warnings.warn(
            f"the {label} of dataset {dataset!r} has a held-out error of {error:.3f}, no better than the median action "
            f"({constant:.3f}): what it says about videos means nothing; it may need more episodes",
            RuntimeWarning,
            stacklevel=2,
        )


def _action_dim(clips: ClipDataset) -> int:
    """Numbers in an action of a dataset's first episode."""
    return clips.episodes[0].actions.shape[1]


def _copy_on_cpu(decoder: ActionDecoder) -> ActionDecoder:
    return copy.deepcopy(decoder).cpu()
