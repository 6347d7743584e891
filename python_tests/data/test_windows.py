"""Episodes of a codec that compresses time: every clip is encoded on its own, and read back as it was."""

import copy
import pickle

import pytest
import tiny_run as tiny
import torch
from wan_folder import make_folder, make_vae

import vampo_core
from vampo_core.config import ConfigError
from vampo_core.data.encode import encode
from vampo_core.data.episode import EpisodeError
from vampo_core.data.formats.recorded import RecordedDataset
from vampo_core.data.windows import WindowedEpisode, Windows
from vampo_core.models.codecs.base import per_latent_frame
from vampo_core.models.codecs.wan_vae import WanVAECodec
from vampo_core.pipeline.clips import prepare_clips
from vampo_core.policy.inverse_dynamics.pairs import pairs_of

WINDOWS = Windows(num_latents=3, temporal_ratio=4, stride=1)  # nine video frames


@pytest.fixture(scope="module")
def codec():
    torch.manual_seed(0)
    return WanVAECodec(make_vae())


@pytest.fixture
def root(tmp_path):
    tiny.write_dataset(tmp_path / "data", num_episodes=4, action_dim=2)
    return tmp_path


def config(root, *overrides):
    return tiny.settings(root, "data.num_frames=9", "data.stride=1", "data.held_out_fraction=0.25", *overrides)


def expected_clip(codec, episode, start, stride=1):
    frames = episode.frames([min(start + i * stride, episode.length - 1) for i in range(9)])
    return codec.encode(frames.permute(0, 3, 1, 2).unsqueeze(0))[0]


def test_a_clip_is_encoded_on_its_own(codec, root):
    clips = prepare_clips(config(root), codec)
    plain = RecordedDataset(root / "data").episodes
    (train,) = clips.train
    assert train.num_frames == 3 and train.stride == train.hop == 4
    assert len(train) == len(train.episodes) * 3  # starts at 0, 4, 8 of 12 frames
    item = train[1]
    episode = next(e for e in plain if e.episode_id == item["episode_id"])
    assert item["clip_id"].endswith("@4-11")
    torch.testing.assert_close(item["latents"], expected_clip(codec, episode, 4))
    assert torch.equal(item["action_chunks"], episode.actions[[*range(4, 8), 8, 9, 10, 10]].view(2, 4, 2))
    assert item["action_valid"].tolist() == [True, False]  # the second four go past the end
    assert not torch.allclose(item["latents"][1], train[0]["latents"][2], atol=1e-3), "of the same frames"


def test_strides_are_counted_in_video_frames(codec, root):
    clips = prepare_clips(config(root, "data.stride=2", "data.num_frames=5"), codec)
    (train,) = clips.train
    assert train.num_frames == 2 and train.stride == 8
    episode = next(e for e in RecordedDataset(root / "data").episodes if e.episode_id == train[1]["episode_id"])
    frames = episode.frames([8, 10, 11, 11, 11]).permute(0, 3, 1, 2)
    torch.testing.assert_close(train[1]["latents"], codec.encode(frames.unsqueeze(0))[0])


def test_encodings_are_kept_and_told_apart(codec, root):
    dataset = RecordedDataset(root / "data")
    first = encode(dataset, codec, windows=WINDOWS, progress=False)
    assert (first.num_encoded, first.num_reused) == (4, 0)
    again = encode(dataset, codec, windows=WINDOWS, progress=False)
    assert (again.num_encoded, again.num_reused, again.latents) == (0, 4, first.latents)
    others = [
        Windows(num_latents=2, temporal_ratio=4, stride=1),
        Windows(num_latents=3, temporal_ratio=4, stride=2),
        None,
    ]
    names = {encode(dataset, codec, windows=windows, progress=False).latents for windows in others}
    assert len(names | {first.latents}) == 4


