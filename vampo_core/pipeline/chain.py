"""The whole chain: expert episodes, base predictor, arms made from it, policies on all of them, and their success.

Without a simulator, for data in a format of real robots, it ends with the policies and the held-out results of videos.

Every stage has a folder beside ``run.dir``, whose name follows from everything that decides its result, including its
predictor's weights. A complete stage is found again, an unfinished one is continued, and a change makes new folders
from the stage that it concerns on.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from vampo_core import envs
from vampo_core.config import ConfigError, PolicyConfig, VampoConfig, deciding
from vampo_core.config.chain_section import ArmName, PolicyName
from vampo_core.diffusion.sampler import EulerHybridSampler
from vampo_core.evaluation.episodes import ClosedLoopResult
from vampo_core.evaluation.predictor import EvalResult
from vampo_core.models.float8 import check_float8
from vampo_core.pipeline.arms import ARMS
from vampo_core.pipeline.base import base_checkpoint
from vampo_core.pipeline.clips import open_dataset
from vampo_core.pipeline.closed_loop import require_simulator
from vampo_core.pipeline.names import beside_run, digest
from vampo_core.pipeline.policy import cache_features, check_cacheable, check_one_dataset, imagined_policy
from vampo_core.pipeline.predictor import policy_predictor
from vampo_core.pipeline.runs import POLICY, VAMPO, E, RunKind, completed, find_continue_or_begin
from vampo_core.pipeline.waiting import made_by_one_job
from vampo_core.policy.evaluation import PolicyEvalResult
from vampo_core.policy.settings import trained_architecture
from vampo_core.report.values import ArmResult, ChainResult
from vampo_core.training.checkpoint import read_counters, step_of
from vampo_core.training.loop import TrainResult
from vampo_core.training.processes import new_accelerator

EXPERT = "expert"
"""Name of the simulator's expert among what acts."""
STAGES = ("data", "base", "vampo", "features", "policies", "closed_loop")
"""Stages in their order; each needs those before it. ``vampo`` makes all arms."""


