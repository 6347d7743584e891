"""Predictive features against the denoiser's own forward hooks."""

import functools

import pytest
import torch
from torch.nn.functional import interpolate

from vampo_core.models import VideoPredictor

TEXTS = ["open the drawer", "close the drawer", "push the block"]


@pytest.fixture
def small(codec):
    torch.manual_seed(0)
    return VideoPredictor.create(codec, num_frames=3, block_out_channels=(32, 32), num_attention_heads=2)


def load(kind, svd_folder, clip_folder, small):
    if kind == "small":
        return small
    return VideoPredictor.from_pretrained(svd_folder, text_encoder=clip_folder if kind == "vpp" else None)


def some_frames(num_clips=3):
    return torch.rand(num_clips, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def hooked(model, condition, num_frames, seed=0):
    """Outputs of every up block in a whole forward at the largest noise level, each [B, F, D, h, w]."""
    outputs = []
    handles = [
        block.register_forward_hook(lambda module, inputs, output: outputs.append(output))
        for block in model.unet.up_blocks
    ]
    sampler, shape = model.sampler(), condition.image_latents.shape
    noise = sampler.initial_noise((1, num_frames, *shape[1:]), seed=seed)
    model(noise.repeat(shape[0], 1, 1, 1, 1), sampler.sigmas[0], condition)
    for handle in handles:
        handle.remove()
    return [output.unflatten(0, (shape[0], num_frames)) for output in outputs]


@torch.no_grad()
@pytest.mark.parametrize("kind", ["small", "svd", "vpp"])
def test_features_are_the_denoisers_own(svd_folder, clip_folder, small, kind):
    model, frames = load(kind, svd_folder, clip_folder, small), some_frames()
    condition = model.condition(instructions=TEXTS, first_frames=frames)
    first, last = hooked(model, condition, 3)
    features = model.features(frames, TEXTS)
    assert features.shape == (3, 3, first.shape[2] + last.shape[2], *last.shape[-2:])
    enlarged = interpolate(first.flatten(0, 1), size=last.shape[-2:]).unflatten(0, (3, 3))
    assert torch.equal(features, torch.cat([enlarged, last], dim=2))
    assert torch.equal(model.features(frames, TEXTS, layers=[0]), first)
    assert torch.equal(model.features(frames, TEXTS, layers=[1], seed=5), hooked(model, condition, 3, seed=5)[1])
    if kind != "svd":  # its condition is a CLIP image
        latents = model.codec.encode(frames)
        assert torch.equal(model.features(instructions=TEXTS, first_latents=latents), features)


@torch.no_grad()
def test_odd_sizes_end_early_too(small):
    """The UNet tells its upsamplers the size of the skips, and would not know it of the last block it runs."""
    latents = torch.randn(2, 4, 7, 5)
    condition = small.condition(instructions=TEXTS[:2], first_latents=latents)
    features = small.feature_extractor([0])(condition)
    assert torch.equal(features, hooked(small, condition, 3)[0]) and features.shape[-2:] == (7, 5)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["small", "svd", "vpp"])
def test_batch_size_changes_nothing(svd_folder, clip_folder, small, kind):
    model, frames = load(kind, svd_folder, clip_folder, small), some_frames()
    together = model.features(frames, TEXTS)
    for i in range(3):
        alone = model.features(frames[i : i + 1], TEXTS[i : i + 1])
        torch.testing.assert_close(alone[0], together[i], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(together[0], together[1], atol=1e-2)


def test_blocks_behind_the_last_one_do_not_run(small):
    ran = []
    small.unet.up_blocks[1].register_forward_hook(lambda *_: ran.append("block"))
    small.unet.conv_out.register_forward_hook(lambda *_: ran.append("output"))
    small.features(some_frames(), TEXTS, layers=[0])
    assert not ran
    small.features(some_frames(), TEXTS, layers=[0, 1])
    assert ran == ["block"]


def test_gradient_reaches_what_is_trainable(small):
    small.features(some_frames(), TEXTS).square().mean().backward()
    assert small.unet.conv_in.weight.grad.abs().sum() > 0
    small.zero_grad()
    small.requires_grad_(False)
    assert not small.features(some_frames(), TEXTS).requires_grad


@torch.no_grad()
@pytest.mark.parametrize("kind", ["small", "svd"])
def test_half_precision(svd_folder, clip_folder, small, kind):
    model = load(kind, svd_folder, clip_folder, small)
    exact = model.features(some_frames(), TEXTS)
    model.dtype = torch.bfloat16
    half = model.features(some_frames(), TEXTS)
    assert half.dtype == torch.bfloat16
    assert (half - exact).norm() < 0.05 * exact.norm()


@torch.no_grad()
def test_compiled(small, fresh_compiler, monkeypatch):
    """Traced as one graph; what a backend makes of it is torch's business and takes minutes."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager", fullgraph=True))
    condition = small.condition(instructions=TEXTS, first_frames=some_frames())
    extractor = small.feature_extractor((0, 1), compiled=True)
    for _ in range(2):
        torch.testing.assert_close(
            extractor(condition), small.feature_extractor((0, 1))(condition), rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("layers", [(), (1, 0), (0, 0), (2,), (-1,)])
def test_wrong_layers(small, layers):
    with pytest.raises(ValueError, match="expected ascending indices of the UNet's 2 up blocks"):
        small.features(some_frames(), TEXTS, layers=layers)
