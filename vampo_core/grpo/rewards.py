"""Rewards: how well a predicted latent video follows the expert's, per frame.

A reward function takes ``pred [B, G, F, C, H, W]``, ``target [B, F, C, H, W]`` and the batch (a dict with at least
``instruction``, ``clip_id`` and ``episode_id``, lists of length B) and returns rewards ``[B, G, F]``, or a
:class:`~vampo_core.ops.LatentReward`; with ``grpo.credit = "pathwise"`` they have to be differentiable in ``pred``. It
may be any callable; its ``__name__`` is the name under which it is logged.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from vampo_core.config import ConfigError, RewardConfig
from vampo_core.evaluation.actions import Decoders, action_errors
from vampo_core.models.codecs.base import Codec, per_latent_frame
from vampo_core.ops import LatentReward, latent_reward

RewardFunction = Callable[[Tensor, Tensor, Mapping[str, Any]], Tensor | LatentReward]


@dataclass(frozen=True)
class Rewards:
    """Weighted sum of several rewards, and each of them."""

    total: Tensor  # [B, G, F], with gradient where the videos have one
    parts: dict[str, Tensor]  # name -> [B, G, F], before weighting

    def detached(self) -> "Rewards":
        """The same without gradient."""
        return replace(self, total=self.total.detach())

    def without(self, num_frames: int) -> "Rewards":
        """The same without the first frames, where these were not predicted."""
        parts = {name: part[:, :, num_frames:] for name, part in self.parts.items()}
        return Rewards(self.total[:, :, num_frames:], parts)


def latent(
    pred: Tensor,  # [B, G, F, C, H, W]
    target: Tensor,  # [B, F, C, H, W]
    batch: Mapping[str, Any],
    *,
    l1_weight: float = 1.0,
    cosine_weight: float = 1.0,
) -> LatentReward:
    """VAMPO's reward: negative L1 distance and cosine similarity of the latents."""
    if pred.requires_grad:  # the operator gives no gradient
        return _differentiable_latent_reward(pred, target, l1_weight, cosine_weight)
    return latent_reward(pred, target, l1_weight=l1_weight, cosine_weight=cosine_weight)


def _differentiable_latent_reward(
    pred: Tensor, target: Tensor, l1_weight: float = 1.0, cosine_weight: float = 1.0
) -> LatentReward:
    target = target.unsqueeze(1)
    l1 = (pred - target).abs().mean((3, 4, 5))
    cosine = torch.cosine_similarity(pred.flatten(3), target.flatten(3), dim=-1)
    return LatentReward(reward=cosine_weight * cosine - l1_weight * l1, l1=l1, cosine=cosine)


def motion(
    pred: Tensor,  # [B, G, F, C, H, W]
    target: Tensor,  # [B, F, C, H, W]
    batch: Mapping[str, Any],
) -> Tensor:  # [B, G, F]
    """The latent reward of what moves: frame-to-frame differences, so that a static background counts for nothing.

    Frame f is credited with the change from f - 1 to f, the first one with the change to its successor.
    """
    if pred.shape[2] < 2:
        raise ValueError(f"pred has {pred.shape[2]} frames, expected at least 2: motion is the change between frames")
    reward = latent(pred.diff(dim=2), target.diff(dim=1), batch).reward  # [B, G, F - 1]
    return torch.cat([reward[:, :, :1], reward], dim=2)


def action(decoders: Decoders) -> RewardFunction:
    """Negative error of the actions that frozen decoders read from the predicted video, against the expert's.

    As verifiable as a distance to the expert's video, and it counts what the robot would do: a blurred prediction has a
    small distance and the wrong actions.

    Args:
        decoders: a decoder for each dataset, by name.
    """

    def action_l1(pred: Tensor, target: Tensor, batch: Mapping[str, Any]) -> Tensor:
        return -action_errors(decoders, pred, batch)

    return action_l1


def moving(
    pred: Tensor,  # [B, G, F, C, H, W]
    target: Tensor,  # [B, F, C, H, W]
    batch: Mapping[str, Any],
) -> Tensor:  # [B, G, F]
    """Negative L1 distance where the expert's video moves, so that a static background counts for little.

    A place's weight is proportional to the change of the expert's latents there, since the first frame plus since the
    previous one; weights have mean 1 over the places of a frame. A frame where nothing moves counts uniformly.
    """
    change = (target - target[:, :1]).abs().mean(2)  # [B, F, H, W]
    change[:, 1:] += target.diff(dim=1).abs().mean(2)
    mean = change.mean((2, 3), keepdim=True)
    weight = torch.where(mean > 0, change / mean, 1.0).unsqueeze(1)
    return -(weight * (pred - target.unsqueeze(1)).abs().mean(3)).mean((3, 4))


def pixel(decode: Callable[[Tensor], Tensor], temporal_ratio: int = 1) -> RewardFunction:
    """Negative L1 distance after decoding: ``decode`` maps videos ``[B, F, C, h, w]`` to frames ``[B, T, 3, H, W]``.

    Where a codec gives ``temporal_ratio`` frames for each latent frame after the first, it is credited with their mean.
    Clips stay apart in what it is given, because SVD's decoder looks at neighbouring frames.
    """

    def pixel_l1(pred: Tensor, target: Tensor, batch: Mapping[str, Any]) -> Tensor:
        expert = decode(target)  # [B, T, 3, H, W]
        error = [(decode(pred[:, g]) - expert).abs().flatten(2).mean(-1) for g in range(pred.shape[1])]
        return -per_latent_frame(torch.stack(error, dim=1), temporal_ratio)

    return pixel_l1


