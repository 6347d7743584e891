"""The cache of predictive features."""

import pytest
import torch
from policy_runs import ActingEpisode, make_policy_trainer, policy_config
from training_runs import make_model

from vampo_core.policy.vpp.feature_cache import FeatureCache


def test_cached_features_are_the_predictors(tmp_path):
    model, episodes = make_model(policy_config(tmp_path)).eval(), [ActingEpisode(0), ActingEpisode(1)]
    cache = FeatureCache(tmp_path, model, (0, 1))
    assert cache.fill(episodes) == 2 and cache.fill(episodes) == 0
    features = cache.read(episodes[1], 3)
    expected = model.features(instructions=["push the block"], first_latents=episodes[1].latents([3]))[0]
    torch.testing.assert_close(features.float(), expected, rtol=2e-3, atol=2e-3)
    path = cache.folder / "001.safetensors"
    path.write_bytes(path.read_bytes()[:-8])  # cut short
    assert cache.fill(episodes) == 1
    assert FeatureCache(tmp_path, model, (1,)).folder != cache.folder
    with torch.no_grad():
        model.unet.conv_in.bias[0] += 1
    assert FeatureCache(tmp_path, model, (0, 1)).folder != cache.folder
    assert cache.fill([ActingEpisode(0, 8)]) == 1  # another episode under the same name


def test_cached_features_give_the_loss_of_fresh_ones(tmp_path):
    trainer = make_policy_trainer(policy_config(tmp_path / "run"))
    batch = next(trainer.batches(0))
    assert "features" in batch
    cached = trainer.loss(1, batch).item()
    fresh = trainer.loss(1, {key: value for key, value in batch.items() if key != "features"}).item()
    assert cached == pytest.approx(fresh, rel=1e-3) and trainer.loss(2, batch).item() != cached
