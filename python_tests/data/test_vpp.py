"""The VPP reader, on real robot data if it is there, and on made-up episodes for what real ones do not show."""

import json
import os
import pickle
import shutil
import zipfile

import numpy as np
import pytest
import torch
from real_data import ROOT, needs
from torch.nn import functional
from vpp_files import edit_annotation, make_episode

from vampo_core.data import ClipDataset, EpisodeError, VppDataset, clip_loader, encode, open_dataset_of, split_episodes
from vampo_core.data.video import write_video


@needs("bridge")
def test_real_bridge():
    dataset = VppDataset(ROOT / "bridge", "val", strict=True)
    assert [e.episode_id for e in dataset.episodes] == ["val/2", "val/8", "val/10"]
    assert [e.length for e in dataset.episodes] == [40, 43, 24]
    episode = dataset.episodes[0]
    assert episode.instruction == "Put the cheese onto the cloth."
    assert episode.actions.shape == episode.states.shape == (40, 7)
    assert torch.equal(episode.actions[-1], episode.actions[-2])
    latents = episode.latents([39, 0])
    assert latents.shape == (2, 4, 32, 32) and latents.dtype == torch.float32
    stored = torch.load(ROOT / "bridge/latent_videos_svd/val/2/0.pt", weights_only=True)
    assert torch.equal(latents, stored[[39, 0]])
    frames = episode.frames([0, 39])
    assert frames.shape == (2, 480, 640, 3) and frames.dtype == torch.uint8
    assert 20 < frames.float().mean() < 235 and not torch.equal(frames[0], frames[1])


@needs("rt1")
def test_real_rt1_has_only_videos():
    dataset = VppDataset(ROOT / "rt1", "val", strict=True)
    assert [(e.episode_id, e.length) for e in dataset.episodes] == [("val/1", 57), ("val/10", 54)]
    assert dataset.episodes[0].frames([56]).shape == (1, 256, 320, 3)
    with pytest.raises(ValueError, match=r"has no latents here"):
        dataset.episodes[0].latents([0])


class PoolCodec:
    """Averages patches."""

    def encode(self, frames):
        return functional.avg_pool2d(frames, 8)

    def fingerprint(self):
        return "pool"


@needs("bridge", "rt1")
def test_real_datasets_mix_by_weight(tmp_path):
    datasets = []
    for name in ("bridge", "rt1"):
        shutil.copytree(ROOT / name, tmp_path / name)
        latents = encode(VppDataset(tmp_path / name, "val"), PoolCodec(), image_size=32, progress=False).latents
        episodes = VppDataset(tmp_path / name, "val", latents=latents).episodes
        datasets.append(ClipDataset(episodes, num_frames=4, mode="episode"))
    batch = next(iter(clip_loader(datasets, batch_size=4, weights=[1, 3])))
    assert batch["latents"].shape == (4, 4, 3, 4, 4) and batch["latents"].dtype == torch.float32
    assert batch["actions"].shape == (4, 4, 7)
    assert all(clip_id.split("/")[0] in ("bridge", "rt1") for clip_id in batch["clip_id"])


