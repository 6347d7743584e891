"""A policy that acts on its imagined video: sample a video, read its first actions, execute them, look again."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vampo_core.config import VampoConfig
from vampo_core.data.episode import Episode
from vampo_core.evaluation.actions import decode_actions
from vampo_core.models.predictor import Condition, VideoPredictor
from vampo_core.policy.base import Policy
from vampo_core.policy.data import ActionDataset
from vampo_core.policy.inverse_dynamics.decoder import ActionDecoder
from vampo_core.policy.inverse_dynamics.pairs import PairDataset, pairs_of
from vampo_core.policy.inverse_dynamics.settings import DecoderSettings, InverseDynamicsSettings
from vampo_core.policy.normalization import Ranges
from vampo_core.policy.observed import current_latents


class InverseDynamicsPolicy(Policy):
    """Imagines a video from the current frame and the instruction, and executes the actions that it shows.

    What post-training improves, the video, is then what acts. The predictor is sampled as its own settings say, without
    noise after the first latents. Arguments are those of :class:`Policy`.
    """

    settings_type = InverseDynamicsSettings
    learns_from_clips = True
    settings: InverseDynamicsSettings

    def __init__(self, predictor: VideoPredictor, settings: InverseDynamicsSettings, ranges: Ranges) -> None:
        super().__init__(predictor, settings, ranges)
        self.decoder = ActionDecoder(DecoderSettings.from_dict(settings.decoder), ranges.action)

    @classmethod
    def dataset(
        cls, config: VampoConfig, episodes: Sequence[Episode], widths: tuple[int, int] | None = None
    ) -> PairDataset:
        """Pairs of frames at the distance of the predictor's; see :meth:`Policy.dataset`."""
        return pairs_of(config, episodes, widths)

    @classmethod
    def new(cls, config: VampoConfig, predictor: VideoPredictor, dataset: ActionDataset) -> "InverseDynamicsPolicy":
        """See :meth:`Policy.new`; only the decoder is trained."""
        assert isinstance(dataset, PairDataset)
        decoder = ActionDecoder.new(config, predictor.codec.fingerprint(), dataset, "difference")
        policy = cls.of(decoder, predictor, config, dataset.ranges().state)
        predictor.requires_grad_(False)
        return policy

    @classmethod
    def of(
        cls,
        decoder: ActionDecoder,
        predictor: VideoPredictor,
        config: VampoConfig,
        state_range: Tensor,  # [2, S]
        *,
        action_scale: float = 1.0,
    ) -> "InverseDynamicsPolicy":
        """A policy made of a decoder and a predictor.

        Args:
            decoder: decoder of actions.
            predictor: predictor that imagines the video.
            config: settings of the run; ``config.policy`` says how the policy acts.
            state_range: smallest and largest state in the training data.
            action_scale: factor on decoded actions, see :class:`InverseDynamicsSettings`.

        Raises:
            ConfigError: the decoder reads other latents than the predictor's.
        """
        own = decoder.settings
        decoder.check(
            "the action decoder",
            codec=predictor.codec.fingerprint(),
            num_actions=config.data.stride * predictor.codec.temporal_ratio,
        )
        ratio, horizon = predictor.codec.spatial_ratio, own.num_actions * (predictor.settings.num_frames - 1)
        settings = InverseDynamicsSettings(
            image_size=(own.latent_size[1] * ratio, own.latent_size[2] * ratio),
            state_dim=state_range.shape[1],
            action_dim=own.action_dim,
            action_horizon=horizon,
            num_executed_steps=min(config.policy.num_executed_steps, horizon),
            temporal_ensemble=config.policy.temporal_ensemble,
            decoder=own.to_dict(),
            action_scale=action_scale,
        )
        policy = cls(predictor, settings, Ranges(decoder.action_range, state_range))
        policy.decoder.load_state_dict(decoder.state_dict())
        return policy

    def training_loss(self, batch: Mapping[str, Any], *, seed: int, iteration: int, first_clip: int) -> Tensor:  # []
        """The decoder's loss; see :meth:`Policy.training_loss`."""
        return self.decoder.training_loss(batch, seed=seed, iteration=iteration, first_clip=first_clip)

    def predict_recorded(
        self, batch: Mapping[str, Any], *, num_samples: int, seed: int, first_clip: int
    ) -> Tensor:  # [B, num_samples, n, A]
        """What the decoder reads from true frames; see :meth:`Policy.predict_recorded`."""
        return self.decoder.predict_recorded(batch, num_samples=num_samples, seed=seed, first_clip=first_clip)

    @torch.no_grad()
    def imagine(self, condition: Condition, seeds: Sequence[int]) -> Tensor:  # [B, F, C, h, w]
        """Latent videos that begin with the observed frames.

        Args:
            condition: B observed frames with their instructions.
            seeds: keys of the noise ``[B]``, one for each video.
        """
        predictor, sampler = self.predictor, self.predictor.sampler()
        first = current_latents(predictor, condition)
        shape = (1, predictor.settings.num_frames - predictor.num_given_frames, *first.shape[1:])
        noise = torch.cat([sampler.initial_noise(shape, seed=seed, device=first.device) for seed in seeds])
        predicted = sampler.sample(noise, predictor.denoiser(condition, guidance=sampler.guides))
        videos = predictor.whole(condition, predicted).clone()
        videos[:, 0] = first
        return videos

    @torch.no_grad()
    def predict_observed(
        self,
        states: Tensor,  # [B, S]
        condition: Condition,  # of B clips
        seeds: Sequence[int],  # [B]
    ) -> Tensor:  # [B, H, A]
        """See :meth:`Policy.predict_observed`; chunks reach to the end of the imagined video."""
        videos = self.imagine(condition, seeds)
        actions = decode_actions(self.decoder, videos)  # [B, F - 1, n, A]
        if self.settings.action_scale != 1:
            first = videos[:, :-1].flatten(0, 1)
            still = self.decoder(first, first).unflatten(0, actions.shape[:2])
            actions = still + self.settings.action_scale * (actions - still)
        return self.decoder.unnormalize(actions.flatten(1, 2))
