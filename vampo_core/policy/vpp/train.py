"""Training of a policy on expert episodes."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vampo_core.config import VampoConfig
from vampo_core.config.vampo import stored_with
from vampo_core.data.clips import Clips
from vampo_core.diffusion.streams import POLICY_NOISE, POLICY_SIGMA, stream_seed
from vampo_core.evaluation.predictor import held_out_batch
from vampo_core.models.predictor import VideoPredictor
from vampo_core.ops import philox_normal
from vampo_core.policy.data import ActionDataset, action_loader
from vampo_core.policy.evaluation import PolicyEvalResult
from vampo_core.policy.normalization import normalize
from vampo_core.policy.vpp.action_head import P_MEAN, P_STD, SIGMA_MAX, SIGMA_MIN, action_loss
from vampo_core.policy.vpp.evaluation import evaluate_policy
from vampo_core.policy.vpp.feature_cache import FeatureCache
from vampo_core.policy.vpp.features import feature_extractor, observed_features
from vampo_core.policy.vpp.policy import VPPPolicy
from vampo_core.policy.vpp.settings import VPPSettings
from vampo_core.training.loop import Callback, Loop, Schedule, TrainResult
from vampo_core.training.loss_update import update_on_loss
from vampo_core.training.optimizer import ModelOptimizer
from vampo_core.training.processes import new_accelerator


class PolicyTrainer:
    """Trains Video Former and action head, and on request the predictor below them, to imitate experts.

    Args:
        model: the policy; parameters that require grad are trained.
        config: settings of the run, ``config.policy`` above all.
        train_dataset: frames of training episodes.
        eval_dataset: frames of held-out episodes.
    """

    result_type: type[PolicyEvalResult] = PolicyEvalResult
    callbacks: Sequence[Callback] = ()

    def __init__(
        self, *, model: VPPPolicy, config: VampoConfig, train_dataset: ActionDataset, eval_dataset: ActionDataset
    ) -> None:
        settings = config.policy
        self.model, self.config = model, config
        self.schedule = Schedule.of_updates("policy", settings)
        self.accelerator = new_accelerator()
        self.train_dataset = train_dataset
        self.eval_batch = held_out_batch(eval_dataset, config.evaluation.num_clips)
        self.optimizer = ModelOptimizer(
            model,
            self.accelerator,
            settings,
            num_updates=settings.num_steps,
            ema_decay=settings.ema_decay,
            lr_scale=lambda name: settings.predictor_lr_scale if name.startswith("predictor.") else 1.0,
        )

    def train(self, resume_from: str | Path | None = None) -> TrainResult[PolicyEvalResult]:
        """Run the loop, from the start or from a checkpoint of this run."""
        return Loop(self).run(resume_from)

    def batches(self, done: int) -> Iterator[Mapping[str, Any]]:
        """Training batches, starting behind those of the first ``done`` updates."""
        loader = action_loader(
            self.train_dataset,
            batch_size=self.config.policy.batch_size,
            seed=self.config.run.seed,
            num_workers=self.config.data.num_workers,
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
            start_batch=done,
        )
        return iter(loader)

    def iterate(self, iteration: int, batches: Iterator[Mapping[str, Any]]) -> dict[str, Any]:
        """One update on the denoising loss."""
        return update_on_loss(self, iteration, lambda: self.loss(iteration, next(batches)))

    def loss(self, iteration: int, batch: Mapping[str, Any]) -> Tensor:  # []
        """The denoising loss of this process's part of a batch; its noise follows from seed, iteration and process."""
        device = self.accelerator.device
        actions = normalize(batch["actions"].to(device), self.model.action_range)
        num_clips, first_clip = len(actions), self.accelerator.process_index * len(actions)
        draws = [
            philox_normal(
                (num_clips, 1, 1, 1, *shape),
                seed=stream_seed(self.config.run.seed, stream, iteration),
                first_clip=first_clip,
                device=device,
            )[:, 0, 0, 0]
            for stream, shape in ((POLICY_SIGMA, (1, 1)), (POLICY_NOISE, actions.shape[1:]))
        ]
        sigma = (P_MEAN + P_STD * draws[0].flatten()).exp().clamp(SIGMA_MIN, SIGMA_MAX)
        features = batch["features"].to(device).float() if "features" in batch else None
        denoised = self.model(
            actions + sigma.view(-1, 1, 1) * draws[1],
            sigma,
            batch["state"].to(device),
            self.model.predictor.observed_condition(batch["latents"].to(device), batch["instruction"]),
            features,
        )
        return action_loss(denoised, actions, sigma, batch["valid"].to(device))

    def evaluate(self) -> PolicyEvalResult | None:
        """Held-out action error of the model, or of its EMA, on the main process only."""
        if not self.accelerator.is_main_process:
            return None
        settings = self.config.evaluation
        with self.optimizer.ema_weights():
            return evaluate_policy(
                self.model,
                self.eval_batch,
                num_samples=settings.num_samples,
                seed=settings.seed,
                batch_size=settings.batch_size,
            )

    def score(self, result: PolicyEvalResult) -> float:
        """The negative action error."""
        return result.score


def action_datasets(
    config: VampoConfig, predictor: VideoPredictor, clips: Clips, root: str | Path
) -> tuple[ActionDataset, ActionDataset]:
    """Frames of the training and of the held-out episodes that the predictor has too.

    A frozen predictor's features are computed first, where they are not in the cache under ``root`` yet.
    """
    settings = config.policy
    (train_clips,) = clips.train
    train, held_out = (
        ActionDataset(part.episodes, horizon=settings.action_horizon, strict=config.data.strict)
        for part in (train_clips, clips.held_out)
    )
    if settings.features == "predictive" and not settings.train_predictor:
        cache = FeatureCache(root, predictor, settings.feature_layers)
        cache.fill([*train.episodes, *held_out.episodes])
        train.cache = held_out.cache = cache
    return train, held_out


def new_policy(config: VampoConfig, predictor: VideoPredictor, dataset: ActionDataset) -> VPPPolicy:
    """An untrained policy for a dataset; its weights follow from ``run.seed``, and what it trains requires grad."""
    options, item = config.policy, dataset[0]
    latents = item["latents"].unsqueeze(0).to(predictor.device)
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
    if extractor is not None and options.train_predictor:
        trained = [p for p in predictor.feature_parameters(options.feature_layers) if p.requires_grad]  # or adapters
    predictor.requires_grad_(False)
    for parameter in trained:
        parameter.requires_grad_(True)
    with torch.random.fork_rng():
        torch.manual_seed(config.run.seed)
        return VPPPolicy(predictor, settings, dataset.ranges())