RESERVED = {
    *(
        "iteration",
        "loss",
        "reward_mean",
        "reward_std",
        "zero_std_fraction",
        "ratio_mean",
        "ratio_max_dev",
        "approx_kl",
    ),
    *("clip_fraction", "kl", "anchor", "grad_norm", "lr", "rollout_s", "reward_s", "update_s", "samples_per_s"),
    *("peak_memory_mb", "loss_scale", "num_skipped", "data_s", "rounding_fraction"),
    *("replay_max_dev", "replay_mismatch"),
}
"""Metrics of an iteration that are not rewards."""


def name_of(function: RewardFunction) -> str:
    """The name under which a reward function is logged."""
    return getattr(function, "__name__", type(function).__name__)


def check_names(functions: Sequence[tuple[RewardFunction, float]]) -> None:
    """Refuse rewards that would overwrite another metric.

    Raises:
        ValueError: a function has the name of a metric.
    """
    for function, _ in functions:
        name = name_of(function)
        if name in RESERVED or name.startswith("eval_"):
            raise ValueError(f"reward function is named {name!r}, which is a metric's name, expected another __name__")


def evaluate_rewards(
    functions: Sequence[tuple[RewardFunction, float]],
    pred: Tensor,  # [B, G, F, C, H, W]
    target: Tensor,  # [B, F, C, H, W]
    batch: Mapping[str, Any],
    *,
    check_gradient: bool = False,
) -> Rewards:
    """Weighted sum of reward functions; each is logged under its name, and an L1 and cosine it reports under theirs.

    Args:
        functions: functions and their weights.
        pred: predicted videos; the sum has a gradient if they have one.
        target: the experts' videos.
        batch: the clips.
        check_gradient: whether to differentiate each reward, to find one that does not depend on ``pred``.

    Raises:
        ValueError: a function returns anything but one reward per clip, generation and frame, writes into its
            arguments, or has no gradient with respect to ``pred``; or two are logged under one name.
    """
    total = pred.new_zeros(pred.shape[:3])
    parts: dict[str, Tensor] = {}
    for function, weight in functions:
        name, seen = name_of(function), _versions(pred, target, batch)
        try:
            result = function(pred, target, dict(batch))
        except RuntimeError as error:
            if not pred.requires_grad:
                raise
            raise RuntimeError(
                f"reward {name} fails on videos with a gradient (grpo.credit = 'pathwise'): {error}"
            ) from error
        if _versions(pred, target, batch) != seen:
            raise ValueError(f"reward {name} wrote into its arguments, which other rewards read, expected copies")
        reported = {}
        if isinstance(result, LatentReward):
            reported = {"l1": result.l1.detach(), "cosine": result.cosine.detach()}
            result = result.reward
        if taken := sorted(parts.keys() & {name, *reported}):
            raise ValueError(f"two rewards are logged as {taken[0]}, expected different names: set their __name__")
        parts |= reported
        if not isinstance(result, Tensor) or result.shape != total.shape:
            given = tuple(result.shape) if isinstance(result, Tensor) else type(result).__name__
            raise ValueError(f"reward {name} returned {given}, expected a tensor [B, G, F] = {tuple(total.shape)}")
        if check_gradient and not _depends_on(result, pred):
            raise ValueError(
                f"reward {name} has no gradient with respect to pred, expected one with grpo.credit = 'pathwise'; the "
                "other kinds of credit need none"
            )
        parts[name] = result.detach().to(total)
        total = total + weight * result.to(total)
    return Rewards(total, parts)


def _depends_on(result: Tensor, pred: Tensor) -> bool:
    """Whether a reward has a gradient with respect to the videos."""
    if not result.requires_grad:
        return False
    (gradient,) = torch.autograd.grad(result.sum(), pred, retain_graph=True, allow_unused=True)
    return gradient is not None


def _versions(pred: Tensor, target: Tensor, batch: Mapping[str, Any]) -> list[int]:
    """Counters that rise with every write into a tensor."""
    return [tensor._version for tensor in (pred, target, *batch.values()) if isinstance(tensor, Tensor)]


def configured_rewards(
    config: RewardConfig, codec: Codec, decoders: Decoders | None = None
) -> list[tuple[RewardFunction, float]]:
    """The built-in rewards with a weight above 0.

    Raises:
        ConfigError: there is an action reward without decoders.
    """
    functions: list[tuple[RewardFunction, float]] = []
    if config.l1_weight or config.cosine_weight:
        weighted = functools.partial(latent, l1_weight=config.l1_weight, cosine_weight=config.cosine_weight)
        functions.append((functools.update_wrapper(weighted, latent), 1.0))
    if config.action_weight:
        if decoders is None:
            raise ConfigError(
                f"reward.action_weight is {config.action_weight} without decoders, expected action_decoders for the "
                "trainer; vampo_core.train makes them"
            )
        functions.append((action(decoders), config.action_weight))
    if config.motion_weight:
        functions.append((motion, config.motion_weight))
    if config.moving_weight:
        functions.append((moving, config.moving_weight))
    if config.pixel_weight:
        functions.append((pixel(codec.decode, codec.temporal_ratio), config.pixel_weight))
    return functions
