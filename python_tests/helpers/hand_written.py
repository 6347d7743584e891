"""VAMPO in plain loops: one clip, one generation and one step at a time, nothing of the library but the denoiser.

Karras sigmas, k-diffusion's ancestral step, v-prediction, group-normalised advantages: the formulas of the design. For
a flow they are those of the same process in other units, and a clip's first frame is given.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from vampo_core.config import VampoConfig
from vampo_core.diffusion.streams import INITIAL_NOISE, ROLLOUT, STEP, stream_seed
from vampo_core.models.predictor import VideoPredictor
from vampo_core.ops import philox_normal


@dataclass(frozen=True)
class Action:
    """What one generation did in one stochastic step."""

    clip: int
    step: int
    sample: Tensor  # [F, C, h, w]
    prev_sample: Tensor  # [F, C, h, w]


@dataclass(frozen=True)
class Group:
    """The rollouts of one clip."""

    latents: Tensor  # [G, F, C, h, w]
    actions: list[list[Action]]  # of each generation
    rewards: Tensor  # [G, F]


def is_flow(config: VampoConfig) -> bool:
    return config.model.backbone != "svd"


def sigmas_of(config: VampoConfig) -> list[float]:
    """Karras et al. 2022, equation 5, or a flow's even spacing, shifted; with 0 at the end."""
    if is_flow(config):
        shift, steps = config.sampler.flow_shift or 1.0, config.sampler.num_inference_steps
        levels = [1 - i / steps * 0.999 for i in range(steps)]
        return [shift * u / (1 + (shift - 1) * u) for u in levels] + [0.0]
    s, last = config.sampler, config.sampler.num_inference_steps - 1
    high, low = s.sigma_max ** (1 / s.rho), s.sigma_min ** (1 / s.rho)
    return [(high + i / last * (low - high)) ** s.rho for i in range(last + 1)] + [0.0]


def mean_and_std(model, config, batch, clip: int, step: int, sample: Tensor) -> tuple[Tensor, float]:
    """Mean [F, C, h, w] and standard deviation of one ancestral step, with gradient to the model."""
    sigma, sigma_next = sigmas_of(config)[step : step + 2]
    condition = model.condition(
        instructions=[batch["instruction"][clip]], first_latents=batch["latents"][clip : clip + 1, 0]
    )
    output = model(sample.unsqueeze(0), sigma, condition)[0].float()
    if config.sampler.guidance_scale != 1:
        uncond = model(sample.unsqueeze(0), sigma, condition.unconditional())[0].float()
        scale = torch.linspace(
            config.sampler.guidance_scale if is_flow(config) else 1, config.sampler.guidance_scale, len(sample)
        ).view(-1, 1, 1, 1)
        output = uncond + scale * (output - uncond)
    eta = config.sampler.eta if step in config.sampler.stochastic_steps else 0.0
    if is_flow(config):
        share = sigma_next * (1 - sigma) / (sigma * (1 - sigma_next))  # of the noise that is there already
        std = sigma_next * eta * (1 - share**2) ** 0.5
        denoised, noise = sample - sigma * output, sample + (1 - sigma) * output
        return (1 - sigma_next) * denoised + (sigma_next**2 - std**2) ** 0.5 * noise, std
    denoised = sample / (sigma**2 + 1) - sigma / (sigma**2 + 1) ** 0.5 * output
    std = min(sigma_next, eta * (sigma_next**2 * (sigma**2 - sigma_next**2) / sigma**2) ** 0.5)
    down = (sigma_next**2 - std**2) ** 0.5
    return sample + (sample - denoised) / sigma * (down - sigma), std


def reward_of(latents: Tensor, target: Tensor) -> Tensor:  # both [F, C, h, w] -> [F]
    """Cosine similarity minus L1 distance of each frame."""
    return torch.stack(
        [
            torch.cosine_similarity(x.flatten(), y.flatten(), dim=0) - (x - y).abs().mean()
            for x, y in zip(latents, target, strict=True)
        ]
    )


