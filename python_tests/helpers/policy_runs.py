"""Tiny policies and made-up expert episodes for the tests of policies."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from training_runs import MadeUpEpisode, make_config, make_model

from vampo_core.config import VampoConfig
from vampo_core.data import ClipDataset
from vampo_core.data.clips import Clips
from vampo_core.models.codecs.patch import PatchCodec
from vampo_core.models.predictor import VideoPredictor
from vampo_core.policy.normalization import Ranges
from vampo_core.policy.train import PolicyTrainer, action_datasets, new_policy
from vampo_core.policy.vpp.policy import VPPPolicy
from vampo_core.policy.vpp.settings import VPPSettings

SIZE, STATE_DIM, ACTION_DIM, HORIZON = 32, 3, 2, 6
TEXT = "push the block"
TINY_POLICY = (
    *("policy.num_steps=1", "policy.width=16", "policy.num_attention_heads=2", "policy.batch_size=4"),
    "policy.decay_steps=0",
)
"""Settings of one update on recorded episodes."""


@dataclass
class ActingEpisode(MadeUpEpisode):
    """Actions in the hundreds that differ between episodes, and a state that shows the time."""

    @property
    def actions(self) -> Tensor:  # [T, 2]
        time = torch.linspace(0, 3, self.length)
        rows = 250 + 200 * torch.stack([torch.sin(time + self.number), torch.cos(2 * time - self.number)], dim=1)
        return torch.cat([rows[:-1], rows[-2:-1]])

    @property
    def states(self) -> Tensor:  # [T, 3]
        time = torch.arange(self.length) / self.length
        return torch.stack([100 * time, torch.full_like(time, self.number), torch.ones_like(time)], dim=1)


def policy_config(folder: Path, *overrides: str) -> VampoConfig:
    """Four updates of a policy of a few thousand weights."""
    return make_config(
        folder,
        f"policy.action_horizon={HORIZON}",
        "policy.num_executed_steps=2",
        "policy.num_sampling_steps=3",
        "policy.num_queries=2",
        "policy.former_depth=1",
        "policy.depth=1",
        "policy.width=16",
        "policy.num_attention_heads=2",
        "policy.num_steps=4",
        "policy.batch_size=4",
        "policy.warmup_steps=2",
        "policy.decay_steps=2",
        "policy.ema_decay=0.9",
        "policy.eval_every=2",
        "policy.save_every=1",
        *overrides,
    )


def make_policy_trainer(
    config: VampoConfig,
    *,
    predictor: VideoPredictor | None = None,
    episodes: tuple[int, ...] = (0, 1, 2),
    length: int = 7,
):
    """A trainer on made-up episodes, evaluated on another one; features are kept beside the run."""
    predictor = make_model(config) if predictor is None else predictor
    train, held_out = (
        ClipDataset([ActingEpisode(number, length) for number in numbers], num_frames=config.data.num_frames)
        for numbers in (episodes, (8,))
    )
    root = Path(config.run.dir).parent
    datasets = action_datasets(config, predictor.eval(), Clips((train,), held_out), root)
    policy = new_policy(config, predictor, datasets[0])
    return PolicyTrainer(model=policy, config=config, train_dataset=datasets[0], eval_dataset=datasets[1])


def make_policy(features: str = "predictive", **changes) -> VPPPolicy:
    """An untrained policy with a codec, for frames of 32 pixels."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        codec = PatchCodec.fit(torch.rand(40, 3, SIZE, SIZE), patch_size=4, latent_channels=4)
        predictor = VideoPredictor.create(codec, num_frames=3, block_out_channels=(32, 32), num_attention_heads=2)
        settings = {
            "features": features,
            "feature_layers": (0, 1),
            "feature_size": (3, 64, 8, 8) if features == "predictive" else (1, 4, 8, 8),
            "image_size": (SIZE, SIZE),
            "state_dim": STATE_DIM,
            "action_dim": ACTION_DIM,
            "text_dim": 64,
            "action_horizon": HORIZON,
            "num_executed_steps": 2,
            "temporal_ensemble": None,
            "num_sampling_steps": 3,
            "num_queries": 2,
            "former_depth": 1,
            "depth": 1,
            "width": 16,
            "num_attention_heads": 2,
        }
        action = torch.tensor([[0.0, 100.0], [512.0, 300.0]])
        state = torch.tensor([[0.0, 0.0, 1.0], [10.0, 1.0, 1.0]])
        return VPPPolicy(predictor, VPPSettings(**settings | changes), Ranges(action, state)).eval()


def observe(number: int = 0, **changes):
    """An observation that differs for every number."""
    rng = np.random.default_rng(number)
    pixels = rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    return {"pixels": pixels, "state": rng.random(STATE_DIM, dtype=np.float32), **changes}
