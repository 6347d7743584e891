"""Datasets of the hub: found in its cache by name, never written to; one clear line where the hub is out of reach."""

import shutil

import pytest
import tiny_run as tiny
from huggingface_hub import constants
from lerobot_dataset import make_episode, write

from vampo_core.data.formats import lerobot
from vampo_core.data.hub import dataset_folder
from vampo_core.models.codecs.patch import PatchCodec
from vampo_core.pipeline.clips import open_dataset, prepare_clips


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """A hub's cache with the dataset 'someone/robot'."""
    repository = tmp_path / "hub" / "datasets--someone--robot"
    snapshot = repository / "snapshots" / "0123456789abcdef0123456789abcdef01234567"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(snapshot.name)
    written = write(tmp_path / "made", [make_episode(number, 8) for number in range(4)], cameras=("front", "wrist"))
    snapshot.parent.mkdir()
    shutil.move(written, snapshot)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    monkeypatch.chdir(tmp_path)
    return snapshot


def test_a_name_is_found_in_the_cache(cached, tmp_path):
    dataset = lerobot.LeRobotDataset("someone/robot", camera="front")
    assert (dataset.root, dataset.name, len(dataset)) == (cached, "robot", 4)
    (tmp_path / "someone" / "robot").mkdir(parents=True)
    assert dataset_folder("someone/robot") != cached  # a folder comes first


def test_nothing_is_written_into_the_cache(cached, tmp_path):
    before = sorted(cached.rglob("*"))
    config = tiny.settings(
        tmp_path, "data.format=lerobot", "data.camera=wrist", "data.root=someone/robot", "data.stride=1"
    )
    frames = open_dataset(config).episodes[0].frames(range(8)).permute(0, 3, 1, 2)
    clips = prepare_clips(config, PatchCodec.fit(frames, patch_size=8, latent_channels=4))
    assert len(clips.held_out) and clips.held_out.episodes[0].dataset == "robot"
    assert sorted(cached.rglob("*")) == before
    assert len(list((tmp_path / "user").rglob("*.safetensors"))) == 4


@pytest.mark.parametrize("name", ["someone/else", "data/wrong"])
def test_what_cannot_be_had_is_one_clear_line(cached, name):
    with pytest.raises(FileNotFoundError, match=rf"root is '{name}', expected a folder, or a dataset of the Hugging"):
        lerobot.LeRobotDataset(name)
