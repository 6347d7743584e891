"""Another backbone joins by one line in the registry: nothing outside of ``models/svd`` is about SVD."""

import math

import pytest
import tiny_run as tiny
import torch
from toy_backbone import ToyPredictor

import vampo_core
from vampo_core.models import VideoPredictor, registry


@pytest.fixture
def toy_folder(tmp_path, codec, monkeypatch):
    monkeypatch.setitem(registry.BACKBONES, "toy", "toy_backbone:ToyPredictor")
    torch.manual_seed(0)
    ToyPredictor.new(codec, num_frames=4).save_pretrained(tmp_path / "toy")
    tiny.write_dataset(tmp_path / "data")
    return tmp_path / "toy"


def settings(folder, *overrides):
    return tiny.settings(
        folder, f"model.pretrained={folder}/toy", "policy.feature_layers=[0]", "policy.num_steps=2",
        "policy.batch_size=2", "policy.width=16", "policy.num_attention_heads=2", "policy.depth=1",
        "policy.former_depth=1", "policy.action_horizon=4", "policy.num_executed_steps=2", "policy.eval_every=2",
        *overrides,
    )  # fmt: skip


@pytest.mark.parametrize("overrides", [(), ("grpo.kl_coef=0.1", "grpo.anchor_coef=0.1", "sampler.guidance_scale=2")])
def test_post_training(toy_folder, tmp_path, overrides):
    result = vampo_core.train(settings(tmp_path, *overrides))
    assert result.history[-1]["grad_norm"] > 0
    after = VideoPredictor.from_pretrained(result.checkpoint)
    before = VideoPredictor.from_pretrained(toy_folder)
    assert isinstance(after, ToyPredictor) and isinstance(after, VideoPredictor)
    assert not torch.equal(after.network.weight, before.network.weight)
    assert after.sampler().num_inference_steps == 3
    assert math.isfinite(vampo_core.evaluate(result.checkpoint, settings(tmp_path)).l1.mean)


def test_likelihood_training(toy_folder, tmp_path):
    result = vampo_core.pretrain(settings(tmp_path))
    assert isinstance(VideoPredictor.from_pretrained(result.checkpoint), ToyPredictor)


@pytest.mark.parametrize("train_predictor", ["true", "false"])
def test_a_policy(toy_folder, tmp_path, train_predictor):
    config = settings(tmp_path, f"policy.predictor={toy_folder}", f"policy.train_predictor={train_predictor}")
    policy = vampo_core.Policy.from_pretrained(vampo_core.train_policy(config).checkpoint)
    assert isinstance(policy.predictor, ToyPredictor)
    moved = not torch.equal(policy.predictor.network.weight, VideoPredictor.from_pretrained(toy_folder).network.weight)
    assert moved == (train_predictor == "true")


def test_a_folder_that_no_backbone_knows(tmp_path):
    with pytest.raises(ValueError, match=r"has no unet/config.json, expected a StableVideoDiffusionPipeline folder"):
        VideoPredictor.from_pretrained(tmp_path)
