"""The calls: train, pretrain, and evaluate a predictor or a policy, cache features, sample videos."""

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch

from vampo_core.config import ConfigError, VampoConfig, load_config
from vampo_core.evaluation.closed_loop import evaluate_closed_loop
from vampo_core.evaluation.episodes import ClosedLoopResult
from vampo_core.evaluation.imagination import Imagination
from vampo_core.evaluation.predictor import EvalResult, evaluate_predictor, held_out_batch
from vampo_core.grpo.rewards import RewardFunction
from vampo_core.grpo.trainer import VampoTrainer
from vampo_core.models.predictor import VideoPredictor
from vampo_core.pipeline.pages import current_report, write_report
from vampo_core.pipeline.prepare import (
    base_config,
    digest,
    inference_predictor,
    load_predictor,
    new_predictor,
    policy_predictor,
    prepare_clips,
    prepare_codec,
)
from vampo_core.pipeline.sample import sample_videos
from vampo_core.policy.controller import PolicyController
from vampo_core.policy.data import ActionDataset
from vampo_core.policy.vpp.evaluation import PolicyEvalResult
from vampo_core.policy.vpp.policy import PREDICTOR, Policy
from vampo_core.policy.vpp.settings import SETTINGS_FILE, PolicySettings
from vampo_core.policy.vpp.train import PolicyTrainer, action_datasets, new_policy
from vampo_core.training.checkpoint import Checkpoints
from vampo_core.training.loop import TrainResult
from vampo_core.training.pretrain import Pretrainer
from vampo_core.training.processes import new_accelerator
from vampo_core.training.run_folder import RunFolder, continued


def train(
    config: VampoConfig | str | Path,
    *overrides: str,
    resume_from: str | Path | None = None,
    reward_funcs: Sequence[RewardFunction | tuple[RewardFunction, float]] | None = None,
) -> TrainResult[EvalResult]:
    """Post-train a video predictor with VAMPO.

    What a preset needs and is not there yet, data or base model, is made first; ``report.html`` is written last.

    Args:
        config: a configuration, the path of one, or a preset's name, such as ``"pusht"``.
        overrides: settings to change, such as ``"grpo.num_generations=8"``.
        resume_from: run folder or checkpoint of an earlier part of this run.
        reward_funcs: functions or ``(function, weight)`` pairs in place of the rewards of ``config.reward``, see
            :mod:`vampo_core.grpo.rewards`.

    Returns:
        The checkpoint, the history, and held-out metrics before and after.

    Raises:
        ConfigError: a setting is unknown or wrong, or the run folder holds a run already.
        NonFiniteError: a loss, reward or gradient is not finite; the last checkpoint is intact.
    """
    config = configured(config, overrides)
    _check_run(config, resume_from, of="predictor")
    model = load_predictor(config, config.model.pretrained or base_checkpoint(config))
    with _main_process_first():
        clips = prepare_clips(config, model.codec)
    trainer = VampoTrainer(
        model=model,
        config=config,
        train_dataset=clips.train,
        eval_dataset=clips.held_out,
        reward_funcs=reward_funcs,
    )
    result, writes = trainer.train(resume_from), trainer.accelerator.is_main_process
    del model, clips, trainer  # the report loads two models of its own
    if writes and not result.interrupted:
        _report(config)
    return result


def pretrain(
    config: VampoConfig | str | Path, *overrides: str, resume_from: str | Path | None = None
) -> TrainResult[EvalResult]:
    """Train a predictor on expert videos by denoising likelihood, from ``model.pretrained`` or from scratch.

    Arguments and errors are those of :func:`train`; the run goes to ``run.dir``.
    """
    config = configured(config, overrides)
    if config.model.lora and config.model.pretrained is None:
        raise ConfigError(
            f"model.lora is {config.model.lora} with model.pretrained = null, expected 0: adapters go on a model that "
            "is trained already, one from scratch is trained as a whole"
        )
    _check_run(config, resume_from, of="predictor")
    return _pretrain(config, resume_from)


def train_policy(
    config: VampoConfig | str | Path, *overrides: str, resume_from: str | Path | None = None
) -> TrainResult[PolicyEvalResult]:
    """Train a policy to imitate the experts of ``data``, on the features of a video predictor.

    The predictor is ``policy.predictor``, or the base that :func:`train` starts from, pretrained first where it is not
    there. It is frozen unless ``policy.train_predictor`` is set; its features of all frames are then computed once.
    Training and held-out episodes are those of the predictor. The run goes to ``run.dir``; arguments and errors are
    those of :func:`train`.
    """
    config = configured(config, overrides)
    root = _policy_root(config)
    checkpoint = _check_run(config, resume_from, of="policy")
    source: str | Path | None = None
    if checkpoint is not None:
        PolicySettings.load(checkpoint)  # an older architecture is told before features are computed
        if not (config.policy.train_predictor and config.model.lora):  # adapters are merged into what is saved
            source = checkpoint / PREDICTOR  # where the run began there may be another one by now
    predictor, train_dataset, eval_dataset = _policy_data(config, root, source)
    policy = new_policy(config, predictor, train_dataset)
    trainer = PolicyTrainer(model=policy, config=config, train_dataset=train_dataset, eval_dataset=eval_dataset)
    result = trainer.train(resume_from)
    if trainer.accelerator.is_main_process and not result.interrupted:
        _report(config)
    return result


