"""The whole chain: expert episodes, base predictor, VAMPO, policies on both, and what each gets done in the simulator.

Every stage has a folder beside ``run.dir`` that is named after all it depends on, its predictor's weights too. What
is there and complete is found again, what is there in part is continued, and a change makes new folders from there on.
"""

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

from vampo_core import api, envs
from vampo_core.config import ConfigError, PolicyConfig, VampoConfig
from vampo_core.evaluation.episodes import ClosedLoopResult
from vampo_core.evaluation.predictor import EvalResult
from vampo_core.pipeline.prepare import data_settings, digest, open_dataset, policy_predictor
from vampo_core.policy.vpp.evaluation import PolicyEvalResult
from vampo_core.policy.vpp.settings import ARCHITECTURE
from vampo_core.report.values import ChainResult
from vampo_core.training.checkpoint import Checkpoints, read_counters, step_of
from vampo_core.training.loop import TrainResult
from vampo_core.training.run_folder import continued

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
STAGES = ("data", "base", "vampo", "features", "policies", "closed_loop")
"""In their order; each needs those before it."""


def run_chain(config: VampoConfig | str | Path, *overrides: str) -> ChainResult:
    """Run what is missing of the chain.

    Call it from under ``if __name__ == "__main__":``, as simulators run in processes of their own.

    Args:
        config: a configuration, the path of one, or a preset's name, such as ``"pusht"``.
        overrides: settings to change, such as ``"policy.num_steps=1000"``.

    Raises:
        ConfigError: a setting is wrong, or there is no simulator.
        ImportError: a simulator is not installed or cannot render.
        SimulatorError: a simulator cannot be made or reset.
        KeyboardInterrupt: a stage was interrupted; the same call continues there.
    """
    chain = _Chain(api.configured(config, overrides))
    chain.run("closed_loop")
    best = chain.predictors["vampo"]
    latest = {name: chain.folders[f"policy-{name}"] / "checkpoints" / "latest" for name in POLICIES}
    return ChainResult(
        folders=chain.folders,
        base=EvalResult.from_dict(read_counters(best)["before"]),
        vampo=EvalResult.from_dict(read_counters(best)["last"]),
        best_iteration=step_of(best),
        policies={name: PolicyEvalResult.from_dict(read_counters(latest[name])["last"]) for name in POLICIES},
        closed_loop=chain.loops,
    )


def run_stages(config: VampoConfig | str | Path, *overrides: str, until: str) -> dict[str, Path]:
    """Run what is missing of the chain up to one of :data:`STAGES`; the rest is as in :func:`run_chain`.

    Returns:
        Folders by stage, of policies and features one each.
    """
    if until not in STAGES:
        raise ConfigError(f"until is {until!r}, expected one of {', '.join(STAGES)}")
    chain = _Chain(api.configured(config, overrides))
    chain.run(until)
    return chain.folders


