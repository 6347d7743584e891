"""Every public call: train, evaluate, sample, and the whole chain. Start reading here.

Each call prepares what it needs (:mod:`vampo_core.pipeline`) and hands it to the one that does the work. All of them
take a :class:`VampoConfig`, the path of a YAML file or the name of a preset, and settings to change in it, such as
``"grpo.num_generations=8"``.
"""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from vampo_core.config import ConfigError, VampoConfig, load_config
from vampo_core.evaluation.episodes import ClosedLoopResult
from vampo_core.evaluation.predictor import EvalResult, evaluate_predictor, held_out_batch
from vampo_core.grpo.rewards import RewardFunction
from vampo_core.grpo.trainer import VampoTrainer
from vampo_core.pipeline import pages
from vampo_core.pipeline.base import base_checkpoint, pretrain_model
from vampo_core.pipeline.chain import Calls, Chain, ChainResult
from vampo_core.pipeline.clips import prepare_clips
from vampo_core.pipeline.closed_loop import act_in_simulators
from vampo_core.pipeline.codec import prepare_codec
from vampo_core.pipeline.decoders import judge_of, reward_decoders
from vampo_core.pipeline.plan import announce_memory
from vampo_core.pipeline.policy import policy_data
from vampo_core.pipeline.predictor import check_sampler, inference_predictor, load_predictor, new_predictor
from vampo_core.pipeline.runs import POLICY, PRETRAINING, VAMPO, check_run
from vampo_core.pipeline.sample import sample_videos
from vampo_core.policy.evaluation import PolicyEvalResult
from vampo_core.policy.train import PolicyTrainer, new_policy
from vampo_core.report.values import RunComparison
from vampo_core.training.loop import TrainResult
from vampo_core.training.memory import keep_freed_memory
from vampo_core.training.processes import new_accelerator

Config = VampoConfig | str | Path


def train(
    config: Config,
    *overrides: str,
    resume_from: str | Path | None = None,
    reward_funcs: Sequence[RewardFunction | tuple[RewardFunction, float]] | None = None,
) -> TrainResult[EvalResult]:
    """Post-train a video predictor with VAMPO.

    Data and base model are made first if they are missing; ``report.html`` is written last.

    Args:
        config: configuration, path of one, or name of a preset, such as ``"pusht"``.
        overrides: settings to change, such as ``"grpo.num_generations=8"``.
        resume_from: run folder or checkpoint of an earlier part of this run.
        reward_funcs: functions or ``(function, weight)`` pairs that replace the rewards of ``config.reward``, see
            :mod:`vampo_core.grpo.rewards`.

    Returns:
        The checkpoint, the history, and held-out metrics before and after.

    Raises:
        ConfigError: a setting is unknown or wrong, or the run folder already holds a run.
        NonFiniteError: a loss, reward or gradient is not finite; the last checkpoint is intact.
    """
    config = configured(config, overrides)
    check_run(VAMPO, config, resume_from)
    announce_memory(config)
    model = load_predictor(config, config.model.pretrained or base_checkpoint(config))
    check_sampler(config, model)
    clips = prepare_clips(config, model.codec)
    decoders = reward_decoders(config, model.codec, clips) if reward_funcs is None else None
    trainer = VampoTrainer(
        model=model,
        config=config,
        train_dataset=clips.train,
        eval_dataset=clips.held_out,
        reward_funcs=reward_funcs,
        action_decoders=decoders,
        judge=judge_of(config, model.codec, clips, decoders),
    )
    result = trainer.train(resume_from)
    del model, clips, trainer  # the report loads two models
    report_result(result)
    return result


def pretrain(config: Config, *overrides: str, resume_from: str | Path | None = None) -> TrainResult[EvalResult]:
    """Train a predictor on expert videos by denoising likelihood, from ``model.pretrained`` or from scratch.

    Arguments and errors are those of :func:`train`; the run goes to ``run.dir``.
    """
    config = configured(config, overrides)
    if config.model.lora and config.model.pretrained is None:
        raise ConfigError(
            f"model.lora is {config.model.lora} with model.pretrained = null, expected 0: adapters go on a model that "
            "is already trained, a model from scratch is trained as a whole"
        )
    check_run(PRETRAINING, config, resume_from)
    if config.model.pretrained is not None:
        model = load_predictor(config, config.model.pretrained)
    else:
        model = new_predictor(config, prepare_codec(config))
    check_sampler(config, model)
    return pretrain_model(config, model, resume_from)


def train_policy(
    config: Config, *overrides: str, resume_from: str | Path | None = None
) -> TrainResult[PolicyEvalResult]:
    """Train a policy to imitate the experts of ``data``, on the features of a video predictor.

    The predictor is ``policy.predictor``, or the base that :func:`train` starts from, which is pretrained first if it
    is missing. It is frozen unless ``policy.train_predictor`` is set; the features of all frames are then computed
    once. Training and held-out episodes are those of the predictor. The run goes to ``run.dir``; arguments and errors
    are those of :func:`train`.
    """
    config = configured(config, overrides)
    checkpoint = check_run(POLICY, config, resume_from)
    predictor, train_dataset, eval_dataset = policy_data(config, checkpoint)
    policy = new_policy(config, predictor, train_dataset)
    trainer = PolicyTrainer(model=policy, config=config, train_dataset=train_dataset, eval_dataset=eval_dataset)
    result = trainer.train(resume_from)
    report_result(result)
    return result