@dataclass(frozen=True)
class Calls:
    """The calls that the stages make; they live above this module, in :mod:`vampo_core.api`."""

    train: Callable[..., TrainResult[EvalResult]]
    pretrain: Callable[..., TrainResult[EvalResult]]
    train_policy: Callable[..., TrainResult[PolicyEvalResult]]
    evaluate: Callable[..., EvalResult]
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
        self.predictors: dict[ArmName, Path] = {}  # by arm
        self.loops: dict[str, ClosedLoopResult] = {}
        self._contents: dict[ArmName, str] = {}  # fingerprints of predictors
        self._sampler: EulerHybridSampler | None = None  # of the base
        self._base_result: EvalResult | None = None
        self._made: dict[str, Path] = {}  # folders by the digest of what decides them
        self._closed_loop = None
        if config.simulator is not None:
            self._closed_loop = beside_run(config, f"closed_loop-{digest([config.simulator, config.data.resolution])}")

    def finish(self) -> ChainResult:
        """Run what is missing of all stages."""
        self.run("closed_loop")
        trained = [name for name, (_, policy) in self.config.chain.controllers.items() if policy != "imagined"]
        latest = {name: self.folders[f"policy-{name}"] / "checkpoints" / "latest" for name in trained}
        return ChainResult(
            folders=self.folders,
            arms={name: self._arm_result(name) for name in self.config.chain.arms},
            policies={name: PolicyEvalResult.from_dict(read_counters(latest[name])["last"]) for name in trained},
            closed_loop=self.loops,
        )

    def run(self, until: str) -> None:
        """Run what is missing of the stages up to one of :data:`STAGES`."""
        if until not in STAGES:
            raise ConfigError(f"until is {until!r}, expected one of {', '.join(STAGES)}")
        if until == "features":
            check_cacheable(self.config)
            if not self._names("predictive"):
                raise ConfigError(
                    f"chain.policies is {list(self.config.chain.policies)}, expected predictive among them: the others "
                    "need no features"
                )
        # a folder shows that the simulators have worked before
        if until == "closed_loop" and self._closed_loop is not None and not self._closed_loop.exists():
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
        predictor = policy_predictor(self.config, path)
        self._sampler, content = (
            predictor.sampler(**self.config.sampler.overrides(cheap_tail=True)),
            predictor.fingerprint(),
        )
        for name in self.config.chain.arms:
            if ARMS[name].kind is None:
                self.predictors[name], self._contents[name] = path, content

    def vampo(self) -> None:
        """The arms: what becomes of the base. Policies see the best checkpoint of each."""
        assert self._sampler is not None
        started = replace(self.config, model=replace(self.config.model, pretrained=str(self.predictors["base"])))
        for name in self.config.chain.arms:
            arm = ARMS[name]
            if arm.kind is None:
                continue
            config = arm.configure(started, self._sampler)
            decided_by = [self._contents["base"], arm.decided_by(config)]
            train = self.calls.train if arm.kind is VAMPO else self.calls.pretrain
            folder = self._made.get(digest(decided_by)) or _stage(name, arm.kind, train, config, decided_by)
            self._made[digest(decided_by)] = self.folders[name] = folder  # rewards may be the paper's anyway
            best = (folder / "checkpoints" / "best").resolve()
            self.predictors[name] = best
            self._contents[name] = policy_predictor(self.config, best).fingerprint()
            if step_of(best) == 0:
                print(f"{name}: held-out results did not get better, the best checkpoint is the base: policies see it")

    def features(self) -> None:
        """Features of every recorded frame, from the predictors of all arms."""
        for name in self._names("predictive"):
            self._note(f"features-{name}", cache_features(replace(self.config, policy=self._policy(name))))

    def policies(self) -> None:
        """Policies on all arms; those of one kind differ only in their predictor."""
        for name, (arm, policy) in self.config.chain.controllers.items():
            key, config = f"policy-{name}", replace(self.config, policy=self._policy(name))
            scale = self._action_scale() if ARMS[arm].scales_actions else 1.0
            decided_by = [trained_architecture(config.policy.kind), self._contents[arm], deciding(config, "policy")]
            if policy == "imagined":
                decided_by += [scale, config.reward.action_decoder]
            folder = self._made.get(digest(decided_by))  # an arm's best checkpoint may be the base
            if folder is None and policy == "imagined":
                folder = self._imagined(beside_run(config, f"{key}-{digest(decided_by)}"), config, arm, scale)
            elif folder is None:
                folder = _stage(key, POLICY, self.calls.train_policy, config, decided_by)
            self._made[digest(decided_by)] = self.folders[key] = folder

    def closed_loop(self) -> None:
        """Episodes of all policies and of the expert if there is one, with the same seeds; none without a simulator."""
        if self._closed_loop is None:
            print("closed loop: none, as closed_loop.env is null")
            return
        self._note("closed_loop", self._closed_loop)
        acting = [*self.config.chain.controllers]
        if (self._closed_loop / EXPERT).exists() or _have_experts(self.config):
            acting.append(EXPERT)
        for name in acting:
            print(f"closed loop: {name}")
            policy = self.folders.get(f"policy-{name}")
            self.loops[name] = self.calls.evaluate_policy(policy, self.config, output=self._closed_loop)

    def _imagined(self, folder: Path, config: VampoConfig, arm: ArmName, scale: float) -> Path:
        """The folder of a policy that is put together, unless it is there: it is whole or absent at any time."""
        with made_by_one_job(folder):
            is_there = folder.exists()
            print(f"{folder.name.rpartition('-')[0]}: {folder}{' (found)' if is_there else ''}")
            return folder if is_there else imagined_policy(config, self.predictors[arm], folder, action_scale=scale)

    def _names(self, kind: PolicyName) -> list[str]:
        """Names of the policies of one kind."""
        return [name for name, (_, policy) in self.config.chain.controllers.items() if policy == kind]

    def _policy(self, name: str) -> PolicyConfig:
        arm, kind = self.config.chain.controllers[name]
        policy = replace(self.config.policy, kind="vpp", predictor=str(self.predictors[arm]))
        if kind == "latents":
            return replace(policy, features="latents", train_predictor=False)  # the control does not run it
        return policy if kind == "predictive" else replace(policy, kind="inverse_dynamics")

    def _arm_result(self, name: ArmName) -> ArmResult:
        arm, predictor = ARMS[name], self.predictors[name]
        if arm.kind is None:
            return ArmResult(title=arm.title, predictor=predictor, evaluation=self._evaluated_base())
        return ArmResult(
            title=arm.title,
            predictor=predictor,
            evaluation=EvalResult.from_dict(read_counters(predictor)["last"]),
            num_steps=step_of(predictor),
            unit="iteration" if arm.kind is VAMPO else "update",
        )

    def _evaluated_base(self) -> EvalResult:
        """Held-out metrics of the base, which every training measures before it begins."""
        if self._base_result is None:
            trained = [self.predictors[name] for name in self.config.chain.arms if ARMS[name].kind is not None]
            if trained:  # the last one measures what its own rewards need, too
                self._base_result = EvalResult.from_dict(read_counters(trained[-1])["before"])
            else:
                self._base_result = self.calls.evaluate(self.predictors["base"], self.config)
        return self._base_result

    def _action_scale(self) -> float:
        """What makes the base's decoded actions as long as the expert's."""
        ratio = getattr(self._evaluated_base(), "action_ratio", None)
        if ratio is None:
            raise ConfigError("chain.arms has base_scaled, but held-out action_ratio was not measured")
        return 1 / ratio.mean

    def _note(self, name: str, folder: Path) -> None:
        print(f"{name}: {folder}")
        self.folders[name] = folder


