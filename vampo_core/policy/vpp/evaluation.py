"""Measures the held-out action error of a policy on predictive features."""

from collections.abc import Mapping
from typing import Any

import torch

from vampo_core.evaluation.statistics import bootstrap
from vampo_core.ops import philox_normal
from vampo_core.policy.evaluation import PolicyEvalResult
from vampo_core.policy.normalization import normalize
from vampo_core.policy.vpp.policy import VPPPolicy


@torch.no_grad()
def evaluate_policy(
    policy: VPPPolicy,
    batch: Mapping[str, Any],  # collated held-out frames
    *,
    num_samples: int = 1,
    seed: int = 0,
    batch_size: int = 16,
) -> PolicyEvalResult:
    """Action error on held-out frames under fixed noise, so that two policies can be paired."""
    was_training = policy.training
    policy.eval()
    device, errors = policy.action_range.device, []
    for start in range(0, len(batch["instruction"]), batch_size):
        rows = slice(start, start + batch_size)
        condition = policy.predictor.observed_condition(batch["latents"][rows].to(device), batch["instruction"][rows])
        features = batch["features"][rows].to(device).float() if "features" in batch else policy.features(condition)
        expert = batch["actions"][rows].to(device)
        shape = (len(expert), num_samples, 1, 1, *expert.shape[1:])
        noise = philox_normal(shape, seed=seed, first_clip=start, device=device)[:, :, 0, 0]  # [B, num_samples, H, A]
        states = batch["state"][rows].to(device)
        chunks = [policy.sample_actions(states, condition, noise[:, i], features) for i in range(num_samples)]
        limits = policy.action_range
        errors.append((normalize(torch.stack(chunks, 1), limits) - normalize(expert, limits).unsqueeze(1)).cpu())
    policy.train(was_training)
    error, valid = torch.cat(errors), batch["valid"].float()  # [N, num_samples, H, A], [N, H]
    values = {"action_l1": error.abs().mean((1, 3)), "action_mse": error.square().mean((1, 3))}  # each [N, H]
    per_clip = {name: ((x * valid).sum(1) / valid.sum(1)).tolist() for name, x in values.items()}
    episodes = list(batch["episode_id"])
    return PolicyEvalResult(
        action_l1=bootstrap(per_clip["action_l1"], episodes),
        action_mse=bootstrap(per_clip["action_mse"], episodes),
        num_clips=len(episodes),
        num_samples=num_samples,
        per_step={name: ((x * valid).sum(0) / valid.sum(0).clamp_min(1)).tolist() for name, x in values.items()},
        per_clip=per_clip,
        episode_ids=episodes,
    )
