"""The whole chain: expert episodes, base predictor, VAMPO, policies on both, and what each gets done in the simulator.

Every stage has a folder beside ``run.dir`` that is named after all it depends on, its predictor's weights too. What
is there and complete is found again, what is there in part is continued, and a change makes new folders from there on.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from vampo_core import api
from vampo_core.checkpoint import Checkpoints, read_counters, step_of
from vampo_core.config import ConfigError, VampoConfig, load_config
from vampo_core.evaluation import EvalResult
from vampo_core.policy.closed_loop_results import ClosedLoopResult
from vampo_core.policy.evaluation import PolicyEvalResult
from vampo_core.policy.settings import ARCHITECTURE
from vampo_core.prepare import data_settings, digest, load_predictor
from vampo_core.training_run import TrainResult

CONTROL, EXPERT = "latents", "expert"
POLICIES: dict[str, Literal["predictive", "latents"]] = {
    "base": "predictive",
    "vampo": "predictive",
    CONTROL: "latents",
}
"""Policies by name, each with what it sees: features of the base, of the post-trained predictor, or no prediction."""
DESCRIPTIONS = {
    "base": "features of the base",
    "vampo": "features after VAMPO",
    CONTROL: "the current frame's latents alone",
    EXPERT: "the simulator's expert",
}
"""What acts in the closed loop, in words: policies by what they see, and the expert."""


@dataclass(frozen=True)
class ChainResult:
    """What the chain has come to."""

    folders: dict[str, Path]  # of runs, by stage
    base: EvalResult
    vampo: EvalResult  # of the best checkpoint, which the policy sees
    best_iteration: int  # which that is; 0 for the base itself
    policies: dict[str, PolicyEvalResult]  # by name, as in POLICIES
    closed_loop: dict[str, ClosedLoopResult]  # by name, and the expert's


def run_chain(config: VampoConfig | str | Path, *overrides: str) -> ChainResult:
    """Run what is missing of the chain.

    Call it from under ``if __name__ == "__main__":``, as simulators run in processes of their own.

    Args:
        config: a configuration, the path of one, or a preset's name, such as ``"pusht"``.
        overrides: settings to change, such as ``"policy.num_steps=1000"``.

    Raises:
        ConfigError: a setting is wrong, or there is no simulator.
        KeyboardInterrupt: a stage was interrupted; the same call continues there.
    """
    config = load_config(config, *overrides)
    if config.data.env is None:
        raise ConfigError("data.env is None, expected the simulator that episodes are recorded and policies tried in")
    num_executed, horizon = config.closed_loop.num_executed_steps, config.policy.action_horizon
    if num_executed is not None and num_executed > horizon:  # or the first closed loop says so
        raise ConfigError(
            f"closed_loop.num_executed_steps is {num_executed}, expected at most policy.action_horizon = {horizon}"
        )
    settings = config.to_dict()
    common = {"data": data_settings(config), "evaluation": settings["evaluation"], "seed": config.run.seed}
    base = Path(config.model.pretrained or api.base_checkpoint(config))
    started = replace(config, model=replace(config.model, pretrained=str(base)))
    sections = {name: settings[name] for name in ("grpo", "sampler", "reward", "optim", "model")}
    sections["model"]["pretrained"] = None  # what lies there counts, not where
    content = load_predictor(config, base).fingerprint()
    contents = {"base": content, CONTROL: content}
    depends_on: list[object] = [content, sections, common]
    folders = {"vampo": _stage("vampo", api.train, started, config.grpo.num_iterations, depends_on)}
    seen = {"base": base, "vampo": (folders["vampo"] / "checkpoints" / "best").resolve(), CONTROL: base}
    contents["vampo"] = load_predictor(config, seen["vampo"]).fingerprint()
    best_iteration = step_of(seen["vampo"])
    if best_iteration == 0:
        print("vampo: held-out rewards did not rise, the best checkpoint is the base: both policies see the same")
    for name, features in POLICIES.items():
        policy = replace(config.policy, predictor=str(seen[name]), features=features)
        depends_on = [ARCHITECTURE, contents[name], asdict(replace(policy, predictor=None)), common]
        stage = f"policy-{name}"
        folders[stage] = _stage(stage, api.train_policy, replace(config, policy=policy), policy.num_steps, depends_on)
    closed_loop = {}
    for name in (*POLICIES, EXPERT):
        print(f"closed loop: {name}")
        checkpoint = folders.get(f"policy-{name}")
        output = Path(config.run.dir).parent / f"closed_loop-{digest([config.data.env, config.data.resolution])}"
        closed_loop[name] = api.evaluate_policy(checkpoint, config, output=output)
    before, after = (EvalResult.from_dict(read_counters(seen["vampo"])[key]) for key in ("before", "last"))
    latest = {name: folders[f"policy-{name}"] / "checkpoints" / "latest" for name in POLICIES}
    policies = {name: PolicyEvalResult.from_dict(read_counters(latest[name])["last"]) for name in POLICIES}
    return ChainResult(folders, before, after, best_iteration, policies, closed_loop)


def _stage(
    name: str, call: Callable[..., TrainResult[Any]], config: VampoConfig, num_steps: int, depends_on: object
) -> Path:
    """The folder of a training run, which is begun, continued, or found complete."""
    folder = Path(config.run.dir).parent / f"{name}-{digest(depends_on)}"
    latest = Checkpoints(folder / "checkpoints").latest
    if latest is not None and step_of(latest) >= num_steps:
        print(f"{name}: {folder} (found)")
        return folder
    print(f"{name}: {folder}" + (" (continued)" if latest else ""))
    run = replace(config.run, dir=str(folder), overwrite=folder.exists() and latest is None)
    result = call(replace(config, run=run), resume_from=folder if latest else None)
    if result.interrupted:
        raise KeyboardInterrupt(f"interrupted in {folder}; the same call continues there")
    return folder