@pytest.mark.parametrize("latent_folder", ["latent_videos", "latent_videos_svd"])
def test_both_latent_folders_and_frame_order(tmp_path, latent_folder):
    make_episode(tmp_path, "7", latent_folder=latent_folder)
    episode = VppDataset(tmp_path, "train", strict=True).episodes[0]
    assert episode.latents([4, 1])[:, 0, 0, 0].tolist() == [4.0, 1.0]
    assert episode.frames([4, 1])[:, 0, 0, 0].tolist() == [40, 10]
    assert episode.states[:, 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert episode.actions[:, 0].tolist() == [0.25, 1.25, 2.25, 3.25, 4.25, 4.25]


def test_other_spellings_and_missing_entries(tmp_path):
    make_episode(tmp_path, "1", state=[], states=[[1.0]] * 6, action=[], actions=[[2.0]] * 6)
    make_episode(tmp_path, "2", state=[], action=[], video_length=5)
    make_episode(tmp_path, "3", state=[], action=[], latent_videos=[])
    plural, by_length, by_video = VppDataset(tmp_path, "train", strict=True).episodes
    assert plural.states.shape == plural.actions.shape == (6, 1)
    assert by_length.length == 5 and by_length.actions.shape == by_length.states.shape == (5, 0)
    assert by_video.length == 6 and not by_video.has_latents


class Exploit:
    def __reduce__(self):
        return (os.mkdir, ("pickle-was-executed",))


def test_pickled_code_is_not_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, latents = make_episode(tmp_path, "1")
    torch.save(Exploit(), latents)
    episode = VppDataset(tmp_path, "train").episodes[0]
    with pytest.raises(EpisodeError, match=r"episode 'train/1' of"):
        episode.latents([0])
    latents.write_bytes(pickle.dumps(Exploit()))
    with pytest.raises(EpisodeError, match=r"episode 'train/1' of"):
        episode.latents([0])
    assert not (tmp_path / "pickle-was-executed").exists()
    assert not zipfile.is_zipfile(latents)


def test_damage_is_reported_by_name_and_skipped(tmp_path):
    for name in "123456":
        make_episode(tmp_path, name)
    folder = tmp_path / "annotation" / "train"
    (folder / "1.json").write_text('{"texts": [')
    annotation = json.loads((folder / "2.json").read_text())
    (folder / "2.json").write_text(json.dumps(annotation | {"texts": []}))
    (folder / "3.json").write_text(json.dumps(annotation | {"videos": [{"video_path": "../../etc/passwd"}]}))
    del annotation["videos"]
    (folder / "4.json").write_text(json.dumps(annotation))
    shutil.rmtree(tmp_path / "videos" / "train" / "5")
    shutil.rmtree(tmp_path / "latent_videos" / "train" / "5")
    with pytest.warns(RuntimeWarning, match=r"5 of 6 episodes of .* cannot be read") as warnings:
        dataset = VppDataset(tmp_path, "train")
    assert [e.episode_id for e in dataset.episodes] == ["train/6"]
    reasons = {s.episode_id: s.reason for s in dataset.skipped}
    assert "texts is []" in reasons["train/2"] and "leads out of the dataset" in reasons["train/3"]
    assert "no entry 'videos'" in reasons["train/4"] and "neither latents nor a video" in reasons["train/5"]
    assert all(name in str(warnings[0].message) for name in reasons)
    with pytest.raises(EpisodeError, match=r"5 of 6"):
        VppDataset(tmp_path, "train", strict=True)


def test_truncated_files(tmp_path):
    video, latents = make_episode(tmp_path, "1", length=6)
    episode = VppDataset(tmp_path, "train").episodes[0]
    torch.save(torch.zeros(4, 4, 2, 3), latents)
    with pytest.raises(EpisodeError, match=r"episode 'train/1' of .* holds 4 latents, expected 6"):
        episode.latents([0])
    latents.write_bytes(latents.read_bytes()[:-100])
    with pytest.raises(EpisodeError, match=r"episode 'train/1'"):
        episode.latents([0])
    write_video(video, [np.zeros((16, 24, 3), np.uint8)] * 4, fps=3)
    with pytest.raises(EpisodeError, match=r"ends after 4 frames, expected at least 6"):
        episode.frames([5])
    video.write_bytes(video.read_bytes()[:-100])
    with pytest.raises(EpisodeError, match=r"episode 'train/1'"):
        episode.frames([0])


def test_wrong_roots_splits_and_cameras(tmp_path):
    make_episode(tmp_path, "1")
    with pytest.raises(FileNotFoundError, match=r"no annotations at .*splits found: train"):
        VppDataset(tmp_path, "val")
    with pytest.raises(EpisodeError, match=r"camera is 1, expected 0 to 0 of 'videos'"):
        VppDataset(tmp_path, "train", camera=1)
    with pytest.raises(EpisodeError, match=r"it has no latents 'mine'; `vampo encode` makes them"):
        VppDataset(tmp_path, "train", latents="mine")


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"texts": 7}, "texts is 7, expected an instruction or a list that begins with one"),
        ({"texts": {"0": "push"}}, "texts is {'0': 'push'}, expected an instruction"),
        ({"texts": [["push"]]}, r"texts is \[\['push'\]\], expected an instruction"),
        (
            {"videos": {"video_path": "a.mp4"}},
            "videos is {.*}, expected a list of objects that each have",
        ),
        ({"videos": [{"video_path": 7}]}, "videos is .*, expected a list of objects"),
        ({"videos": ["a.mp4"]}, "videos is .*, expected a list of objects"),
        (
            {"latent_videos": [{}]},
            r"latent_videos is \[{}\], expected a list of objects that each have a",
        ),
        ({"video_length": "six"}, "its length is 'six', expected a whole number of at least 1"),
        ({"video_length": 5.5}, "its length is 5.5, expected a whole number"),
        ({"video_length": True}, "its length is True, expected a whole number"),
        ({"state": "abc"}, "state is 'abc', expected a list with a row of numbers for each frame"),
    ],
)
def test_wrong_types_in_an_annotation_are_named(tmp_path, entries, message):
    for name in "12":
        make_episode(tmp_path, name)
    edit_annotation(tmp_path, "1", **entries)
    with pytest.warns(RuntimeWarning, match=f"1 of 2 episodes of .* cannot be read: train/1 .{message}"):
        dataset = VppDataset(tmp_path, "train")
    assert [e.episode_id for e in dataset.episodes] == ["train/2"]


