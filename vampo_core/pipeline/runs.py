"""Find a run complete, continue it, or begin it: the only place that decides which.

Calls, stages of the chain, the base model, benchmarks and ``vampo train --continue`` all come here.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, Literal, Protocol, TypeVar

from vampo_core.config import ConfigError, VampoConfig, load_config, resumed
from vampo_core.evaluation.predictor import EvalResult
from vampo_core.models.float8 import check_float8
from vampo_core.pipeline.waiting import made_by_one_job
from vampo_core.policy.evaluation import PolicyEvalResult
from vampo_core.policy.inverse_dynamics.decoder import SETTINGS_FILE as DECODER_SETTINGS
from vampo_core.policy.settings import SETTINGS_FILE
from vampo_core.training.checkpoint import Checkpoints, read_counters, step_of
from vampo_core.training.loop import Evaluation, TrainResult
from vampo_core.training.metrics import read_metrics
from vampo_core.training.processes import new_accelerator
from vampo_core.training.run_folder import RunFolder
from vampo_core.training.sharding import check_sharding

E = TypeVar("E", bound=Evaluation)


@dataclass(frozen=True)
class RunKind(Generic[E]):
    """A kind of training run."""

    name: str
    makes: Literal["predictor", "policy"]
    num_steps: Callable[[VampoConfig], int]  # iterations or updates of a complete run
    result_type: type[E]


VAMPO = RunKind("VAMPO", "predictor", lambda config: config.grpo.num_iterations, EvalResult)
PRETRAINING = RunKind("pretraining", "predictor", lambda config: config.pretrain.num_steps, EvalResult)
POLICY = RunKind("policy", "policy", lambda config: config.policy.num_steps, PolicyEvalResult)


class Training(Protocol[E]):
    """What trains: a call such as :func:`vampo_core.train`."""

    def __call__(self, config: VampoConfig, /, *, resume_from: Path | None) -> TrainResult[E]:
        """Begin the run, or continue it from its newest checkpoint."""
        ...


def find_continue_or_begin(
    kind: RunKind[E], config: VampoConfig, train: Training[E], *, label: str, named: bool = False
) -> TrainResult[E]:
    """The result of the run in ``run.dir``, which is found complete, continued where it was stopped, or begun.

    Another process that asks for the same run waits until this one has ended. If this one dies, the other continues.

    Args:
        kind: kind of the run.
        config: settings of the run.
        train: function that trains; it is not called when the run is complete.
        label: what to call the run when its folder is printed.
        named: whether the folder's name follows from the settings that decide the result. All other settings may then
            have changed since the run began: an unfinished run goes on with its own, and its predictors may have been
            moved. Without it a run whose settings differ is refused, as ``resume_from`` refuses it.

    Raises:
        ConfigError: the folder holds a run of another kind or, without ``named``, of other settings.
    """
    folder = Path(config.run.dir)
    if config.run.overwrite and not named:
        raise ConfigError("run.overwrite is True, expected False: a run that is deleted cannot be continued")
    with made_by_one_job(folder):
        latest, is_done = Checkpoints(folder / "checkpoints").latest, is_complete(kind, config)
        if new_accelerator().is_main_process:
            state = "" if latest is None else " (found)" if is_done else " (continued)"
            print(f"{label}: {folder}{state}", flush=True)
        if latest is None:
            # a process that was killed before its first checkpoint leaves a folder with nothing to continue
            return train(_with_overwrite(config, named and folder.exists()), resume_from=None)
        if not named:
            check_run(kind, config, folder)
        if is_done:
            return _stored_result(kind, config, latest)
        return train(_own_settings(config) if named else config, resume_from=folder)


def completed(result: TrainResult[E]) -> TrainResult[E]:
    """The result of a run that was not interrupted.

    Raises:
        KeyboardInterrupt: it was; the message says how to continue.
    """
    if result.interrupted:
        raise KeyboardInterrupt(f"interrupted in {result.config.run.dir}; the same call continues there")
    return result


def is_complete(kind: RunKind[Any], config: VampoConfig) -> bool:
    """Whether ``run.dir`` holds a run that has done all its steps."""
    latest = Checkpoints(Path(config.run.dir) / "checkpoints").latest
    return latest is not None and step_of(latest) >= kind.num_steps(config)


def check_run(kind: RunKind[Any], config: VampoConfig, resume_from: str | Path | None) -> Path | None:
    """Refuse a run that cannot begin or continue before hours go into what it needs.

    Returns:
        The checkpoint to continue from, None for a new run.

    Raises:
        ConfigError: ``run.dir`` holds another run, cannot be written to, or holds a model that the run needs and would
            delete; ``resume_from`` is a run of another kind or with other settings; or a setting does not go with FSDP.
        ValueError: there is no checkpoint at ``resume_from``, or the device does not have ``sampler.tail_dtype``.
    """
    if kind.makes == "predictor":
        check_sharding(config, new_accelerator())
    if kind is VAMPO and config.sampler.tail_dtype == "float8":
        check_float8(new_accelerator().device)
    folder = Path(config.run.dir)
    latest = Checkpoints(folder / "checkpoints").latest
    if latest is not None:
        marks = {"policy": SETTINGS_FILE, "action decoder": DECODER_SETTINGS}
        holds = next((what for what, name in marks.items() if (latest / name).is_file()), "predictor")
        if holds != kind.makes:
            what = f"{'an' if holds[0] == 'a' else 'a'} {holds}"
            raise ConfigError(f"run.dir is {str(folder)!r}, which holds the run of {what}: choose another folder")
        found = None if resume_from is None or holds == "policy" else _predictor_kind(folder)
        if found not in (None, kind):
            raise ConfigError(f"run.dir is {str(folder)!r}, which holds a {found.name} run, expected a {kind.name} run")
    for key, value in (("model.pretrained", config.model.pretrained), ("policy.predictor", config.policy.predictor)):
        if config.run.overwrite and value and Path(value).resolve().is_relative_to(folder.resolve()):
            raise ConfigError(f"run.overwrite is True with {key} = {value!r} in run.dir, which it would delete")
    return RunFolder.check(config, resume_from=resume_from)


def _predictor_kind(folder: Path) -> RunKind[EvalResult] | None:
    """The kind of a predictor's run, by the metrics of its iterations; None before the first."""
    rows = read_metrics(folder / "metrics.jsonl")
    return None if not rows else VAMPO if "rollout_s" in rows[-1] else PRETRAINING


