"""The verifiable reward: how close a predicted latent video is to the expert's."""

import torch
from torch import Tensor

from vampo_core import _extension
from vampo_core.ops import reference
from vampo_core.ops._arguments import check_latent_reward
from vampo_core.ops.results import LatentReward


def latent_reward(
    pred: Tensor,  # [B, G, F, C, H, W], float32 (float64 on CPU)
    target: Tensor,  # [B, F, C, H, W]
    *,
    l1_weight: float = 1.0,
    cosine_weight: float = 1.0,
) -> LatentReward:  # each [B, G, F]
    """Reward of VAMPO (arXiv 2603.19370): per frame, over C, H, W,
    ``-l1_weight mean|pred - target| + cosine_weight cos(pred, target)``.

    The cosine is that of ``torch.nn.functional.cosine_similarity`` (a zero vector gives 0). Carries no gradient.

    Args:
        pred: G predicted latent videos of every clip.
        target: the expert's latents, shared by the group.
        l1_weight, cosine_weight: weights of the two terms.

    Raises:
        ValueError: a value or shape is wrong.
        TypeError: an argument has a wrong type or dtype.
        RuntimeError: tensors are on different devices.
    """
    if not (isinstance(pred, Tensor) and _extension.has_kernel(pred)):
        return reference.latent_reward(pred, target, l1_weight=l1_weight, cosine_weight=cosine_weight)
    l1_weight, cosine_weight = check_latent_reward(pred, target, l1_weight, cosine_weight)
    pred = pred.detach() if pred.requires_grad else pred
    target = target.detach() if target.requires_grad else target
    return LatentReward(*torch.ops.vampo_core.latent_reward(pred, target, l1_weight, cosine_weight))


if _extension.LOADED:

    @torch.library.register_fake("vampo_core::latent_reward")
    def _(pred, target, l1_weight, cosine_weight):
        return tuple(pred.new_empty(pred.shape[:3]) for _ in range(3))