@pytest.mark.parametrize("rows", [["a"], [[0.5, None]] * 5, [[True]] * 5, [0.5] * 5])
def test_actions_that_are_no_rows_of_numbers_are_named(tmp_path, rows):
    make_episode(tmp_path, "1", action=rows)
    with pytest.raises(EpisodeError, match=r"'train/1' of .*: action holds something else than rows of numbers"):
        _ = VppDataset(tmp_path, "train").episodes[0].actions


def test_an_instruction_that_is_no_list(tmp_path):
    make_episode(tmp_path, "1", texts="pick up the cup")
    assert VppDataset(tmp_path, "train", strict=True).episodes[0].instruction == "pick up the cup"


def test_hidden_files_are_no_annotations(tmp_path):
    make_episode(tmp_path, "1")
    (tmp_path / "annotation" / "train" / "._1.json").write_bytes(b"\0\5\x16\7")  # a resource fork of macOS
    assert len(VppDataset(tmp_path, "train", strict=True)) == 1


@needs("odd")
def test_a_video_with_an_edit_list_is_used_and_one_without_video_skipped(tmp_path):
    for name, source in (("1", "edit-list"), ("2", "no-video")):
        video, latents = make_episode(tmp_path, name, state=[], action=[], latent_videos=[])
        latents.unlink()
        shutil.copyfile(ROOT / "odd" / f"{source}.mp4", video)
    with pytest.warns(RuntimeWarning, match=r"cannot be read: train/2 \(rgb.mp4 has no video stream\)"):
        (episode,) = VppDataset(tmp_path, "train").episodes
    assert episode.length == 25 and len(episode.frames(range(25))) == 25


# splits


def test_both_splits_are_opened_and_val_is_held_out(tmp_path):
    for name in "123":
        make_episode(tmp_path, name)
    shutil.copytree(tmp_path / "annotation" / "train", tmp_path / "annotation" / "val")
    for name in "13":  # of other videos than the training episodes
        (tmp_path / "annotation" / "val" / f"{name}.json").unlink()
    video, _ = make_episode(tmp_path, "4")
    edit_annotation(tmp_path, "2", "val", videos=[{"video_path": str(video.relative_to(tmp_path))}])
    (tmp_path / "annotation" / "train" / "4.json").unlink()
    dataset = open_dataset_of("vpp", tmp_path, strict=True)
    train, held_out = split_episodes(dataset.episodes, held_out=0.5)
    assert [e.episode_id for e in train] == ["train/1", "train/2", "train/3"]
    assert [e.episode_id for e in held_out] == ["val/2"]
    only_train = VppDataset(tmp_path, "train").episodes
    assert [e.is_held_out for e in only_train] == [None] * 3
    assert len(open_dataset_of("vpp", tmp_path, num_episodes=2).episodes) == 3


def test_two_annotations_of_one_video_stay_on_one_side(tmp_path):
    for name in "123456":
        make_episode(tmp_path, name)
    for name, same in (("2", "1"), ("4", "3"), ("6", "5")):
        edit_annotation(tmp_path, name, videos=[{"video_path": f"videos/train/{same}/rgb.mp4"}])
    episodes = VppDataset(tmp_path, "train", strict=True).episodes
    for seed in range(10):
        train, held_out = split_episodes(episodes, held_out=1 / 3, seed=seed)
        assert {e.video_id for e in train}.isdisjoint(e.video_id for e in held_out) and len(held_out) == 2
