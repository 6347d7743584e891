"""The patch codec against PCA and least squares done by hand, the VAE codec against diffusers' pipeline."""

import pytest
import torch
import torch.nn.functional as F
from svd_folder import make_svd_pipeline

from vampo_core.models import PatchCodec, VAECodec


def pushing_frames(num_frames: int, seed: int) -> torch.Tensor:  # [N, 3, 64, 64]
    """Drawings with PushT's palette: white ground, a green goal T, a grey T and a blue disc anywhere."""
    generator = torch.Generator().manual_seed(seed)
    axis = torch.arange(64.0) + 0.5
    y, x = torch.meshgrid(axis, axis, indexing="ij")

    def tee(centre_x, centre_y, angle):
        u = (x - centre_x) * angle.cos() + (y - centre_y) * angle.sin()
        v = (y - centre_y) * angle.cos() - (x - centre_x) * angle.sin()
        bar = (7.5 - u.abs()).clamp(0, 1) * (2 - v.abs()).clamp(0, 1)
        stem = (2 - u.abs()).clamp(0, 1) * (6 - (v - 6).abs()).clamp(0, 1)
        return torch.maximum(bar, stem)

    frames = []
    for _ in range(num_frames):
        frame = torch.ones(3, 64, 64)
        where = torch.rand(6, generator=generator)
        discs = (3 - ((x - 64 * where[3]) ** 2 + (y - 64 * where[4]) ** 2).sqrt()).clamp(0, 1)
        shapes = [
            (tee(torch.tensor(32.0), torch.tensor(32.0), torch.tensor(0.785)), (144, 238, 144)),
            (tee(12 + 40 * where[0], 12 + 40 * where[1], 6.28 * where[2]), (119, 136, 153)),
            (discs, (65, 105, 225)),
        ]
        for mask, colour in shapes:
            frame = frame * (1 - mask) + mask * torch.tensor(colour).view(3, 1, 1) / 255
        frames.append(frame)
    return torch.stack(frames)


@pytest.fixture(scope="module")
def train_frames():
    return pushing_frames(400, seed=0)


@pytest.fixture(scope="module")
def codec(train_frames):
    return PatchCodec.fit(train_frames)


def psnr(decoded, frames):
    return float(-10 * (decoded - frames).square().mean().log10())


def test_held_out_quality_and_unit_variance(codec, train_frames):
    held_out = pushing_frames(60, seed=1)
    latents = codec.encode(held_out)
    assert latents.shape == (60, 16, 8, 8)
    assert psnr(codec.decode(latents), held_out) >= 28
    train_latents = codec.encode(train_frames)
    torch.testing.assert_close(train_latents.std((0, 2, 3)), torch.ones(16), rtol=0.01, atol=0)
    torch.testing.assert_close(train_latents.mean((0, 2, 3)), torch.zeros(16), rtol=0, atol=1e-3)


def test_latents_are_whitened_principal_components(codec, train_frames):
    patches = F.unfold(train_frames.double(), 8, stride=8).transpose(1, 2).flatten(0, 1)
    centred = patches - patches.mean(0)
    _, singular, directions = torch.linalg.svd(centred, full_matrices=False)
    expected = centred @ directions[:16].T / (singular[:16] / len(patches) ** 0.5)
    ours = codec.encode(train_frames).flatten(2).transpose(1, 2).flatten(0, 1).double()
    correlation = (ours * expected).mean(0)
    torch.testing.assert_close(correlation.abs(), torch.ones(16).double(), rtol=1e-3, atol=0)


def test_decoder_beats_the_transposed_encoder(codec, train_frames):
    held_out = pushing_frames(60, seed=1)
    weight = codec.encoder.weight.double().flatten(1)
    patches = F.unfold(held_out.double(), 8, stride=8)
    mean = F.unfold(train_frames.double(), 8, stride=8).mean((0, 2)).view(1, -1, 1)
    directions = weight / weight.norm(dim=1, keepdim=True)
    pca = F.fold(directions.T @ (directions @ (patches - mean)) + mean, (64, 64), 8, stride=8)
    assert psnr(codec.decode(codec.encode(held_out)), held_out) > psnr(pca.clamp(0, 1), held_out) + 0.2