def evaluate(checkpoint: str | Path, config: Config, *overrides: str) -> EvalResult:
    """Held-out metrics of a predictor, with PSNR and SSIM if its codec decodes.

    Args:
        checkpoint: model folder, checkpoint or run folder.
        config: configuration that says which clips are held out, how many are used, and how videos are sampled.
        overrides: settings to change.

    Raises:
        ValueError: there is no predictor at ``checkpoint``.
    """
    config = configured(config, overrides)
    model = inference_predictor(config, checkpoint)
    clips = prepare_clips(config, model.codec)
    return evaluate_predictor(
        model,
        model.sampler(**config.sampler.overrides(cheap_tail=config.evaluation.cheap_tail)),
        held_out_batch(clips.held_out, config.evaluation.num_clips),
        num_samples=config.evaluation.num_samples,
        seed=config.evaluation.seed,
        batch_size=config.evaluation.batch_size,
        decode=True,
        judge=judge_of(config, model.codec, clips),
    )


def evaluate_policy(
    checkpoint: str | Path | None, config: Config, *overrides: str, output: str | Path | None = None
) -> ClosedLoopResult:
    """Let a policy act in simulators: success, coverage, length and latency of seeded episodes.

    Call it from under ``if __name__ == "__main__":``, because the simulators run in other processes.

    Args:
        checkpoint: policy folder, checkpoint or run folder; None for the simulators' own experts.
        config: configuration; ``closed_loop`` says which simulators and how many episodes, ``data`` the resolution.
        overrides: settings to change.
        output: folder in which each controller gets a folder for finished episodes and videos; a second call
            continues where the first was stopped. ``<run.dir>/closed_loop`` by default.

    Raises:
        ConfigError: there is no simulator.
        ValueError: there is no policy at ``checkpoint``, or it does not fit the simulator.
        ImportError: a simulator is not installed or cannot render.
    """
    return act_in_simulators(checkpoint, configured(config, overrides), output)


def sample(
    checkpoint: str | Path,
    config: Config,
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


def run_chain(config: Config, *overrides: str) -> ChainResult:
    """Run the whole chain: record, pretrain, post-train, train policies and try them. What is done already is kept.

    The section ``chain`` says which predictors are made from the base, and which policies try them.

    Call it from under ``if __name__ == "__main__":``, because the simulators run in other processes.

    Args:
        config: configuration, path of one, or name of a preset, such as ``"pusht"``.
        overrides: settings to change, such as ``"policy.num_steps=1000"``.

    Raises:
        ConfigError: a setting is wrong, or there is no simulator.
        ImportError: a simulator is not installed or cannot render.
        SimulatorError: a simulator cannot be made or reset.
        KeyboardInterrupt: a stage was interrupted; the same call continues there.
    """
    return _chain(config, overrides).finish()


def run_stages(config: Config, *overrides: str, until: str) -> dict[str, Path]:
    """Run the chain up to one of :data:`vampo_core.pipeline.chain.STAGES`; the rest is as in :func:`run_chain`.

    Returns:
        Folders by stage; policies and features have one each.
    """
    chain = _chain(config, overrides)
    chain.run(until)
    return chain.folders


def write_report(config: Config, *overrides: str) -> Path:
    """Write ``report.html`` of the run in ``run.dir`` and return its path.

    A video predictor's run also gets ``samples/clip-NN.mp4``.

    Raises:
        ValueError: there is no run with a checkpoint.
    """
    return pages.write_report(configured(config, overrides))


def compare_runs(*runs: str | Path, output: str | Path | None = None) -> RunComparison:
    """Compare finished or interrupted runs, and write an HTML page about it.

    Metrics of the best checkpoints are paired clip by clip with those of the first run; where runs have measured other
    clips, there are no differences, and the page says why. Videos are predicted where the data is still there.

    Args:
        runs: two to eight run folders, all of predictors (:func:`train`, :func:`pretrain`) or all of policies.
        output: HTML file to write; ``<first run>-compare.html`` beside the first run by default.

    Returns:
        What the page shows; ``page`` is its path.

    Raises:
        ConfigError: the runs do not go together, or ``output`` is somebody else's file.
        ValueError: a folder holds no run with a checkpoint.
    """
    return pages.write_comparison(runs, output)


def configured(config: Config, overrides: Sequence[str]) -> VampoConfig:
    """The configuration of a call, after its settings of the process have been put into effect."""
    config = load_config(config, *overrides)
    accelerator = new_accelerator()  # the first one decides what all later ones share
    if config.run.num_threads:
        torch.set_num_threads(config.run.num_threads)
    if config.run.keep_memory and accelerator.device.type == "cpu":
        keep_freed_memory()
    return config


def report_result(result: TrainResult[Any]) -> None:
    """Write the report of a run that has ended, unless it is up to date; if that fails, the run is still good."""
    config = result.config
    if result.interrupted or not new_accelerator().is_main_process:
        return
    try:
        print(f"report: {pages.current_report(config) or write_report(config)}")
    except Exception as error:
        again = f"`vampo report --config {config.run.dir}` tries again"
        warnings.warn(f"the report could not be written ({error}); {again}", RuntimeWarning, stacklevel=3)


def _chain(config: Config, overrides: Sequence[str]) -> Chain:
    calls = Calls(
        train=train,
        pretrain=pretrain,
        train_policy=train_policy,
        evaluate=evaluate,
        evaluate_policy=evaluate_policy,
    )
    return Chain(configured(config, overrides), calls)