def cache_features(config: VampoConfig | str | Path, *overrides: str) -> Path:
    """Compute the features of all frames that a policy with this configuration is trained on, where they are missing.

    :func:`train_policy` does so too, before it trains.

    Returns:
        The folder that holds them.

    Raises:
        ConfigError: such a policy uses no cache, or a setting is wrong.
    """
    config = configured(config, overrides)
    check_cacheable(config)
    _, dataset, _ = _policy_data(config, _policy_root(config))
    assert dataset.cache is not None
    return dataset.cache.folder


def check_cacheable(config: VampoConfig) -> None:
    """Refuse a policy whose features are not computed once for all.

    Raises:
        ConfigError: it sees latents, or trains its predictor.
    """
    if config.policy.features != "predictive":
        raise ConfigError(f"policy.features is {config.policy.features!r}, expected predictive: latents need no cache")
    if config.policy.train_predictor:
        raise ConfigError("policy.train_predictor is true, expected false: features change with the predictor")


def evaluate(checkpoint: str | Path, config: VampoConfig | str | Path, *overrides: str) -> EvalResult:
    """Held-out metrics of a predictor; PSNR and SSIM among them where its codec decodes.

    Args:
        checkpoint: model folder, checkpoint or run folder.
        config: says which clips are held out, how videos are sampled, and how many.
        overrides: settings to change.

    Raises:
        ValueError: there is no predictor at ``checkpoint``.
    """
    config = configured(config, overrides)
    model = inference_predictor(config, checkpoint)
    clips = prepare_clips(config, model.codec)
    return evaluate_predictor(
        model,
        model.sampler(**config.sampler.overrides()),
        held_out_batch(clips.held_out, config.evaluation.num_clips),
        num_samples=config.evaluation.num_samples,
        seed=config.evaluation.seed,
        batch_size=config.evaluation.batch_size,
        decode=True,
    )


def evaluate_policy(
    checkpoint: str | Path | None, config: VampoConfig | str | Path, *overrides: str, output: str | Path | None = None
) -> ClosedLoopResult:
    """Let a policy act in the simulators of ``data.env``: success, coverage, length and latency of seeded episodes.

    Call it from under ``if __name__ == "__main__":``, as the simulators run in processes of their own.

    Args:
        checkpoint: policy folder, checkpoint or run folder; None for the simulators' own experts.
        config: ``closed_loop`` says how many episodes, ``data`` which simulators at which resolution.
        overrides: settings to change.
        output: folder in which each controller gets one of its own, for finished episodes and videos; a second call
            goes on where the first was stopped. ``<run.dir>/closed_loop`` by default.

    Raises:
        ConfigError: there is no simulator.
        ValueError: there is no policy at ``checkpoint``, or it does not fit the simulator.
        ImportError: a simulator is not installed or cannot render.
    """
    config = configured(config, overrides)
    if config.data.env is None:
        raise ConfigError("data.env is None, expected the simulator to act in")
    policy, settings = None, config.closed_loop
    if checkpoint is not None:
        policy = Policy.from_pretrained(checkpoint, dtype=config.model.dtype).to(new_accelerator().device).eval()
    controller, name = None, "expert"
    if policy is not None:
        controller = PolicyController(
            policy,
            num_executed_steps=settings.num_executed_steps,
            temporal_ensemble=settings.temporal_ensemble,
            batch_size=settings.num_envs,
        )
        own, acting = ((acts.num_executed_steps, acts.temporal_ensemble) for acts in (policy.settings, controller))
        name = policy.fingerprint() + ("" if acting == own else f"-{digest(acting)}")
    imagine = None  # the control imagines nothing, ready-made latents cannot be decoded, whole episodes have no stride
    if (
        policy is not None
        and config.data.sampling == "stride"
        and policy.settings.features == "predictive"
        and policy.predictor.codec.can_decode
    ):
        imagine = Imagination(policy.predictor, stride=config.data.stride)
    with _num_threads(config.run.num_threads or 1):  # one: see PolicyController; simulators take the other cores
        return evaluate_closed_loop(
            controller,
            config.data.env,
            num_episodes=settings.num_episodes,
            seed=settings.seed,
            num_workers=settings.num_workers,
            num_envs=settings.num_envs,
            begin_every=1 if controller is None else controller.num_executed_steps,
            env_kwargs={"image_size": config.data.resolution},
            output=Path(config.run.dir) / "closed_loop" / name if output is None else Path(output) / name,
            controller_id=name,
            num_videos=settings.num_videos,
            imagine=imagine,
        )


