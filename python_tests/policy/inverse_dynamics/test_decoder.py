"""The action decoder: what it learns, what it ignores, its folder, and what it refuses to read."""

import json
import warnings

import pytest
import torch
from moving_episodes import BlobEpisode
from safetensors.torch import load_file
from training_runs import make_config

from vampo_core.config import ConfigError
from vampo_core.data.clips import ClipDataset, Clips, collate
from vampo_core.models.codecs.latent import LatentCodec
from vampo_core.pipeline import decoders as pipeline
from vampo_core.policy.inverse_dynamics.decoder import ActionDecoder
from vampo_core.policy.inverse_dynamics.networks import NETWORKS
from vampo_core.policy.inverse_dynamics.pairs import PairDataset, pairs_of
from vampo_core.policy.inverse_dynamics.settings import DecoderSettings
from vampo_core.training.checkpoint import find_checkpoint, step_of

CODEC, HELD_OUT = LatentCodec(2), [BlobEpisode(number=number, length=40) for number in (90, 91)]
PUSHES = tuple(t for t in range(40) if t % 3)


def settings(folder, *overrides):
    """Three seconds of training on frames at a distance of one."""
    return make_config(
        folder / "runs" / "run", "data.stride=1", "decoder.num_steps=250", "decoder.lr=3e-3", "decoder.width=16",
        "decoder.decay_steps=150", "decoder.latent_noise=0.02", "decoder.max_epochs=1000", "decoder.batch_size=64",
        *overrides,
    )  # fmt: skip


def clips_of(train, held_out=HELD_OUT):
    return Clips((ClipDataset(train, num_frames=3),), ClipDataset(held_out, num_frames=3))


def error_on(decoder, episodes) -> float:
    """Mean absolute error over all pairs, written out."""
    errors = []
    for episode in episodes:
        latents = episode.latents(range(episode.length))
        for t in range(episode.length - 1):
            decoded = decoder.unnormalize(decoder(latents[t : t + 1], latents[t + 1 : t + 2]))[0, 0]
            errors.append((decoded - episode.actions[t]).abs().mean())
    return torch.stack(errors).mean().item()


@pytest.mark.parametrize("network", sorted(NETWORKS))
def test_it_recovers_actions_and_is_not_disturbed_by_pushes(tmp_path, network):
    """Pushed actions lead the other way: whoever learns from them cannot tell what an action does."""
    clean = [BlobEpisode(number=n, length=40) for n in range(4)]
    pushed = [BlobEpisode(number=n, length=40, pushed=PUSHES) for n in range(20, 28)]
    config = settings(tmp_path)
    decoder = pipeline._trained(config, CODEC, *_sides(clips_of([*clean, *pushed])), network)
    assert error_on(decoder, clean) < 0.3, "of actions between -4 and 4, whose mean size is 2.2"
    assert error_on(decoder, [BlobEpisode(number=95, length=40)]) < 0.9

    blind = [_NotMarked(number=e.number, length=40, pushed=e.pushed) for e in pushed]
    disturbed = pipeline._trained(settings(tmp_path / "disturbed"), CODEC, *_sides(clips_of([*clean, *blind])), network)
    assert error_on(disturbed, clean) > 2 * error_on(decoder, clean)


class _NotMarked(BlobEpisode):
    """Pushed, but the data does not say so."""

    @property
    def is_pushed(self):
        return torch.zeros(self.length, dtype=torch.bool)

    @property
    def positions(self):
        return BlobEpisode(number=self.number, length=self.length, pushed=self.pushed).positions


def _sides(clips):
    return clips.train[0], clips.held_out


def test_the_loss_is_the_mean_error_of_normalized_actions(tmp_path):
    config = settings(tmp_path, "decoder.latent_noise=0")
    dataset = pairs_of(config, [BlobEpisode(number=n) for n in range(2)])
    decoder = ActionDecoder.new(config, "codec", dataset, "difference")
    batch = collate([dataset[i] for i in (0, 5, 7)])
    errors = []
    low, high = torch.stack([e.actions[:-1] for e in dataset.episodes]).flatten(0, 1).aminmax(dim=0)
    for i in range(3):
        decoded = decoder(batch["latents"][i : i + 1], batch["next_latents"][i : i + 1])[0]
        wanted = 2 * (batch["actions"][i] - low) / (high - low) - 1
        errors.append((decoded - wanted).abs().mean())
    loss = decoder.training_loss(batch, seed=0, iteration=3, first_clip=0)
    assert loss.item() == pytest.approx(torch.stack(errors).mean().item(), rel=1e-5)


def test_noise_differs_between_frames_updates_and_places(tmp_path):
    """A part of a batch on another process gets the noise that it would have in the whole batch."""
    config = settings(tmp_path, "decoder.latent_noise=0.5")
    dataset = pairs_of(config, [BlobEpisode(number=n) for n in range(2)])
    decoder = ActionDecoder.new(config, "codec", dataset, "difference")
    seen = []
    decoder.network.forward = lambda *frames: seen.append(torch.stack(frames)) or torch.zeros(frames[0].shape[0], 2)
    batch = collate([dataset[i] for i in range(4)])
    for iteration, first in ((1, 0), (2, 0), (1, 2)):
        part = {key: values[first:] for key, values in batch.items()}
        decoder.training_loss(part, seed=0, iteration=iteration, first_clip=first)
    clean = torch.stack([batch["latents"], batch["next_latents"]])
    first, other, part = ((x - clean[:, -x.shape[1] :]) / 0.5 for x in seen)
    assert torch.equal(seen[2], seen[0][:, 2:]) and part.shape[1] == 2
    assert not torch.allclose(first, other) and not torch.allclose(first[0], first[1])
    assert first.std().item() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("size", [(2, 8, 8), (4, 4, 4), (3, 2, 2), (4, 24, 40)])
