"""A policy on predictive features: Video Former, frame encoder and diffusion action head above a video predictor."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vampo_core.config import VampoConfig
from vampo_core.config.vampo import stored_with
from vampo_core.diffusion.streams import POLICY_NOISE, POLICY_SIGMA, Stream, stream_seed
from vampo_core.models.predictor import Condition, VideoPredictor
from vampo_core.ops import philox_normal
from vampo_core.policy.base import Policy
from vampo_core.policy.data import ActionDataset
from vampo_core.policy.normalization import Ranges, normalize, unnormalize
from vampo_core.policy.observed import current_latents
from vampo_core.policy.vpp.action_head import ActionCondition, ActionHead, action_loss, training_sigmas
from vampo_core.policy.vpp.feature_cache import FeatureCache
from vampo_core.policy.vpp.features import feature_extractor, observed_features
from vampo_core.policy.vpp.frame_encoder import FrameEncoder
from vampo_core.policy.vpp.settings import VPPSettings
from vampo_core.policy.vpp.video_former import VideoFormer


class VPPPolicy(Policy):
    """Draws chunks of actions from a diffusion head on predictive features (VPP, arXiv 2412.14803).

    The predictor is frozen, or trained with the policy. Arguments are those of :class:`Policy`.
    """

    settings_type = VPPSettings
    settings: VPPSettings

    def __init__(self, predictor: VideoPredictor, settings: VPPSettings, ranges: Ranges) -> None:
        super().__init__(predictor, settings, ranges)
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
        self._extractor = feature_extractor(predictor, settings.features, settings.feature_layers)

    @classmethod
    def new(cls, config: VampoConfig, predictor: VideoPredictor, dataset: ActionDataset) -> "VPPPolicy":
        """See :meth:`Policy.new`; sizes are those of the dataset's first frame."""
        options, item = config.policy, dataset[0]
        latents = item["latents"].unsqueeze(0).to(predictor.device)  # [1, C, h, w]
        extractor = feature_extractor(predictor, options.features, options.feature_layers)
        with torch.no_grad():
            condition = predictor.observed_condition(latents, [item["instruction"]])
            num_frames, channels, height, width = observed_features(predictor, extractor, condition).shape[1:]
        ratio = predictor.codec.spatial_ratio
        settings = VPPSettings(
            feature_size=(num_frames, channels, height, width),
            image_size=(latents.shape[-2] * ratio, latents.shape[-1] * ratio),
            state_dim=dataset.state_dim,
            action_dim=dataset.action_dim,
            text_dim=condition.encoder_hidden_states.shape[-1],
            **stored_with(config, "policy"),
        )
        trained = []
        if options.train_predictor:  # with adapters, only those require grad
            trained = [p for p in predictor.feature_parameters(options.feature_layers) if p.requires_grad]
        predictor.requires_grad_(False)
        for parameter in trained:
            parameter.requires_grad_(True)
        return cls(predictor, settings, dataset.ranges())

    @classmethod
    def prepare_data(
        cls, config: VampoConfig, predictor: VideoPredictor, datasets: Sequence[ActionDataset], root: str | Path
    ) -> None:
        """Compute a frozen predictor's features of all frames, unless they are in the cache below ``root``."""
        options = config.policy
        if options.features == "latents" or options.train_predictor:
            return
        cache = FeatureCache(root, predictor, options.feature_layers, cache=config.data.cache)
        cache.fill([episode for dataset in datasets for episode in dataset.episodes])
        for dataset in datasets:
            dataset.cache = cache

    def compile_features(self) -> None:
        """Run the predictor's denoiser through ``torch.compile``; the first prediction of each batch size is slow."""
        settings = self.settings
        self._extractor = feature_extractor(self.predictor, settings.features, settings.feature_layers, compiled=True)

    def features(self, condition: Condition) -> Tensor:  # [B, F, D, h, w] float32
        """Features of B clips."""
        return observed_features(self.predictor, self._extractor, condition)

    def forward(
        self,
        noisy: Tensor,  # [B, H, A], normalized
        sigma: Tensor,  # [B]
        states: Tensor,  # [B, S], in the data's units
        condition: Condition,  # of B clips
        features: Tensor | None = None,  # [B, F, D, h, w], computed here by default
    ) -> Tensor:  # [B, H, A]
        """Denoised actions, normalized."""
        return self.head(noisy, sigma, self._action_condition(states, condition, features))

    def training_loss(self, batch: Mapping[str, Any], *, seed: int, iteration: int, first_clip: int) -> Tensor:  # []
        """The denoising loss; see :meth:`Policy.training_loss`."""
        device = self.action_range.device
        actions = normalize(batch["actions"].to(device), self.action_range)  # [B, H, A]

        def draw(stream: Stream, *shape: int) -> Tensor:  # [B, *shape]
            key = stream_seed(seed, stream, iteration)
            size = (len(actions), 1, 1, 1, *shape)
            return philox_normal(size, seed=key, first_clip=first_clip, device=device)[:, 0, 0, 0]

        sigma = training_sigmas(draw(POLICY_SIGMA, 1, 1).flatten())
        denoised = self(
            actions + sigma.view(-1, 1, 1) * draw(POLICY_NOISE, *actions.shape[1:]),
            sigma,
            batch["state"].to(device),
            self.predictor.observed_condition(batch["latents"].to(device), batch["instruction"]),
            _cached_features(batch, device),
        )
        return action_loss(denoised, actions, sigma, batch["valid"].to(device))

    @torch.no_grad()
    def sample_actions(
        self,
        states: Tensor,  # [B, S], in the data's units
        condition: Condition,  # of B clips
        noise: Tensor,  # [B, H, A], standard normal
        features: Tensor | None = None,  # [B, F, D, h, w], computed here by default
    ) -> Tensor:  # [B, H, A]
        """Chunks of actions in the data's units, clipped to the range of the training actions."""
        seen = self._action_condition(states, condition, features)
        chunk = self.head.sample(seen, noise, num_steps=self.settings.num_sampling_steps)
        return unnormalize(chunk.clamp(-1, 1), self.action_range)

    @torch.no_grad()
    def predict_recorded(
        self, batch: Mapping[str, Any], *, num_samples: int, seed: int, first_clip: int
    ) -> Tensor:  # [B, num_samples, H, A]
        """See :meth:`Policy.predict_recorded`."""
        device = self.action_range.device
        condition = self.predictor.observed_condition(batch["latents"].to(device), batch["instruction"])
        features = _cached_features(batch, device)
        features = self.features(condition) if features is None else features  # once for all samples
        shape = (len(features), num_samples, 1, 1, *self.head.chunk_shape)
        noise = philox_normal(shape, seed=seed, first_clip=first_clip, device=device)[:, :, 0, 0]
        states = batch["state"].to(device)
        chunks = [self.sample_actions(states, condition, noise[:, i], features) for i in range(num_samples)]
        return torch.stack(chunks, dim=1)

    @torch.no_grad()
    def predict_observed(
        self,
        states: Tensor,  # [B, S], in the data's units
        condition: Condition,  # of B clips
        seeds: Sequence[int],  # [B]
    ) -> Tensor:  # [B, H, A]
        """See :meth:`Policy.predict_observed`."""
        shape = (1, 1, 1, 1, *self.head.chunk_shape)
        noise = torch.cat([philox_normal(shape, seed=seed)[0, 0, 0] for seed in seeds])  # [B, H, A]
        return self.sample_actions(states, condition, noise.to(states.device))

    def _action_condition(self, states: Tensor, condition: Condition, features: Tensor | None) -> ActionCondition:
        features = self.features(condition) if features is None else features
        current = self.frame_encoder(current_latents(self.predictor, condition))
        tokens = torch.cat([self.former(features), current], dim=1)
        return self.head.condition(tokens, condition.encoder_hidden_states, normalize(states, self.state_range))


def _cached_features(batch: Mapping[str, Any], device: torch.device) -> Tensor | None:  # [B, F, D, h, w] float32
    """Features that came with a batch; None if there is no cache."""
    return batch["features"].to(device).float() if "features" in batch else None