def _check(config: VampoConfig) -> None:
    """Refuse settings before hours go into the stages before those that need them."""
    if config.data.format == "recorded":  # what was recorded in a simulator can be tried in it
        require_simulator(config)
    check_one_dataset(config)
    if config.sampler.tail_dtype == "float8":
        check_float8(new_accelerator().device)
    policy = config.policy
    if policy.predictor is not None:
        raise ConfigError(
            f"policy.predictor is {policy.predictor!r}, expected null: policies stand on the chain's own predictors, "
            "which start from model.pretrained"
        )
    if policy.features != "predictive":
        raise ConfigError(
            f"policy.features is {policy.features!r}, expected predictive: chain.policies says whether there is a "
            "control on latents"
        )
    if policy.kind != "vpp" and "imagined" not in config.chain.policies:
        raise ConfigError(
            f"policy.kind is {policy.kind!r} with chain.policies = {list(config.chain.policies)}, expected vpp, or "
            "imagined among them"
        )
    if "imagined" in config.chain.policies and config.data.sampling != "stride":
        raise ConfigError(
            f"data.sampling is {config.data.sampling!r} with imagined in chain.policies, expected stride: actions are "
            "decoded between frames at a fixed distance"
        )
    horizons = {"imagined": ("data.stride x (data.num_frames - 1)", config.data.stride * (config.data.num_frames - 1))}
    num_executed = config.closed_loop.num_executed_steps
    for kind in config.chain.policies:
        key, horizon = horizons.get(kind, ("policy.action_horizon", policy.action_horizon))
        if num_executed is not None and num_executed > horizon:
            raise ConfigError(f"closed_loop.num_executed_steps is {num_executed}, expected at most {key} = {horizon}")


def _check_simulators(config: VampoConfig) -> None:
    for name in envs.expand_names(require_simulator(config)):
        env = envs.make(name, image_size=config.data.resolution)
        try:
            env.reset(seed=0)  # images need more than the simulator
        except ImportError:  # says what to install
            raise
        except Exception as error:
            raise envs.SimulatorError(f"env {name!r} cannot be reset: {error}") from error
        finally:
            env.close()


def _have_experts(config: VampoConfig) -> bool:
    """Whether every simulator brings an expert."""
    for name in envs.expand_names(require_simulator(config)):
        env = envs.make(name, image_size=config.data.resolution)
        try:
            if not envs.has_expert(env):
                return False
        finally:
            env.close()
    return True


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