@torch.no_grad()
def roll_out(model: VideoPredictor, config: VampoConfig, batch: Mapping[str, Any], iteration: int = 1) -> list[Group]:
    """The group of every clip, with the noise that design and seed prescribe."""
    s, num_generations = config.sampler, config.grpo.num_generations
    seed = stream_seed(config.run.seed, ROLLOUT, iteration - 1)
    target = batch["latents"][:, 1:] if is_flow(config) else batch["latents"]
    num_clips, *frame = target.shape
    initial = philox_normal((num_clips, 1, *frame), seed=stream_seed(seed, INITIAL_NOISE))
    initial = initial if is_flow(config) else initial * (s.sigma_max**2 + 1) ** 0.5
    groups = []
    for clip in range(num_clips):
        latents, actions = [], []
        for generation in range(num_generations):
            sample = initial[clip, 0]
            done = []
            for step in range(s.num_inference_steps):
                mean, std = mean_and_std(model, config, batch, clip, step, sample)
                if step in s.stochastic_steps:
                    key = stream_seed(seed, STEP, step)
                    if step == s.stochastic_steps[0]:
                        noise = philox_normal((num_clips, num_generations, *frame), seed=key)[clip, generation]
                    else:  # one draw per row: the group no longer shares its sample
                        row = clip * num_generations + generation
                        noise = philox_normal((num_clips * num_generations, 1, *frame), seed=key)[row, 0]
                    done.append(Action(clip, step, sample, mean + std * noise))
                    sample = done[-1].prev_sample
                else:
                    sample = mean
            latents.append(sample)
            actions.append(done)
        rewards = torch.stack([reward_of(x, target[clip]) for x in latents])
        groups.append(Group(torch.stack(latents), actions, rewards))
    return groups


def advantages_of(rewards: Tensor, clip: float, credit: str = "frame") -> Tensor:  # [G, F] -> [G, F]
    """Each frame's rewards, or the clip's, in units of their standard deviation over the group, around their mean."""
    if credit == "clip":
        rewards = torch.stack([torch.full_like(frames, sum(frames) / len(frames)) for frames in rewards])
    columns = []
    for frame in rewards.unbind(1):
        spread = (((frame - frame.mean()) ** 2).sum() / (len(frame) - 1)) ** 0.5
        columns.append(((frame - frame.mean()) / spread if spread > 0 else 0 * frame).clamp(-clip, clip))
    return torch.stack(columns, dim=1)


def reinforce_gradient(
    model: VideoPredictor,
    config: VampoConfig,
    batch: Mapping[str, Any],
    groups: list[Group],
    *,
    only_clip: int | None = None,
    reference: VideoPredictor | None = None,
) -> dict[str, Tensor]:
    """Gradient of ``-mean(A log p)`` (Williams 1992) and of the KL penalty, where a reference model is given."""
    names = [name for name, p in model.named_parameters() if p.requires_grad and "text_encoder" not in name]
    parameters = [dict(model.named_parameters())[name] for name in names]
    total = [torch.zeros_like(p, dtype=torch.float64) for p in parameters]
    number = len(groups) * config.grpo.num_generations * len(config.sampler.stochastic_steps)
    for index, group in enumerate(groups):
        if only_clip not in (None, index):
            continue
        advantages = advantages_of(group.rewards, config.grpo.adv_clip_max, config.grpo.credit)
        for generation, actions in enumerate(group.actions):
            for action in actions:
                mean, std = mean_and_std(model, config, batch, index, action.step, action.sample)
                policy = Normal(mean, std)
                log_prob = policy.log_prob(action.prev_sample).mean((1, 2, 3))  # [F]
                loss = -(advantages[generation] * log_prob).mean()
                if reference is not None:
                    with torch.no_grad():
                        base, _ = mean_and_std(reference, config, batch, index, action.step, action.sample)
                    loss = loss + config.grpo.kl_coef * kl_divergence(policy, Normal(base, std)).mean()
                for sum_, gradient in zip(total, torch.autograd.grad(loss / number, parameters), strict=True):
                    sum_ += gradient
    return dict(zip(names, total, strict=True))
