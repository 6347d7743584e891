"""Diffusion over action chunks: a transformer denoiser with EDM preconditioning, sampled by DPM-Solver++."""

from typing import NamedTuple

import torch
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.schedulers.scheduling_edm_dpmsolver_multistep import EDMDPMSolverMultistepScheduler
from torch import Tensor, nn

SIGMA_DATA = 0.5
"""Standard deviation of the actions, which are normalized to [-1, 1]."""
SIGMA_MIN, SIGMA_MAX = 0.002, 20.0
"""Range of noise levels; 20 is 40 times the actions' standard deviation."""
P_MEAN, P_STD = -0.5, 1.5
"""Mean and standard deviation of ln sigma in training: wider than EDM's (-1.2, 1.2), so that the first sampling step's
noise level is trained too."""


class ActionCondition(NamedTuple):
    """What actions depend on; the same for all sampling steps."""

    tokens: Tensor  # [B, N, width], from the video and the instruction
    state: Tensor  # [B, width], embedding of the robot's state


class ActionHead(nn.Module):
    """Denoises a chunk of actions, given tokens of the predicted video, the instruction and the robot's state.

    A transformer decoder (self-attention over the chunk, cross-attention to the condition) as in Diffusion Policy
    (Chi et al. 2023, arXiv 2303.04137), preconditioned as in EDM (Karras et al. 2022, equation 7) by diffusers'
    scheduler. Noise level and robot state are added to every action, and are attended to as one more token.

    Args:
        action_dim: numbers in an action (A).
        action_horizon: number of actions in a chunk (H).
        state_dim: numbers in the robot's state (S).
        text_dim: width of the instruction's embedding.
        width: channels of the network and of the tokens it attends to.
        depth: number of layers.
        num_heads: number of heads of every attention.
    """

    def __init__(
        self,
        *,
        action_dim: int,
        action_horizon: int,
        state_dim: int,
        text_dim: int,
        width: int,
        depth: int,
        num_heads: int,
    ) -> None:
        super().__init__()
        self.chunk_shape = (action_horizon, action_dim)
        self.text = nn.Sequential(nn.LayerNorm(text_dim), nn.Linear(text_dim, width))
        self.state = nn.Linear(state_dim, width)
        self.noise_level = nn.Sequential(
            Timesteps(width, flip_sin_to_cos=True, downscale_freq_shift=0), TimestepEmbedding(width, width)
        )
        self.action = nn.Linear(action_dim, width)
        self.position = nn.Parameter(0.02 * torch.randn(action_horizon, width))
        layer = nn.TransformerDecoderLayer(
            width, num_heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.decoder = nn.TransformerDecoder(layer, depth, norm=nn.LayerNorm(width))
        self.output = nn.Linear(width, action_dim)

    def condition(
        self,
        tokens: Tensor,  # [B, N, width]
        text: Tensor,  # [B, L, text_dim]
        states: Tensor,  # [B, S], normalized
    ) -> ActionCondition:
        """The condition from tokens of the video, the instruction's embedding and the robot's state."""
        return ActionCondition(torch.cat([tokens, self.text(text)], dim=1), self.state(states))

    def forward(
        self,
        noisy: Tensor,  # [B, H, A]
        sigma: Tensor,  # [B]
        condition: ActionCondition,  # of B
    ) -> Tensor:  # [B, H, A]
        """The denoised chunk ``D(x; sigma)``."""
        scheduler, level = action_scheduler(), sigma.view(-1, 1, 1)
        scaled, c_noise = scheduler.precondition_inputs(noisy, level), scheduler.precondition_noise(sigma)
        return scheduler.precondition_outputs(noisy, self.network(scaled, c_noise, condition), level)

    def network(
        self,
        scaled: Tensor,  # [B, H, A], noisy actions times c_in
        c_noise: Tensor,  # [B]
        condition: ActionCondition,  # of B
    ) -> Tensor:  # [B, H, A]
        """The raw network ``F`` of EDM's equation 7."""
        context = (self.noise_level(c_noise) + condition.state).unsqueeze(1)
        chunk = self.action(scaled) + self.position + context
        return self.output(self.decoder(chunk, torch.cat([condition.tokens, context], dim=1)))

    @torch.no_grad()
    def sample(
        self,
        condition: ActionCondition,  # of B
        noise: Tensor,  # [B, H, A], standard normal
        *,
        num_steps: int,
    ) -> Tensor:  # [B, H, A]
        """Chunks of actions by DPM-Solver++ of order 2 (Lu et al. 2022, arXiv 2211.01095), which adds no noise."""
        scheduler = action_scheduler()
        scheduler.set_timesteps(num_steps, device=noise.device)
        chunk = noise * scheduler.init_noise_sigma
        for timestep in scheduler.timesteps:
            scaled = scheduler.scale_model_input(chunk, timestep)
            output = self.network(scaled, timestep.expand(len(chunk)), condition)
            chunk = scheduler.step(output, timestep, chunk, return_dict=False)[0]
        return chunk


def action_scheduler() -> EDMDPMSolverMultistepScheduler:
    """A scheduler with the noise levels of actions. It counts its steps, so each sampling run needs a new one."""
    return EDMDPMSolverMultistepScheduler(sigma_min=SIGMA_MIN, sigma_max=SIGMA_MAX, sigma_data=SIGMA_DATA)


def training_sigmas(
    normal: Tensor,  # [B], standard normal
) -> Tensor:  # [B]
    """Noise levels for training, log-normal as in EDM (table 1), cut to the range of sampling."""
    return (P_MEAN + P_STD * normal).exp().clamp(SIGMA_MIN, SIGMA_MAX)


def action_loss(
    denoised: Tensor,  # [B, H, A]
    actions: Tensor,  # [B, H, A], normalized
    sigma: Tensor,  # [B]
    valid: Tensor,  # [B, H] bool
) -> Tensor:  # []
    """Weighted error of EDM (equation 8, table 1): lambda(sigma) = (sigma^2 + sigma_data^2) / (sigma sigma_data)^2.

    Actions that are not valid count as zero error, so that the losses of a batch's parts average to that of the whole.
    """
    weight = (sigma.square() + SIGMA_DATA**2) / (sigma * SIGMA_DATA).square()
    errors = weight.view(-1, 1, 1) * (denoised - actions).square()
    return (errors * valid.unsqueeze(-1)).mean()