def _stored_result(kind: RunKind[E], config: VampoConfig, checkpoint: Path) -> TrainResult[E]:
    """What the call that completed a run returned."""
    counters, best = read_counters(checkpoint), Checkpoints(checkpoint.parent).best
    return TrainResult(
        checkpoint=checkpoint.resolve(),
        best_checkpoint=checkpoint.resolve() if best is None else best,
        history=read_metrics(checkpoint.parent.parent / "metrics.jsonl"),
        before=kind.result_type.from_dict(counters["before"]),
        after=kind.result_type.from_dict(counters["last"]),
        config=config,
        interrupted=False,
    )


def _own_settings(config: VampoConfig) -> VampoConfig:
    """Settings to continue the run in ``run.dir`` with: its own, and those that only say how and where it runs."""
    folder = Path(config.run.dir)
    own = _with_overwrite(resumed(config, load_config(folder)), False)
    model = replace(own.model, pretrained=config.model.pretrained)
    own = replace(own, model=model, policy=replace(own.policy, predictor=config.policy.predictor))
    own.save(folder / "config.yaml")  # `check_run` compares with it
    return own


def _with_overwrite(config: VampoConfig, overwrite: bool) -> VampoConfig:
    return replace(config, run=replace(config.run, overwrite=overwrite))
