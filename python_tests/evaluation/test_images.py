"""PSNR and SSIM against scikit-image, and their place in an evaluation."""

import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from vampo_core.data.clips import collate
from vampo_core.evaluation.images import psnr, ssim
from vampo_core.evaluation.predictor import EvalResult, score
from vampo_core.models.codecs.latent import LatentCodec
from vampo_core.models.codecs.patch import PatchCodec


def some_frames(*shape, noise=0.1):
    """Smooth frames, and the same with noise that grows from one to the next."""
    generator = torch.Generator().manual_seed(0)
    target = torch.nn.functional.interpolate(torch.rand(shape[0], 3, 4, 4, generator=generator), shape[1:])
    noises = torch.randn(target.shape, generator=generator) * noise * torch.arange(1, shape[0] + 1).view(-1, 1, 1, 1)
    return (target + noises).clamp(0, 1), target


@pytest.mark.parametrize("shape", [(3, 32, 32), (2, 11, 11), (2, 24, 57)])
def test_against_scikit_image(shape):
    pred, target = some_frames(*shape)
    for values, oracle in ((psnr(pred, target), _psnr), (ssim(pred, target), _ssim)):
        expected = [oracle(p.numpy(), t.numpy()) for p, t in zip(pred, target, strict=True)]
        assert len(set(expected)) == shape[0]
        torch.testing.assert_close(values, torch.tensor(expected, dtype=torch.float32), rtol=1e-4, atol=1e-4)


def _psnr(pred, target):
    return peak_signal_noise_ratio(target, pred, data_range=1)


def _ssim(pred, target):
    return structural_similarity(
        pred.astype("float64"), target.astype("float64"), channel_axis=0, data_range=1,
        gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
    )  # fmt: skip


def test_leading_axes_and_equal_frames():
    pred, target = some_frames(6, 16, 16)
    for metric in (psnr, ssim):
        assert torch.equal(
            metric(pred.view(2, 3, 3, 16, 16), target.view(2, 3, 3, 16, 16)).flatten(), metric(pred, target)
        )
    assert torch.allclose(psnr(target, target), torch.tensor(100.0))
    assert torch.allclose(ssim(target, target), torch.tensor(1.0))


def test_wrong_shapes():
    with pytest.raises(ValueError, match="at least 11x11"):
        ssim(torch.zeros(3, 10, 20), torch.zeros(3, 10, 20))
    with pytest.raises(ValueError, match=r"expected .* twice"):
        psnr(torch.zeros(2, 3, 16, 16), torch.zeros(3, 16, 16))


@pytest.fixture(scope="module")
def codec():
    return PatchCodec.fit(some_frames(60, 32, 32)[0], patch_size=8, latent_channels=16)


def predictions(codec, num_clips=3, num_samples=2, num_frames=4):
    """Expert latents, and predictions that are worse from frame to frame and from clip to clip."""
    frames = some_frames(num_clips * num_frames, 32, 32, noise=0.01)[0].unflatten(0, (num_clips, num_frames))
    latents = codec.encode(frames)
    batch = collate([{"latents": x, "episode_id": f"{i}"} for i, x in enumerate(latents)])
    noise = torch.randn(num_clips, num_samples, *latents.shape[1:], generator=torch.Generator().manual_seed(1))
    grows = torch.arange(1, num_clips * num_frames + 1).view(num_clips, 1, num_frames, 1, 1, 1)
    return batch, latents.unsqueeze(1) + 0.02 * grows * noise


def test_an_evaluation_measures_decoded_frames(codec):
    batch, videos = predictions(codec)
    result = score(videos, batch, codec=codec)
    frames, expert = codec.decode(videos), codec.decode(batch["latents"]).unsqueeze(1).expand(-1, 2, -1, -1, -1, -1)
    for name, metric in (("psnr", psnr), ("ssim", ssim)):
        expected = metric(frames, expert)  # [B, num_samples, F]
        torch.testing.assert_close(torch.tensor(result.per_frame[name]), expected.mean((0, 1)))
        torch.testing.assert_close(torch.tensor(result.per_clip[name]), expected.mean((1, 2)))
        measured = getattr(result, name)
        assert measured.mean == pytest.approx(expected.mean().item(), rel=1e-5)
        assert measured.ci95[0] < measured.mean < measured.ci95[1]
        assert result.per_frame[name] == sorted(result.per_frame[name], reverse=True)
    assert list(result.metrics) == ["l1", "cosine", "reward", "psnr", "ssim", "motion_ratio"]
    assert EvalResult.from_dict(result.to_dict()) == result


def test_no_frames_without_a_codec_that_decodes(codec):
    batch, videos = predictions(codec)
    for none in (None, LatentCodec(latent_channels=16)):
        result = score(videos, batch, codec=none)
        assert list(result.metrics) == ["l1", "cosine", "reward", "motion_ratio"]
        assert result.psnr is result.ssim is None
        assert EvalResult.from_dict(result.to_dict()) == result
