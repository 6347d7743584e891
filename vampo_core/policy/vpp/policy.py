"""A policy on predictive features: video predictor, encoders, diffusion action head and the data's statistics."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vampo_core.models.fingerprint import fingerprint
from vampo_core.models.predictor import Condition, VideoPredictor
from vampo_core.ops import philox_normal
from vampo_core.policy.base import PREDICTOR, Policy
from vampo_core.policy.controller import Observation
from vampo_core.policy.normalization import Ranges, normalize, unnormalize
from vampo_core.policy.vpp.action_head import ActionCondition, ActionHead
from vampo_core.policy.vpp.features import current_latents, feature_extractor, observed_features
from vampo_core.policy.vpp.frame_encoder import FrameEncoder
from vampo_core.policy.vpp.settings import VPPSettings
from vampo_core.policy.vpp.video_former import VideoFormer

_WEIGHTS = "policy.safetensors"


class VPPPolicy(Policy):
    """Draws chunks of actions from a diffusion head on predictive features (VPP, arXiv 2412.14803).

    The predictor is frozen, or trained with the policy. ``policy.safetensors`` holds encoders, head and statistics.

    Args:
        predictor: video predictor; it gives features, the embedding of the instruction, and latents of frames.
        settings: sizes of the networks, and how the policy acts.
        ranges: ranges of actions and states in the training data.
    """

    settings_type = VPPSettings
    settings: VPPSettings

    def __init__(self, predictor: VideoPredictor, settings: VPPSettings, ranges: Ranges) -> None:
        super().__init__()
        self.predictor, self.settings = predictor, settings
        codec = predictor.codec
        height, columns = (size // codec.spatial_ratio for size in settings.image_size)
        self.frame_encoder = FrameEncoder((codec.latent_channels, height, columns), width=settings.width)
        self.former = VideoFormer(
            settings.feature_size,
            width=settings.width,
            num_queries=settings.num_queries,
            depth=settings.former_depth,
            num_heads=settings.num_attention_heads,
        )
        self.head = ActionHead(
            action_dim=settings.action_dim,
            action_horizon=settings.action_horizon,
            state_dim=settings.state_dim,
            text_dim=settings.text_dim,
            width=settings.width,
            depth=settings.depth,
            num_heads=settings.num_attention_heads,
        )
        self.action_range: Tensor
        self.state_range: Tensor
        self.register_buffer("action_range", ranges.action.clone())
        self.register_buffer("state_range", ranges.state.clone())
        self._extractor = feature_extractor(predictor, settings.features, settings.feature_layers)

    @property
    def uses_predictions(self) -> bool:
        """Whether it sees predictive features."""
        return self.settings.features == "predictive"

    @classmethod
    def load(cls, folder: Path, *, dtype: str | torch.dtype) -> "VPPPolicy":
        """Load a policy folder; see :meth:`Policy.from_pretrained`."""
        settings = VPPSettings.load(folder)
        predictor = VideoPredictor.from_pretrained(folder / PREDICTOR, dtype=dtype)
        policy = cls(
            predictor, settings, Ranges(torch.zeros(2, settings.action_dim), torch.zeros(2, settings.state_dim))
        )
        try:
            loaded = {f"{PREDICTOR}.{name}": x for name, x in predictor.state_dict().items()}
            policy.load_state_dict(load_file(folder / _WEIGHTS) | loaded, strict=True)
        except (OSError, RuntimeError, SafetensorError) as error:
            reason = " ".join(line.strip() for line in str(error).splitlines()[:2])  # the second line names weights
            raise ValueError(f"{folder / _WEIGHTS} cannot be loaded: {reason}") from error
        return policy.eval()

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a policy folder, the predictor included, with its adapters merged."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.predictor.save_pretrained(folder / PREDICTOR)
        self.settings.save(folder)
        save_file({name: x.contiguous() for name, x in self._own_weights().items()}, folder / _WEIGHTS)

    def fingerprint(self) -> str:
        """A hash of all weights and settings, including the predictor's and its precision."""
        return fingerprint([asdict(self.settings), self.predictor.fingerprint()], self._own_weights())

    def compile_features(self) -> None:
        """Run the predictor's denoiser through ``torch.compile``; the first prediction of each batch size is slow."""
        settings = self.settings
        self._extractor = feature_extractor(self.predictor, settings.features, settings.feature_layers, compiled=True)

    def features(self, condition: Condition) -> Tensor:  # [B, F, D, h, w] float32
        """Features of B clips."""
        return observed_features(self.predictor, self._extractor, condition)

    def forward(
        self,
        noisy: Tensor,  # [B, H, A], normalised
        sigma: Tensor,  # [B]
        states: Tensor,  # [B, S], as the robot tells them
        condition: Condition,  # of B clips
        features: Tensor | None = None,  # [B, F, D, h, w], computed here by default
    ) -> Tensor:  # [B, H, A]
        """Denoised actions, normalised."""
        return self.head(noisy, sigma, self._action_condition(states, condition, features))

    @torch.no_grad()
    def sample_actions(
        self,
        states: Tensor,  # [B, S], as the robot tells them
        condition: Condition,  # of B clips
        noise: Tensor,  # [B, H, A], standard normal
        features: Tensor | None = None,  # [B, F, D, h, w], computed here by default
    ) -> Tensor:  # [B, H, A]
        """Chunks of actions in the data's units, clipped to the range of the training actions."""
        seen = self._action_condition(states, condition, features)
        chunk = self.head.sample(seen, noise, num_steps=self.settings.num_sampling_steps)
        return unnormalize(chunk.clamp(-1, 1), self.action_range)

    @torch.no_grad()
    def predict(
        self,
        observations: Sequence[Observation],  # B of them
        instructions: Sequence[str],
        seeds: Sequence[int],  # [B]
    ) -> np.ndarray:  # [B, H, A] float32
        """Chunks of actions for what is observed; see :meth:`Policy.predict`."""
        for observation in observations:
            self.check_observation(observation)
        device = self.action_range.device
        frames = torch.from_numpy(np.stack([o["pixels"] for o in observations])).to(device).permute(0, 3, 1, 2)
        states = torch.from_numpy(np.stack([np.asarray(o["state"], np.float32) for o in observations])).to(device)
        condition = self.predictor.condition(instructions=instructions, first_frames=frames.float() / 255)
        shape = (1, 1, 1, 1, *self.head.chunk_shape)
        noise = torch.cat([philox_normal(shape, seed=seed)[0, 0, 0] for seed in seeds])  # [B, H, A]
        actions = self.sample_actions(states, condition, noise.to(device)).cpu().numpy()
        if np.isnan(actions).any():  # a robot would execute them
            hint = "" if self.dtype == torch.float32 else f": with dtype = {self.dtype} features may have overflowed"
            raise FloatingPointError(f"the policy predicts actions that are nan, expected finite numbers{hint}")
        return actions

    def _action_condition(self, states: Tensor, condition: Condition, features: Tensor | None) -> ActionCondition:
        features = self.features(condition) if features is None else features
        current = self.frame_encoder(current_latents(self.predictor, condition))
        tokens = torch.cat([self.former(features), current], dim=1)
        return self.head.condition(tokens, condition.encoder_hidden_states, normalize(states, self.state_range))

    def _own_weights(self) -> dict[str, Tensor]:
        """Weights of encoders, head and statistics."""
        return {name: x for name, x in self.state_dict().items() if not name.startswith(f"{PREDICTOR}.")}
