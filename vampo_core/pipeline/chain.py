"""The whole chain: expert episodes, base predictor, VAMPO, policies on both, and their success in the simulator.

Every stage has a folder beside ``run.dir``, whose name follows from everything that decides its result, including its
predictor's weights. A complete stage is found again, an unfinished one is continued, and a change makes new folders
from the stage that it concerns on.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from vampo_core import envs
from vampo_core.config import ConfigError, PolicyConfig, VampoConfig, deciding
from vampo_core.evaluation.episodes import ClosedLoopResult
from vampo_core.evaluation.predictor import EvalResult
from vampo_core.pipeline.base import base_checkpoint
from vampo_core.pipeline.clips import open_dataset
from vampo_core.pipeline.closed_loop import require_simulator
from vampo_core.pipeline.names import beside_run, digest
from vampo_core.pipeline.policy import cache_features, check_cacheable, check_one_dataset
from vampo_core.pipeline.predictor import policy_predictor
from vampo_core.pipeline.runs import POLICY, VAMPO, E, RunKind, completed, find_continue_or_begin
from vampo_core.policy.evaluation import PolicyEvalResult
from vampo_core.policy.settings import trained_architecture
from vampo_core.report.values import ChainResult
from vampo_core.training.checkpoint import read_counters, step_of
from vampo_core.training.loop import TrainResult

CONTROL, EXPERT = "latents", "expert"
POLICIES: dict[str, Literal["predictive", "latents"]] = {
    "base": "predictive",
    "vampo": "predictive",
    CONTROL: "latents",
}
"""What each policy sees: features of the base, features of the post-trained predictor, or no prediction."""
DESCRIPTIONS = {
    "base": "features of the base",
    "vampo": "features after VAMPO",
    CONTROL: "only the current frame's latents",
    EXPERT: "the simulator's expert",
}
"""What acts in the closed loop, in words."""
STAGES = ("data", "base", "vampo", "features", "policies", "closed_loop")
"""Stages in their order; each needs those before it."""


@dataclass(frozen=True)
class Calls:
    """The calls that the stages make; they live above this module, in :mod:`vampo_core.api`."""

    train: Callable[..., TrainResult[EvalResult]]
    train_policy: Callable[..., TrainResult[PolicyEvalResult]]
    evaluate_policy: Callable[..., ClosedLoopResult]


class Chain:
    """The stages of the chain: each is a method that needs those before it.

    ``features`` is the exception: policies compute the features that are missing.

    Args:
        config: configuration of all stages.
        calls: calls that train and evaluate.

    Raises:
        ConfigError: a setting is wrong for a chain.
    """

    def __init__(self, config: VampoConfig, calls: Calls) -> None:
        _check(config)
        self.config, self.calls = config, calls
        self.folders: dict[str, Path] = {}
        self.predictors: dict[str, Path] = {}  # by the names of the policies that stand on them
        self.loops: dict[str, ClosedLoopResult] = {}
        self._contents: dict[str, str] = {}  # fingerprints of predictors
        digits = digest([require_simulator(config), config.data.resolution])
        self._closed_loop = beside_run(config, f"closed_loop-{digits}")

    def finish(self) -> ChainResult:
        """Run what is missing of all stages."""
        self.run("closed_loop")
        best = self.predictors["vampo"]
        latest = {name: self.folders[f"policy-{name}"] / "checkpoints" / "latest" for name in POLICIES}
        return ChainResult(
            folders=self.folders,
            base=EvalResult.from_dict(read_counters(best)["before"]),
            vampo=EvalResult.from_dict(read_counters(best)["last"]),
            best_iteration=step_of(best),
            policies={name: PolicyEvalResult.from_dict(read_counters(latest[name])["last"]) for name in POLICIES},
            closed_loop=self.loops,
        )

    def run(self, until: str) -> None:
        """Run what is missing of the stages up to one of :data:`STAGES`."""
        if until not in STAGES:
            raise ConfigError(f"until is {until!r}, expected one of {', '.join(STAGES)}")
        if until == "features":
            check_cacheable(self.config)
        if until == "closed_loop" and not self._closed_loop.exists():  # otherwise the simulators have worked before
            _check_simulators(self.config)
        for stage in STAGES[: STAGES.index(until) + 1]:
            if stage != "features" or until == stage:  # caches may have been deleted since policies were trained
                getattr(self, stage)()

    def data(self) -> None:
        """Recorded episodes."""
        self._note("data", open_dataset(self.config).root)

    def base(self) -> None:
        """The predictor that everything starts from."""
        path = Path(self.config.model.pretrained or base_checkpoint(self.config))
        self._note("base", path)
        content = policy_predictor(self.config, path).fingerprint()
        for name in ("base", CONTROL):
            self.predictors[name], self._contents[name] = path, content

    def vampo(self) -> None:
        """The post-training of the base. Policies see its best checkpoint."""
        config = self.config
        started = replace(config, model=replace(config.model, pretrained=str(self.predictors["base"])))
        decided_by = [self._contents["base"], deciding(config, "vampo")]
        folder = _stage("vampo", VAMPO, self.calls.train, started, decided_by)
        self.folders["vampo"] = folder
        best = (folder / "checkpoints" / "best").resolve()
        self.predictors["vampo"] = best
        self._contents["vampo"] = policy_predictor(config, best).fingerprint()
        if step_of(best) == 0:
            print("vampo: held-out rewards did not rise, the best checkpoint is the base: both policies see the same")

    def features(self) -> None:
        """Features of every recorded frame, from both predictors."""
        for name in ("base", "vampo"):
            self._note(f"features-{name}", cache_features(replace(self.config, policy=self._policy(name))))

    def policies(self) -> None:
        """Policies that differ only in what they see."""
        made: dict[str, Path] = {}
        for name in POLICIES:
            config = replace(self.config, policy=self._policy(name))
            decided_by = [trained_architecture(config.policy.kind), self._contents[name], deciding(config, "policy")]
            same = made.get(digest(decided_by))  # VAMPO's best checkpoint may be the base
            folder = same or _stage(f"policy-{name}", POLICY, self.calls.train_policy, config, decided_by)
            made[digest(decided_by)] = self.folders[f"policy-{name}"] = folder

    def closed_loop(self) -> None:
        """Episodes of all policies and of the expert, which have the same seeds."""
        self._note("closed_loop", self._closed_loop)
        for name in (*POLICIES, EXPERT):
            print(f"closed loop: {name}")
            policy = self.folders.get(f"policy-{name}")
            self.loops[name] = self.calls.evaluate_policy(policy, self.config, output=self._closed_loop)

    def _policy(self, name: str) -> PolicyConfig:
        policy, features = self.config.policy, POLICIES[name]
        trains = policy.train_predictor and features == "predictive"  # the control does not run it
        return replace(policy, predictor=str(self.predictors[name]), features=features, train_predictor=trains)

    def _note(self, name: str, folder: Path) -> None:
        print(f"{name}: {folder}")
        self.folders[name] = folder


def _check(config: VampoConfig) -> None:
    """Refuse settings before hours go into the stages before those that need them."""
    require_simulator(config)
    check_one_dataset(config)
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
    for name in envs.split_names(require_simulator(config)):
        env = envs.make(name, image_size=config.data.resolution)
        try:
            env.reset(seed=0)  # images need more than the simulator
        except ImportError:  # says what to install
            raise
        except Exception as error:
            raise envs.SimulatorError(f"env {name!r} cannot be reset: {error}") from error
        finally:
            env.close()


def _stage(
    name: str,
    kind: RunKind[E],
    train: Callable[..., TrainResult[E]],
    config: VampoConfig,
    decided_by: object,
) -> Path:
    """The folder of a training run, which is found complete, continued or begun."""
    folder = beside_run(config, f"{name}-{digest(decided_by)}")
    config = replace(config, run=replace(config.run, dir=str(folder)))
    completed(find_continue_or_begin(kind, config, train, label=name, named=True))
    return folder
