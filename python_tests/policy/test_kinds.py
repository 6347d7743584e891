"""A second kind of policy: one class and one line in the registry, for training, report, folder and control."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import tiny_run
import torch
from torch import nn

import vampo_core
from vampo_core import Policy
from vampo_core.config import PolicyConfig, load_config
from vampo_core.ops import philox_normal
from vampo_core.policy import registry
from vampo_core.policy.normalization import normalize, unnormalize
from vampo_core.policy.settings import PolicySettings


@dataclass(frozen=True, kw_only=True)
class LinearSettings(PolicySettings):
    """A setting of its own."""

    kind: ClassVar[str] = "linear"
    architecture: ClassVar[int] = 1

    size: int
    """Numbers in the current frame's latents."""


class LinearPolicy(Policy):
    """One linear layer on the current frame and on noise of a video's shape."""

    settings_type = LinearSettings

    def __init__(self, predictor, settings, ranges):
        super().__init__(predictor, settings, ranges)
        self.layer = nn.Linear(settings.size, settings.action_horizon * settings.action_dim)

    @classmethod
    def new(cls, config, predictor, dataset):
        options = config.policy
        latents, ratio = dataset[0]["latents"], predictor.codec.spatial_ratio
        predictor.requires_grad_(False)
        given = LinearSettings(
            image_size=(latents.shape[1] * ratio, latents.shape[2] * ratio), state_dim=dataset.state_dim,
            action_dim=dataset.action_dim, action_horizon=options.action_horizon,
            num_executed_steps=options.num_executed_steps, temporal_ensemble=None, size=latents.numel(),
        )  # fmt: skip
        return cls(predictor, given, dataset.ranges())

    def forward(self, latents):  # [B, C, h, w] -> [B, H, A], normalized
        return self.layer(latents.flatten(1)).unflatten(1, (self.settings.action_horizon, -1))

    def training_loss(self, batch, *, seed, iteration, first_clip):
        return (self(batch["latents"]) - normalize(batch["actions"], self.action_range)).square().mean()

    def predict_recorded(self, batch, *, num_samples, seed, first_clip):
        return unnormalize(self(batch["latents"]), self.action_range).unsqueeze(1).expand(-1, num_samples, -1, -1)

    def predict_observed(self, states, condition, seeds):
        shape = (1, 1, self.predictor.settings.num_frames, *condition.image_latents.shape[1:])
        videos = torch.cat([philox_normal(shape, seed=seed)[:, 0] for seed in seeds])  # [B, F, C, h, w]
        return unnormalize(self(videos.mean(1)), self.action_range + torch.tensor([[-1.0], [1.0]]))


@pytest.fixture
def linear(monkeypatch):
    monkeypatch.setitem(registry.KINDS, "linear", "test_kinds:LinearPolicy")
    # as if the setting offered it: a kind that is not there is refused
    monkeypatch.setattr(PolicyConfig, "__post_init__", lambda self: None)


def test_a_second_kind(tmp_path, linear):
    tiny_run.write_dataset(tmp_path / "data")
    config = tiny_run.settings(
        tmp_path, "policy.kind=linear", "policy.num_steps=2", "policy.batch_size=4", "policy.num_executed_steps=3"
    )
    result = vampo_core.train_policy(config)
    assert np.isfinite(result.after.action_l1.mean) and len(result.history) == 2
    assert not (tmp_path / "data" / "features").exists(), "features are not for every kind"
    assert "3 executed" in vampo_core.write_report(config).read_text()
    policy = Policy.from_pretrained(result.checkpoint)
    assert isinstance(policy, LinearPolicy) and policy.settings.size == policy.layer.in_features
    observation = {"pixels": np.zeros((tiny_run.SIZE, tiny_run.SIZE, 3), np.uint8), "state": np.zeros(2, np.float32)}
    first, second = (policy.predict([observation], ["cross"], [seed]) for seed in (0, 1))
    assert first.shape == (1, config.policy.action_horizon, 2) and not np.array_equal(first, second)
    assert policy.act(observation, "cross").shape == (2,)


def test_every_kind_can_be_asked_for():
    for kind in registry.KINDS:
        assert load_config("pusht", f"policy.kind={kind}").policy.kind == kind
        assert registry.policy_class(kind).settings_type.kind == kind
    with pytest.raises(ValueError, match=", ".join(registry.KINDS)):
        load_config("pusht", "policy.kind=unknown")