def test_fit_is_deterministic_and_takes_uint8(train_frames):
    few = (train_frames[:80] * 255).round().to(torch.uint8)
    first, second = PatchCodec.fit(few), PatchCodec.fit(few)
    assert first.fingerprint() == second.fingerprint()
    assert first.fingerprint() != PatchCodec.fit(few, latent_channels=12).fingerprint()
    assert PatchCodec.fit(few, max_frames=20).fingerprint() == PatchCodec.fit(few[::4]).fingerprint()
    torch.testing.assert_close(first.encode(few), first.encode(few.float() / 255))


def test_leading_axes(codec):
    frames = pushing_frames(6, seed=2)
    clips = frames.view(2, 3, 3, 64, 64)
    assert torch.equal(codec.encode(clips), codec.encode(frames).view(2, 3, 16, 8, 8))
    assert torch.equal(codec.decode(codec.encode(clips)), codec.decode(codec.encode(frames)).view_as(clips))


def test_round_trip_on_disk(codec, tmp_path):
    codec.save_pretrained(tmp_path)
    loaded = PatchCodec.from_pretrained(tmp_path)
    assert loaded.fingerprint() == codec.fingerprint()
    frames = pushing_frames(2, seed=3)
    assert torch.equal(loaded.encode(frames), codec.encode(frames))
    with torch.no_grad():
        loaded.decoder.bias[0] += 1e-6
    assert loaded.fingerprint() != codec.fingerprint()


def test_bad_frames(codec, train_frames):
    with pytest.raises(ValueError, match=r"frames has shape \(2, 3, 60, 64\), expected .* multiples of 8"):
        codec.encode(torch.rand(2, 3, 60, 64))
    with pytest.raises(ValueError, match=r"frames has shape \(2, 1, 64, 64\)"):
        codec.encode(torch.rand(2, 1, 64, 64))
    with pytest.raises(TypeError, match=r"frames is of torch.int64, expected a float tensor"):
        codec.encode(torch.zeros(2, 3, 64, 64, dtype=torch.long))
    with pytest.raises(ValueError, match=r"latents has shape \(2, 4, 8, 8\), expected \[..., 16, h, w\]"):
        codec.decode(torch.rand(2, 4, 8, 8))
    with pytest.raises(ValueError, match="latent_channels is 16, but the patches of these 3 frames vary in"):
        PatchCodec.fit(torch.full((3, 3, 64, 64), 0.5))
    with pytest.raises(ValueError, match="latent_channels is 200, expected at least 1 and at most 192"):
        PatchCodec.fit(train_frames, latent_channels=200)


def test_vae_codec_is_that_of_the_pipeline():
    pipe = make_svd_pipeline()
    codec = VAECodec(pipe.vae, encode_chunk_size=2, decode_chunk_size=2)
    frames = torch.rand(2, 3, 3, 32, 32)
    with torch.no_grad():
        modes = pipe.vae.encode(frames.flatten(0, 1) * 2 - 1).latent_dist.mode().view(2, 3, 4, 16, 16)
        latents = codec.encode(frames)
        torch.testing.assert_close(latents, modes * pipe.vae.config.scaling_factor)
        decoded = codec.decode(latents)
        for clip in range(2):
            expected = pipe.decode_latents(latents[clip : clip + 1], 3, decode_chunk_size=2)  # [1, 3, F, H, W]
            expected = (expected[0].transpose(0, 1) / 2 + 0.5).clamp(0, 1)
            torch.testing.assert_close(decoded[clip], expected, rtol=1e-4, atol=1e-4)
    assert (codec.latent_channels, codec.spatial_ratio) == (4, 2)
    assert codec.encode(frames[0, :1]).shape == (1, 4, 16, 16)
    with pytest.raises(ValueError, match="multiples of 2"):
        codec.encode(torch.rand(1, 3, 31, 32))
    before = codec.fingerprint()
    with torch.no_grad():
        next(codec.vae.parameters()).add_(1e-3)
    assert codec.fingerprint() != before
