"""Which rewards a draw is credited with: its frame's own, or those of the whole clip."""

import torch
from torch import Tensor

from vampo_core.config.sections import Credit
from vampo_core.ops import group_advantages
from vampo_core.ops.spread import is_flat


def credited_advantages(
    rewards: Tensor,  # [B, G, F]
    *,
    credit: Credit,
    clip: float | None = None,
) -> Tensor:  # [B, G, F]
    """Advantages of every frame's draw, see :func:`~vampo_core.ops.group_advantages`.

    Args:
        rewards: one reward per clip, generation and frame.
        credit: ``"frame"`` compares each frame's rewards and leaves out what its draw does to other frames;
            ``"clip"`` compares the clip's mean rewards, whose policy gradient has no bias but more variance.
        clip: limit of the absolute advantage; None for none.
    """
    if credit == "pathwise":
        raise ValueError("credit is 'pathwise', expected 'frame' or 'clip': a derivative needs no advantages")
    advantages = group_advantages(compared_rewards(rewards, credit), clip=clip)
    return advantages.unsqueeze(2).expand_as(rewards) if credit == "clip" else advantages


def compared_rewards(
    rewards: Tensor,  # [B, G, F]
    credit: Credit,
) -> Tensor:  # [B, G, F], or [B, G] with credit "clip"
    """The rewards that are compared within a group.

    Where they are those of the clip, a frame whose rewards differ by rounding only adds no spread: next to frames that
    cancel out, rounding would otherwise become an advantage.
    """
    if credit != "clip":
        return rewards
    return torch.where(is_flat(rewards).unsqueeze(1), rewards[:, :1], rewards).mean(2)
