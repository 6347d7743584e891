"""A policy, or the simulators' experts, in the simulators that a configuration names."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch

from vampo_core.config import ConfigError, VampoConfig
from vampo_core.evaluation.closed_loop import evaluate_closed_loop
from vampo_core.evaluation.episode_videos import Imagine
from vampo_core.evaluation.episodes import ClosedLoopResult
from vampo_core.evaluation.imagination import ActedImagination, Imagination
from vampo_core.pipeline.names import digest
from vampo_core.policy.base import Policy
from vampo_core.policy.controller import PolicyController
from vampo_core.policy.inverse_dynamics.policy import InverseDynamicsPolicy
from vampo_core.training.processes import new_accelerator


def require_simulator(config: VampoConfig) -> str:
    """The simulators that policies act in, by name.

    Raises:
        ConfigError: there are none.
    """
    if config.simulator is None:
        raise ConfigError("closed_loop.env and data.env are null, expected the simulator to act in")
    return config.simulator


def act_in_simulators(
    checkpoint: str | Path | None, config: VampoConfig, output: str | Path | None = None
) -> ClosedLoopResult:
    """Let a policy, or with None the simulators' experts, act in seeded episodes; see
    :func:`vampo_core.evaluate_policy`.
    """
    settings, env = config.closed_loop, require_simulator(config)
    policy, controller, name = None, None, "expert"
    if checkpoint is not None:
        policy = Policy.from_pretrained(checkpoint, dtype=config.model.dtype).to(new_accelerator().device).eval()
        controller = _controller(policy, config)
        name = _name(policy, controller)
    if settings.record and checkpoint is None:
        print("note: the expert's episodes are not recorded by closed_loop.record; `vampo record` does that")
    parent = Path(config.run.dir) / "closed_loop" if output is None else Path(output)
    # one thread by default: it is enough for a policy, see PolicyController, and simulators use the other cores
    with _num_threads(config.run.num_threads or 1):
        return evaluate_closed_loop(
            controller,
            env,
            num_episodes=settings.num_episodes,
            seed=settings.seed,
            first_seed=settings.first_seed,
            num_workers=settings.num_workers,
            num_envs=settings.num_envs,
            begin_every=1 if controller is None else controller.num_executed_steps,
            env_kwargs={"image_size": config.data.resolution},
            output=parent / name,
            controller_id=name,
            num_videos=settings.num_videos,
            record=settings.record and controller is not None,
            imagine=None if policy is None or controller is None else _imagination(policy, controller, config),
        )


def _controller(policy: Policy, config: VampoConfig) -> PolicyController:
    """The policy as ``closed_loop`` lets it act."""
    settings = config.closed_loop
    return PolicyController(
        policy,
        num_executed_steps=settings.num_executed_steps,
        temporal_ensemble=settings.temporal_ensemble,
        batch_size=settings.num_envs,
    )


def _name(policy: Policy, controller: PolicyController) -> str:
    """Name of a policy's folder: it changes with the weights, and with a way to act that is not the policy's own."""
    own, acting = ((acts.num_executed_steps, acts.temporal_ensemble) for acts in (policy.settings, controller))
    return policy.fingerprint() + ("" if acting == own else f"-{digest(acting)}")


def _imagination(policy: Policy, controller: PolicyController, config: VampoConfig) -> Imagine | None:
    """What shows the policy's predictions in videos of episodes, where the policy makes any that can be shown."""
    if not policy.predictor.codec.can_decode:
        return None
    if isinstance(policy, InverseDynamicsPolicy):
        return ActedImagination(
            policy.predictor,
            policy.imagine,
            stride=policy.decoder.settings.num_actions,
            num_executed_steps=controller.num_executed_steps,
        )
    has_stride = config.data.sampling == "stride"  # clips of whole episodes have none
    if policy.settings.uses_predictions and has_stride:
        return Imagination(policy.predictor, stride=config.data.stride)
    return None


@contextlib.contextmanager
def _num_threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