def sample(
    checkpoint: str | Path,
    config: VampoConfig | str | Path,
    *overrides: str,
    output: str | Path,
    image: str | Path | None = None,
    video: str | Path | None = None,
    instruction: str | None = None,
    num_samples: int = 1,
    num_clips: int = 4,
) -> Path:
    """Predict videos from a first frame and an instruction, or of held-out clips; see :func:`sample_videos`."""
    return sample_videos(
        checkpoint,
        configured(config, overrides),
        output=output,
        image=image,
        video=video,
        instruction=instruction,
        num_samples=num_samples,
        num_clips=num_clips,
    )


def _policy_root(config: VampoConfig) -> str:
    """The dataset that a policy is trained on."""
    if len(config.data.roots) > 1:
        roots = list(config.data.roots)
        raise ConfigError(f"data.root is {roots}, expected one folder: a policy learns from one dataset")
    return config.data.roots[0]


def _policy_data(
    config: VampoConfig, root: str, source: str | Path | None = None
) -> tuple[VideoPredictor, ActionDataset, ActionDataset]:
    """A policy's predictor, from ``source`` or where the configuration says, with training and held-out frames."""
    source = source or config.policy.predictor or config.model.pretrained or base_checkpoint(config)
    predictor = policy_predictor(config, source)
    with _main_process_first():
        clips = prepare_clips(config, predictor.codec)
        return predictor, *action_datasets(config, predictor, clips, root)


def configured(config: VampoConfig | str | Path, overrides: tuple[str, ...]) -> VampoConfig:
    """The configuration of a call, with what it says of the process put into effect."""
    config = load_config(config, *overrides)
    new_accelerator()  # the first one decides on what they share
    if config.run.num_threads:
        torch.set_num_threads(config.run.num_threads)
    return config


@contextlib.contextmanager
def _num_threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _report(config: VampoConfig) -> None:
    """Write the report of a run that has ended well, and so does whatever becomes of the report."""
    try:
        print(f"report: {current_report(config) or write_report(config)}")
    except Exception as error:
        again = f"`vampo report --config {config.run.dir}` tries again"
        warnings.warn(f"the report could not be written ({error}); {again}", RuntimeWarning, stacklevel=3)


def _main_process_first() -> contextlib.AbstractContextManager[None]:
    """Of several processes the main one makes what is missing, and the others then find it."""
    return new_accelerator().main_process_first()  # PartialState() would not see several processes on the CPU


def base_checkpoint(config: VampoConfig) -> Path:
    """The base model of a configuration, as :func:`pretrain_base` makes or finds it.

    Raises:
        KeyboardInterrupt: its training was interrupted.
    """
    base = pretrain_base(config)
    if base.interrupted:
        raise KeyboardInterrupt("interrupted while pretraining the base; the same call continues there")
    return base.checkpoint


def pretrain_base(config: VampoConfig) -> TrainResult[EvalResult]:
    """The base model of a configuration: pretrained now, continued where it was interrupted, or found complete."""
    with _main_process_first():
        codec = prepare_codec(config)
    settings = base_config(config, codec)
    folder = Path(settings.run.dir)
    begun = Checkpoints(folder / "checkpoints").latest is not None
    print(f"base model: {folder}" + (" (found)" if begun else ""))
    if begun:  # its own settings: what post-training, and so this configuration, has changed is nothing to the base
        settings = continued(settings, folder)
    else:  # a process that was killed before the first checkpoint left nothing to continue
        settings = replace(settings, run=replace(settings.run, overwrite=folder.exists()))
    return _pretrain(settings, folder if begun else None, new_predictor(settings, codec))


def _check_run(
    config: VampoConfig, resume_from: str | Path | None, *, of: Literal["predictor", "policy"]
) -> Path | None:
    """What is wrong with the run folder, told before hours go into what comes first; see :meth:`RunFolder.check`."""
    folder = Path(config.run.dir)
    latest = Checkpoints(folder / "checkpoints").latest
    if latest is not None:
        holds = "policy" if (latest / SETTINGS_FILE).is_file() else "predictor"
        if holds != of:
            raise ConfigError(f"run.dir is {str(folder)!r}, which holds the run of a {holds}: choose another folder")
    for key, value in (("model.pretrained", config.model.pretrained), ("policy.predictor", config.policy.predictor)):
        if config.run.overwrite and value and Path(value).resolve().is_relative_to(folder.resolve()):
            raise ConfigError(f"run.overwrite is True with {key} = {value!r} in run.dir, which it would delete")
    return RunFolder.check(config, resume_from=resume_from)


def _pretrain(
    config: VampoConfig, resume_from: str | Path | None, model: VideoPredictor | None = None
) -> TrainResult[EvalResult]:
    if model is None:
        source = config.model.pretrained
        with _main_process_first():
            model = load_predictor(config, source) if source else new_predictor(config, prepare_codec(config))
    with _main_process_first():
        clips = prepare_clips(config, model.codec)
    trainer = Pretrainer(model=model, config=config, train_dataset=clips.train, eval_dataset=clips.held_out)
    return trainer.train(resume_from)