def test_single_frames_are_another_encoding(codec, root):
    clips = prepare_clips(config(root), codec, single_frames=True)
    episode = clips.train[0].episodes[0]
    latents = episode.latents([0, 5])
    frames = episode.frames([0, 5]).permute(0, 3, 1, 2)
    torch.testing.assert_close(latents, codec.encode(frames))
    windowed = prepare_clips(config(root), codec).train[0].episodes[0]
    assert isinstance(windowed, WindowedEpisode)
    torch.testing.assert_close(windowed.window(0)[0], latents[0])  # a clip's first frame is an image
    with pytest.raises(ValueError, match=r"is encoded in windows, expected an encoding of single frames"):
        windowed.latents([0])
    with pytest.raises(ValueError, match="start is 3, expected a multiple of 4"):
        windowed.window(3)


def test_pairs_lie_within_windows(codec, root):
    train = prepare_clips(config(root), codec).train[0]
    pairs = pairs_of(config(root), train.episodes)
    assert pairs.horizon == 4
    episode = pairs.episodes[0]
    own = [pairs[i] for i in range(len(pairs)) if pairs[i]["episode_id"] == episode.episode_id]
    # of windows at 0, 4 and 8 in twelve frames: 0 to 4, 4 to 8 (twice, with another past); 8 to 12 is past the end
    assert [item["clip_id"].rpartition("@")[2] for item in own] == ["0", "4", "4"]
    for item, (start, i) in zip(own, [(0, 0), (0, 1), (4, 0)], strict=True):
        window, t = episode.window(start), start + 4 * i
        assert torch.equal(torch.stack([item["latents"], item["next_latents"]]), window[i : i + 2])
        assert torch.equal(item["actions"], episode.actions[t : t + 4])


def test_episodes_travel_to_workers(codec, root):
    episode = prepare_clips(config(root), codec).train[0].episodes[0]
    for copied in (pickle.loads(pickle.dumps(episode)), copy.deepcopy(episode)):
        assert torch.equal(copied.window(4), episode.window(4)) and copied.instruction == episode.instruction


def test_a_damaged_file_names_its_episode(codec, root):
    episode = prepare_clips(config(root), codec).train[0].episodes[0]
    episode.latents_file.write_bytes(b"")
    with pytest.raises(EpisodeError, match=f"episode '{episode.episode_id}'"):
        episode.window(0)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.num_frames=8", r"data.num_frames is 8, expected 4 n \+ 1 with this model's codec: 5, 9, 13"),
        ("data.sampling=episode", r"data.sampling is 'episode', expected 'stride'"),
    ],
)
def test_clips_that_do_not_divide_are_refused(codec, root, override, message):
    with pytest.raises(ConfigError, match=message):
        prepare_clips(config(root, override), codec)


def test_video_frames_share_a_latent_frame():
    values = torch.tensor([[1.0, 2, 4, 6, 8, 0, 0, 4, 8]])
    assert per_latent_frame(values, 4).tolist() == [[1.0, 5.0, 3.0]]
    assert per_latent_frame(values, 1) is values


def test_a_published_wan_folder_is_post_trained_on_videos(codec, root, tmp_path):
    """Latents by the folder's own VAE, text by its own encoder, LoRA, guidance, rewards on actions and pixels."""
    folder = make_folder(tmp_path / "wan")
    settings = config(
        root, f"model.pretrained={folder}", "model.lora=2", "sampler.sigma_min=null", "sampler.sigma_max=null",
        "sampler.rho=null", "sampler.guidance_scale=2", "reward.action_weight=1", "reward.pixel_weight=1",
        "grpo.credit=pathwise", "grpo.num_iterations=2",
    )  # fmt: skip
    result = vampo_core.train(settings)
    row = result.history[-1]
    assert row["grad_norm"] > 0 and row["pixel_l1"] < 0 and row["action_l1"] < 0
    evaluation = vampo_core.evaluate(result.checkpoint, settings)
    assert len(evaluation.per_frame["l1"]) == 2 == len(evaluation.per_frame["psnr"])
    video = vampo_core.sample(result.checkpoint, settings, output=tmp_path / "video.mp4", num_clips=1)
    assert video.is_file()
