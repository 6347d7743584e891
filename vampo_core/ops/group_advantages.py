"""Group-relative advantages."""

import torch
from torch import Tensor

from vampo_core import _extension
from vampo_core.ops import reference
from vampo_core.ops._arguments import check_group_advantages


def group_advantages(
    rewards: Tensor,  # [B, G] or [B, G, F], float32 (float64 on CPU)
    *,
    eps: float = 1e-8,
    clip: float | None = None,
    normalize_std: bool = True,
) -> Tensor:  # like rewards
    """Advantages of GRPO (Shao et al. 2024, arXiv 2402.03300, section 4.1.2), within the group of each clip and frame.

    ``(r - mean_G r) / (std_G r + eps)`` with the unbiased standard deviation; a group whose rewards differ by rounding
    only (:func:`vampo_core.ops.spread.is_flat`) gives exactly 0. Carries no gradient.

    Args:
        rewards: one reward per generation, or per generation and frame.
        eps: added to the standard deviation, at least 0.
        clip: limit of the absolute advantage, above 0; None for none.
        normalize_std: False leaves the division out (Dr. GRPO, arXiv 2503.20783).

    Raises:
        ValueError: a value or shape is wrong, ``G = 1`` included.
        TypeError: an argument has a wrong type or dtype.
    """
    if not (isinstance(rewards, Tensor) and _extension.has_kernel(rewards)):
        return reference.group_advantages(rewards, eps=eps, clip=clip, normalize_std=normalize_std)
    eps, clip = check_group_advantages(rewards, eps, clip)
    if rewards.requires_grad:
        rewards = rewards.detach()
    return torch.ops.vampo_core.group_advantages(rewards, eps, clip, normalize_std)


if _extension.LOADED:

    @torch.library.register_fake("vampo_core::group_advantages")
    def _(rewards, eps, clip, normalize_std):
        return torch.empty(rewards.shape, dtype=rewards.dtype, device=rewards.device)