class _Chain:
    """The stages, each a method that needs those before it, but for ``features``: policies compute what they lack."""

    def __init__(self, config: VampoConfig) -> None:
        _check(config)
        self.config = config
        self.folders: dict[str, Path] = {}
        self.predictors: dict[str, Path] = {}  # by the names of the policies that stand on them
        self.loops: dict[str, ClosedLoopResult] = {}
        self._contents: dict[str, str] = {}  # fingerprints of predictors
        evaluation = config.to_dict()["evaluation"]
        self._common = {"data": data_settings(config), "evaluation": evaluation, "seed": config.run.seed}
        digits = digest([config.data.env, config.data.resolution])
        self._closed_loop = Path(config.run.dir).parent / f"closed_loop-{digits}"

    def run(self, until: str) -> None:
        if until == "features":
            api.check_cacheable(self.config)
        if until == "closed_loop" and not self._closed_loop.exists():  # else simulators have been there before
            _check_simulators(self.config)
        for stage in STAGES[: STAGES.index(until) + 1]:
            if stage != "features" or until == stage:  # caches may have been deleted since policies were trained
                getattr(self, stage)()

    def data(self) -> None:
        """Recorded episodes."""
        self._note("data", open_dataset(self.config).root)

    def base(self) -> None:
        """The predictor that all starts from."""
        path = Path(self.config.model.pretrained or api.base_checkpoint(self.config))
        self._note("base", path)
        content = policy_predictor(self.config, path).fingerprint()
        for name in ("base", CONTROL):
            self.predictors[name], self._contents[name] = path, content

    def vampo(self) -> None:
        """Its post-training, of which policies see the best checkpoint."""
        config, settings = self.config, self.config.to_dict()
        started = replace(config, model=replace(config.model, pretrained=str(self.predictors["base"])))
        sections = {name: settings[name] for name in ("grpo", "sampler", "reward", "optim", "model")}
        sections["model"]["pretrained"] = None  # what lies there counts, not where
        # the interval of evaluations is among them: it decides which checkpoints can be the best
        depends_on = [self._contents["base"], sections, self._common, config.run.eval_every]
        folder = _stage("vampo", api.train, started, config.grpo.num_iterations, depends_on)
        self.folders["vampo"] = folder
        best = (folder / "checkpoints" / "best").resolve()
        self.predictors["vampo"] = best
        self._contents["vampo"] = policy_predictor(config, best).fingerprint()
        if step_of(best) == 0:
            print("vampo: held-out rewards did not rise, the best checkpoint is the base: both policies see the same")

    def features(self) -> None:
        """What the predictors show of every recorded frame."""
        for name in ("base", "vampo"):
            self._note(f"features-{name}", api.cache_features(replace(self.config, policy=self._policy(name))))

    def policies(self) -> None:
        """Policies that differ in what they see alone."""
        made: dict[str, Path] = {}
        for name in POLICIES:
            policy = self._policy(name)
            depends_on = [ARCHITECTURE, self._contents[name], asdict(replace(policy, predictor=None)), self._common]
            same = made.get(digest(depends_on))  # VAMPO's best checkpoint may be the base
            call, config = api.train_policy, replace(self.config, policy=policy)
            folder = same or _stage(f"policy-{name}", call, config, policy.num_steps, depends_on)
            made[digest(depends_on)] = self.folders[f"policy-{name}"] = folder

    def closed_loop(self) -> None:
        """What policies and expert get done, all in the same episodes."""
        self._note("closed_loop", self._closed_loop)
        for name in (*POLICIES, EXPERT):
            print(f"closed loop: {name}")
            policy = self.folders.get(f"policy-{name}")
            self.loops[name] = api.evaluate_policy(policy, self.config, output=self._closed_loop)

    def _policy(self, name: str) -> PolicyConfig:
        policy, features = self.config.policy, POLICIES[name]
        trains = policy.train_predictor and features == "predictive"  # the control does not run it
        return replace(policy, predictor=str(self.predictors[name]), features=features, train_predictor=trains)

    def _note(self, name: str, folder: Path) -> None:
        print(f"{name}: {folder}")
        self.folders[name] = folder


def _check(config: VampoConfig) -> None:
    """Tell what is wrong before hours go into the stages before it."""
    if config.data.env is None:
        raise ConfigError("data.env is None, expected the simulator that episodes are recorded and policies tried in")
    policy = config.policy
    if policy.predictor is not None:
        raise ConfigError(
            f"policy.predictor is {policy.predictor!r}, expected null: policies stand on the chain's own predictors, "
            "which start from model.pretrained"
        )
    if policy.features != "predictive":
        raise ConfigError(
            f"policy.features is {policy.features!r}, expected predictive: the control on latents is one of the "
            "chain's policies anyway"
        )
    num_executed, horizon = config.closed_loop.num_executed_steps, policy.action_horizon
    if num_executed is not None and num_executed > horizon:
        raise ConfigError(
            f"closed_loop.num_executed_steps is {num_executed}, expected at most policy.action_horizon = {horizon}"
        )


def _check_simulators(config: VampoConfig) -> None:
    for name in envs.split_names(config.data.env or ""):
        env = envs.make(name, image_size=config.data.resolution)
        try:
            env.reset(seed=0)  # pictures need more than the simulator
        except ImportError:  # says what to install
            raise
        except Exception as error:
            raise envs.SimulatorError(f"env {name!r} cannot be reset: {error}") from error
        finally:
            env.close()


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
    config = replace(config, run=run)
    if latest is not None:  # what the stage does not depend on may have changed since, and its predictor been moved
        own = continued(config, folder)
        model = replace(own.model, pretrained=config.model.pretrained)
        config = replace(own, model=model, policy=replace(own.policy, predictor=config.policy.predictor))
        config.save(folder / "config.yaml")
    result = call(config, resume_from=folder if latest else None)
    if result.interrupted:
        raise KeyboardInterrupt(f"interrupted in {folder}; the same call continues there")
    return folder
