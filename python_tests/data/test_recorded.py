"""The recorded format: exact, complete or absent, and damage is named."""

import json

import numpy as np
import pytest
import torch
from recordings import record_short
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from vampo_core.data import EpisodeError, RecordedDataset, open_dataset_of, record
from vampo_core.data.episode import reading
from vampo_core.data.formats.recorded import EpisodeHeader, episode_folder, is_whole, write_episode

pytest.importorskip("gym_pusht", reason="recording tests need `pip install vampo_core[pusht]`")


def test_episode_holds_what_the_simulator_showed(tmp_path):
    from vampo_core import envs

    dataset = record("pusht", tmp_path / "pusht", num_episodes=1, progress=False)
    episode = dataset.episodes[0]
    env = envs.make("pusht")
    pixels, info = env.reset(seed=episode.header.seed)
    frames, actions, states = episode.frames(range(episode.length)), episode.actions, episode.states
    assert frames.shape == (episode.length, 64, 64, 3) and frames.dtype == torch.uint8
    assert actions.shape == states.shape == (episode.length, 2)
    assert episode.privileged_states.shape == (episode.length, 5)
    for t in range(episode.length - 1):
        assert np.array_equal(frames[t], pixels)
        assert np.array_equal(states[t], info["state"])
        pixels, _, terminated, _, info = env.step(actions[t].numpy())
    assert terminated and np.array_equal(frames[-1], pixels)
    assert torch.equal(actions[-1], actions[-2])
    assert episode.header.success and episode.instruction == env.instruction and dataset.fps == env.fps


def test_damage_that_a_decoder_would_not_notice(tmp_path):
    episode = record_short(tmp_path, 1).episodes[0]
    path = episode.folder / "video.mp4"
    video = bytearray(path.read_bytes())
    video[len(video) // 2] ^= 1
    path.write_bytes(video)
    assert not is_whole(episode.folder)
    with pytest.raises(EpisodeError, match=r"episode '000000' of .*: video.mp4 is truncated or damaged"):
        episode.frames([0])


def test_interrupted_write_leaves_no_episode(tmp_path):
    def frames():
        yield np.zeros((16, 16, 3), np.uint8)
        raise KeyboardInterrupt

    header = EpisodeHeader("000000", 2, True, 0, "push", 10.0)
    with pytest.raises(KeyboardInterrupt):
        write_episode(tmp_path / "000000", header, frames(), {})
    assert not (tmp_path / "000000").exists()


def test_reader_names_what_is_wrong(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"expected a folder with a recorded dataset"):
        RecordedDataset(tmp_path / "nowhere")
    record_short(tmp_path / "data", 3)
    with pytest.raises(ValueError, match=r"none of the 3 episodes .* is a success"):
        RecordedDataset(tmp_path / "data")
    arrays = episode_folder(tmp_path / "data", 1) / "episode.safetensors"
    arrays.write_bytes(arrays.read_bytes()[:-1])
    with pytest.warns(RuntimeWarning, match=r"1 of 3 episodes of 'data' cannot be read: 000001 .*; skipped"):
        dataset = RecordedDataset(tmp_path / "data", include_failures=True)
    assert [e.episode_id for e in dataset.episodes] == ["000000", "000002"]
    with pytest.raises(EpisodeError, match=r"1 of 3 episodes"):
        RecordedDataset(tmp_path / "data", include_failures=True, strict=True)
    with pytest.raises(IndexError, match=r"indices contains 5, expected 0 to 4"):
        dataset.episodes[0].frames([5])
    with pytest.raises(ValueError, match=r"was opened without latents"):
        dataset.episodes[0].latents([0])
    info = json.loads((tmp_path / "data" / "dataset.json").read_text())
    (tmp_path / "data" / "dataset.json").write_text(json.dumps(info | {"version": 99}))
    with pytest.raises(ValueError, match=r"version 99, expected 'vampo_core.recorded' version 1"):
        RecordedDataset(tmp_path / "data")


def rewrite_header(folder, **changes):
    """Change entries of an episode's header; those that are ... are removed."""
    path = folder / "episode.safetensors"
    header = json.loads(safe_open(path, "np").metadata()["vampo_core"])
    header = {key: value for key, value in (header | changes).items() if value is not ...}
    save_file(load_file(path), path, metadata={"vampo_core": json.dumps(header)})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"episode_id": "../../x"}, r"episode_id is '../../x', expected '000001', the name of its folder"),
        ({"episode_id": "000002"}, r"episode_id is '000002', expected '000001'"),
        ({"success": "False"}, r"success is 'False', expected a value of type bool"),
        ({"success": 1}, r"success is 1, expected a value of type bool"),
        ({"length": "5"}, r"length is '5', expected a value of type int"),
        ({"length": 0}, r"length is 0, expected at least 1"),
        ({"fps": True}, r"fps is True, expected a value of type int or float"),
        ({"instruction": ...}, r"instruction is None, expected a value of type str"),
        ({"extra": 1}, r"unexpected keyword argument 'extra'"),
    ],
)
def test_a_header_with_other_types_or_another_name_is_skipped_by_name(tmp_path, changes, message):
    record_short(tmp_path / "data", 3)
    rewrite_header(episode_folder(tmp_path / "data", 1), **changes)
    with pytest.warns(RuntimeWarning, match=rf"1 of 3 episodes of 'data' cannot be read: 000001 \(.*{message}"):
        dataset = RecordedDataset(tmp_path / "data", include_failures=True)
    assert [e.episode_id for e in dataset.episodes] == ["000000", "000002"]


def test_an_info_file_without_a_frame_rate_is_named(tmp_path):
    record_short(tmp_path / "data", 1)
    path = tmp_path / "data" / "dataset.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "fps"}))
    with pytest.raises(ValueError, match="fps is None, expected a value of type int or float"):
        RecordedDataset(tmp_path / "data")


def test_any_error_of_reading_names_the_episode():
    for error in (IndexError("tuple index out of range"), AttributeError("x"), AssertionError(), UnicodeError("bad")):
        with pytest.raises(EpisodeError, match=r"episode 'x/1' of 'mine': \w+"), reading("mine", "x/1"):
            raise error
    with pytest.raises(KeyboardInterrupt), reading("mine", "x/1"):
        raise KeyboardInterrupt


def test_a_relative_root_with_a_colon(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = "2026-11-26T10:30:00"
    record_short(root, 1)
    episode = RecordedDataset(root, include_failures=True).episodes[0]
    assert episode.frames([0]).shape == (1, 32, 32, 3)


def test_datasets_are_opened_by_the_name_of_their_format(tmp_path):
    record_short(tmp_path, 3)
    with pytest.raises(ValueError, match="none of the 2 episodes"):
        open_dataset_of("recorded", tmp_path, num_episodes=2)
    dataset = open_dataset_of("recorded", tmp_path, include_failures=True)
    assert isinstance(dataset, RecordedDataset) and len(dataset) == 3
    with pytest.raises(ValueError, match="format is 'hdf5', expected one of lerobot, recorded, vpp"):
        open_dataset_of("hdf5", tmp_path)
