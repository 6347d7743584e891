"""The base model that a configuration starts from: pretrained once for all runs with the same settings."""

from dataclasses import replace
from pathlib import Path

from vampo_core.config import VampoConfig, deciding
from vampo_core.evaluation.predictor import EvalResult
from vampo_core.models.codecs.base import Codec
from vampo_core.models.predictor import VideoPredictor
from vampo_core.models.registry import is_model_folder
from vampo_core.pipeline.clips import prepare_clips
from vampo_core.pipeline.codec import prepare_codec
from vampo_core.pipeline.decoders import judge_of
from vampo_core.pipeline.names import beside_run, digest
from vampo_core.pipeline.predictor import new_predictor
from vampo_core.pipeline.runs import PRETRAINING, completed, find_continue_or_begin
from vampo_core.training.loop import TrainResult
from vampo_core.training.pretrain import Pretrainer


def base_checkpoint(config: VampoConfig) -> Path:
    """The base model of a configuration, as :func:`pretrain_base` makes or finds it.

    Raises:
        KeyboardInterrupt: its training was interrupted; the same call continues there.
    """
    return completed(pretrain_base(config)).checkpoint


def pretrain_base(config: VampoConfig) -> TrainResult[EvalResult]:
    """The pretraining of the base model, which is found complete, continued or begun.

    A process that needs a base which another one is pretraining waits for it.
    """
    codec = prepare_codec(config)

    def pretrain(settings: VampoConfig, *, resume_from: Path | None) -> TrainResult[EvalResult]:
        return pretrain_model(settings, new_predictor(settings, codec), resume_from)

    return find_continue_or_begin(PRETRAINING, base_config(config, codec), pretrain, label="base model", named=True)


def pretrain_model(
    config: VampoConfig, model: VideoPredictor, resume_from: str | Path | None
) -> TrainResult[EvalResult]:
    """Train a predictor by denoising likelihood on the clips of ``data``; the run goes to ``run.dir``."""
    clips = prepare_clips(config, model.codec)
    trainer = Pretrainer(
        model=model,
        config=config,
        train_dataset=clips.train,
        eval_dataset=clips.held_out,
        judge=judge_of(config, model.codec, clips),
    )
    return trainer.train(resume_from)


def base_config(config: VampoConfig, codec: Codec) -> VampoConfig:
    """The pretraining run behind a configuration without ``model.pretrained``.

    Its folder lies beside ``run.dir``; its name follows from everything that decides the base.
    """
    name = f"base-{digest([codec.fingerprint(), deciding(config, 'base')])}"
    plain = replace(config.model, lora=0, gradient_checkpointing=False)
    return replace(config, model=plain, run=replace(config.run, dir=str(beside_run(config, name)), overwrite=False))


def find_base(config: VampoConfig, codec: Codec) -> Path | None:
    """The model that a run started from; None if it is no longer there, or if the run is the base's own."""
    path = Path(config.model.pretrained or base_config(config, codec).run.dir)
    is_there = is_model_folder(path) or (path / "checkpoints" / "latest").is_dir()
    return path if is_there and path.resolve() != Path(config.run.dir).resolve() else None
