"""Whether each draw is credited with its own reward, seen by following one clip's draws again."""

from collections.abc import Sequence

import torch
from torch import Tensor

from vampo_core.config import GRPOConfig
from vampo_core.grpo.advantages import credited_advantages
from vampo_core.grpo.rewards import RewardFunction, evaluate_rewards
from vampo_core.grpo.rollout import GroupRollout, RolloutEngine
from vampo_core.training.rng import rng_state, set_rng_state


@torch.no_grad()
def replay_mismatch(
    engine: RolloutEngine,
    rewards: Sequence[tuple[RewardFunction, float]],
    rollout: GroupRollout,
    credited: Tensor,  # [B, G, F]
    settings: GRPOConfig,
) -> Tensor:  # []
    """1 minus the cosine between the first clip's advantages and those of its draws when they are followed again.

    The clip's draws go through the tail as G clips of one draw each, where no order of a group can be mistaken; with
    several stochastic steps, whose noise has the generation as a coordinate, as the group that they are. The rewards
    then see their videos in other places of the group. Generators are left where they were.

    Args:
        engine: engine that made the rollout.
        rewards: reward functions and their weights.
        rollout: groups and their draws.
        credited: advantages of the draws.
        settings: how advantages are made from rewards.
    """
    state = rng_state()
    videos = rollout.latents.clone()
    videos[0] = _followed_again(engine, rollout)
    target = rollout.batch["latents"].to(videos)
    total = torch.empty_like(credited)
    for places in _other_places(videos.shape[1]):
        found = evaluate_rewards(rewards, videos[:, places], target, rollout.batch)
        total[:, places] = found.without(engine.model.num_given_frames).total
    again = credited_advantages(total, credit=settings.credit, clip=settings.adv_clip_max)
    set_rng_state(state)
    used, again = credited[0].double().flatten(), again[0].double().flatten()
    lengths = used.norm() * again.norm()
    are_flat = used.norm() + again.norm() == 0
    return torch.where(are_flat, 0.0, 1 - (used @ again) / lengths.clamp_min(torch.finfo(lengths.dtype).tiny))


def _followed_again(engine: RolloutEngine, rollout: GroupRollout) -> Tensor:  # [G, F, C, h, w]
    """The videos of the first clip, from its draws."""
    draws = rollout.steps[0].prev_sample[:1]  # [1, G, F, C, h, w]
    as_clips = len(rollout.steps) == 1
    clips = torch.zeros(draws.shape[1], dtype=torch.long, device=draws.device)
    condition = rollout.condition.index_select(clips)
    tail = engine.sampler.tail(
        draws.transpose(0, 1).contiguous() if as_clips else draws,
        engine.environment(condition),
        chunk_size=engine.chunk_size,
        seed=rollout.seed,
        first_clip=rollout.first_clip,
    )
    latents = tail.latents if as_clips else tail.latents.transpose(0, 1).contiguous()
    return engine.model.whole(condition, latents)[:, 0]


def _other_places(num_generations: int) -> list[list[int]]:
    """The generation that each place of a group gets, so that every one is somewhere else once.

    Few generations fill all places in turn: no permutation of equal ones is wrong. Many are shuffled, which a wrong
    order is very unlikely to agree with.
    """
    if num_generations <= 4:
        return [[generation] * num_generations for generation in range(num_generations)]
    return [torch.randperm(num_generations, generator=torch.Generator().manual_seed(0)).tolist()]