@pytest.mark.parametrize("network", sorted(NETWORKS))
def test_latents_of_any_size(network, size):
    made = DecoderSettings(
        network=network, latent_size=size, codec="c", num_actions=3, action_dim=5, width=8, latent_noise=0.0
    )
    decoder = ActionDecoder(made, torch.zeros(2, 5)).eval()
    frames = torch.randn(2, 4, *size)
    assert decoder(*frames).shape == (4, 3, 5)
    torch.testing.assert_close(decoder(*frames)[2:], decoder(*frames[:, 2:]))


def test_a_folder_is_the_decoder(tmp_path):
    config = settings(tmp_path)
    decoder = ActionDecoder.new(config, "codec", PairDataset([BlobEpisode(number=0)], horizon=2), "judge")
    decoder.save_pretrained(tmp_path / "decoder")
    loaded = ActionDecoder.from_pretrained(tmp_path / "decoder")
    assert loaded.settings == decoder.settings and loaded.fingerprint() == decoder.fingerprint()
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())
    assert torch.equal(loaded.action_range, decoder.action_range)
    changed = tmp_path / "decoder" / "decoder.json"
    values = json.loads(changed.read_text())
    for wrong, message in (
        (values | {"architecture": 7}, "architecture is 7, expected 1"),
        (values | {"width": 8}, "size mismatch"),
        (values | {"colour": "red"}, "colour"),
        ({"architecture": 1}, "latent_size"),
    ):
        changed.write_text(json.dumps(wrong))
        with pytest.raises(ValueError, match=rf"decoder holds no action decoder that can be loaded: .*{message}") as e:
            ActionDecoder.from_pretrained(tmp_path / "decoder")
        assert "\n" not in str(e.value)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty"):
        ActionDecoder.from_pretrained(tmp_path / "empty")


def test_it_refuses_other_latents_and_other_actions(tmp_path):
    config = settings(tmp_path)
    decoder = ActionDecoder.new(config, "abc", PairDataset([BlobEpisode(number=0)], horizon=2), "difference")
    decoder.check("x", codec="abc", num_actions=2, action_dim=2)
    for changes, message in (
        ({"codec": "xyz"}, "x reads latents of codec abc, expected xyz, the predictor's codec"),
        ({"num_actions": 3}, r"x reads 2 actions between two frames, expected data.stride = 3"),
        ({"action_dim": 7}, "x reads actions of 2 numbers, expected the data's 7"),
    ):
        with pytest.raises(ConfigError, match=message):
            decoder.check("x", **({"codec": "abc", "num_actions": 2, "action_dim": 2} | changes))


@pytest.mark.parametrize("network", sorted(NETWORKS))
def test_training_goes_on_where_it_was_stopped(tmp_path, monkeypatch, network):
    """Also where the process died between two checkpoints, and the next one has another global seed."""
    clips = _sides(clips_of([BlobEpisode(number=n, length=20) for n in range(3)]))
    short = ["decoder.num_steps=8", "decoder.decay_steps=4"]
    expected = pipeline._trained(settings(tmp_path / "whole", *short), CODEC, *clips, network)
    config = settings(tmp_path / "parts", *short)
    original = ActionDecoder.training_loss

    def dies(self, batch, *, iteration, **given):
        if iteration == 6:
            raise RuntimeError("out of power")
        return original(self, batch, iteration=iteration, **given)

    monkeypatch.setattr(ActionDecoder, "training_loss", dies)
    with pytest.raises(RuntimeError, match="out of power"):
        pipeline._trained(config, CODEC, *clips, network)
    monkeypatch.setattr(ActionDecoder, "training_loss", original)
    (folder,) = (tmp_path / "parts" / "runs").glob("[!.]*")
    assert step_of(find_checkpoint(folder)) == 4
    torch.manual_seed(99)
    decoder = pipeline._trained(config, CODEC, *clips, network)
    assert decoder.fingerprint() == expected.fingerprint()
    monkeypatch.setattr(ActionDecoder, "training_loss", None)
    assert pipeline._trained(config, CODEC, *clips, network).fingerprint() == expected.fingerprint()
    weights = load_file(find_checkpoint(folder) / "decoder.safetensors")
    assert all(torch.equal(weights[name], x) for name, x in expected.state_dict().items())


def test_a_decoder_that_is_no_better_than_the_median_is_named(tmp_path):
    """Actions that no latents show; a decoder of another data set does not warn."""

    class Unseen(BlobEpisode):
        def latents(self, indices):
            return torch.randn(len(indices), 2, 8, 8, generator=torch.Generator().manual_seed(self.number))

    config = settings(tmp_path, "decoder.num_steps=60", "evaluation.num_clips=70")
    clips = _sides(clips_of([Unseen(number=n, length=40) for n in range(3)], [Unseen(number=90, length=80)]))
    with pytest.warns(
        RuntimeWarning, match=r"the action decoder of dataset 'moving' has a held-out error of 0\.\d+, no"
    ):
        pipeline._trained(config, CODEC, *clips, "difference")
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        pipeline._trained(config, CODEC, *clips, "difference")  # found
        seen = clips_of([BlobEpisode(number=n, length=40) for n in range(8)])
        pipeline._trained(settings(tmp_path / "good", "decoder.num_steps=100"), CODEC, *_sides(seen), "difference")
