"""LeRobotDataset v3.0, read frame by frame: real data and generated datasets with everything that may occur."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny_run as tiny
import torch
from lerobot_dataset import make_episode, write
from real_data import ROOT, needs

import vampo_core
from vampo_core.config import ConfigError
from vampo_core.data.encode import encode
from vampo_core.data.episode import EpisodeError
from vampo_core.data.formats.lerobot import LeRobotDataset
from vampo_core.data.split import split_episodes
from vampo_core.data.video import read_frames
from vampo_core.data.video_at import read_frames_at

LENGTHS = (7, 1, 12, 5, 9)


@pytest.fixture
def episodes():
    return [make_episode(number, length) for number, length in enumerate(LENGTHS)]


def assert_read(dataset, episodes, camera=0):
    assert [episode.length for episode in dataset.episodes] == [len(e.frames) for e in episodes]
    for read, written in zip(dataset.episodes, episodes, strict=True):
        frames = written.frames[:, ::-1] if camera else written.frames
        assert np.array_equal(read.frames(range(read.length)).numpy(), frames)
        order = [read.length - 1, 0, read.length // 2]
        assert np.array_equal(read.frames(order).numpy(), frames[order])
        assert np.array_equal(read.actions.numpy(), written.actions.reshape(read.length, -1))
        assert np.array_equal(read.states.numpy(), written.states.reshape(read.length, -1))


@pytest.mark.parametrize("images", [False, True])
@pytest.mark.parametrize("per_file", [100, 2])
def test_everything_written_is_read(tmp_path, episodes, images, per_file):
    root = write(tmp_path / "robot", episodes, cameras=("front", "wrist"), images=images, per_file=per_file)
    for camera, name in enumerate(("front", "observation.images.wrist")):
        assert_read(LeRobotDataset(root, camera=name), episodes, camera)
    dataset = LeRobotDataset(root, camera="front", num_episodes=2)
    assert (dataset.name, len(dataset), dataset.fps) == ("robot", 2, 10.0)
    assert dataset.episodes[1].fingerprint != dataset.episodes[0].fingerprint


def test_cameras(tmp_path, episodes):
    root = write(tmp_path / "two", episodes, cameras=("front", "wrist"))
    for camera in (None, "top"):
        with pytest.raises(ValueError, match=r"expected one of observation.images.front, observation.images.wrist"):
            LeRobotDataset(root, camera=camera)
    assert LeRobotDataset(write(tmp_path / "one", episodes)).camera == "observation.images.front"
    with pytest.raises(ValueError, match="has no camera"):
        LeRobotDataset(write(tmp_path / "none", episodes, cameras=()))


def test_states_and_actions_of_every_kind(tmp_path, episodes):
    for episode in episodes:
        episode.states = np.arange(4 * len(episode.frames)).reshape(-1, 2, 2) % 2 == 0  # bool, two axes
        episode.actions = np.arange(len(episode.frames))  # numbers instead of lists
    dataset = LeRobotDataset(write(tmp_path / "odd", episodes))
    assert_read(dataset, episodes)
    assert dataset.episodes[0].states.dtype == torch.float32 and dataset.episodes[0].states.shape == (7, 4)
    without = LeRobotDataset(write(tmp_path / "without", episodes, state=False))
    assert without.episodes[0].states.shape == (7, 0)


def test_other_features_as_state_and_action(tmp_path, episodes):
    root = write(tmp_path / "robot", episodes)
    dataset = LeRobotDataset(root, state="action", action="observation.state")
    assert np.array_equal(dataset.episodes[0].states.numpy(), episodes[0].actions)
    assert np.array_equal(dataset.episodes[2].actions.numpy(), episodes[2].states)
    with pytest.raises(
        ValueError, match=r"state is 'joints', expected one of the features action, .*observation.state"
    ):
        LeRobotDataset(root, state="joints")


def test_a_task_that_changes_begins_another_episode(tmp_path):
    tasks = ["öffne die Schublade"] * 4 + ["抓住杯子"] * 3
    written = [make_episode(0, 7, tasks), make_episode(1, 5)]
    dataset = LeRobotDataset(write(tmp_path / "tasks", written))
    first, second, third = dataset.episodes
    assert [e.instruction for e in dataset.episodes] == ["öffne die Schublade", "抓住杯子", "push the block"]
    assert [e.episode_id for e in dataset.episodes] == ["000000-0", "000000-4", "000001"]
    assert first.video_id == second.video_id != third.video_id
    assert np.array_equal(second.frames([0, 2]).numpy(), written[0].frames[[4, 6]])
    assert np.array_equal(second.actions.numpy(), written[0].actions[4:])


def test_the_authors_split_is_kept(tmp_path, episodes):
    root = write(tmp_path / "split", episodes, info={"splits": {"train": "0:3", "val": "3:5"}})
    train, held_out = split_episodes(LeRobotDataset(root).episodes, held_out=0.2)
    assert [e.number for e in train] == [0, 1, 2] and [e.number for e in held_out] == [3, 4]
    assert all(e.is_held_out is None for e in LeRobotDataset(write(tmp_path / "plain", episodes)).episodes)


def test_what_is_damaged_is_named_and_skipped(tmp_path, episodes):
    root = write(tmp_path / "robot", episodes, per_file=2)
    (root / "videos/observation.images.front/chunk-000/file-001.mp4").unlink()
    with pytest.warns(RuntimeWarning, match=r"000002 \(videos/.*file-001.mp4 is missing\)"):
        dataset = LeRobotDataset(root)
    assert [e.number for e in dataset.episodes] == [0, 1, 4] and len(dataset.skipped) == 2
    with pytest.raises(EpisodeError, match="000002"):
        LeRobotDataset(root, strict=True)
    data = root / "data/chunk-000/file-002.parquet"
    data.write_bytes(data.read_bytes()[:-40])
    with pytest.warns(RuntimeWarning, match="000004"):
        assert [e.number for e in LeRobotDataset(root).episodes] == [0, 1]
    short = root / "videos/observation.images.front/chunk-000/file-000.mp4"
    short.write_bytes(short.read_bytes()[: short.stat().st_size // 3])
    with pytest.warns(RuntimeWarning), pytest.raises(EpisodeError, match="episode '000000' of 'robot'"):
        LeRobotDataset(root).episodes[0].frames(range(7))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("[]", "info.json cannot be read: it holds a list, expected an object"),
        ({"fps": None}, "info.json cannot be read: fps is None, expected a number above 0"),
        ({"fps": "five"}, "fps is 'five', expected a number above 0"),
        ({"features": []}, "features is not an object of features with a dtype each"),
        ({"features": {"action": {}}}, "features is not an object of features with a dtype each"),
        ({"splits": {"val": "80%:100%"}}, "splits is .*80%.*, expected ranges of episodes"),
    ],
)
def test_damaged_information_is_named(tmp_path, episodes, change, message):
    root = write(tmp_path / "robot", episodes, info=None if isinstance(change, str) else change)
    if isinstance(change, str):
        (root / "meta/info.json").write_text(change)
    with pytest.raises(ValueError, match=message):
        LeRobotDataset(root)


@pytest.mark.parametrize(
    ("file", "column", "message"),
    [
        ("meta/tasks.parquet", "task_index", "tasks.parquet cannot be read: no entry 'task_index'"),
        ("meta/tasks.parquet", "__index_level_0__", "tasks.parquet cannot be read: it has no texts"),
        ("meta/episodes/chunk-000/file-000.parquet", "episode_index", "file-000.parquet cannot be read: no entry"),
        ("meta/episodes/chunk-000/file-000.parquet", None, "file-000.parquet cannot be read: "),
    ],
)
def test_damaged_tables_are_named(tmp_path, episodes, file, column, message):
    path = write(tmp_path / "robot", episodes) / file
    if column is None:
        path.write_bytes(path.read_bytes()[:100])
    else:
        pq.write_table(pq.read_table(path).drop_columns([column]), path)
    with pytest.raises(ValueError, match=message):
        LeRobotDataset(tmp_path / "robot")


def test_cameras_have_latents_of_their_own(tmp_path, episodes):
    root = write(tmp_path / "robot", episodes, cameras=("front", "wrist"))

    class Codec:
        def encode(self, frames):
            return frames[:, :, ::4, ::4].contiguous()

        def fingerprint(self):
            return "same"

    for camera in ("front", "wrist"):
        assert encode(LeRobotDataset(root, camera=camera), Codec(), progress=False).num_encoded == len(LENGTHS)
    front, wrist = (LeRobotDataset(root, camera=camera, latents="same").episodes[2] for camera in ("front", "wrist"))
    assert not torch.equal(front.latents([0, 5]), wrist.latents([0, 5]))
    assert front.episode_id == "000002/front" and front.video_id == wrist.video_id


def test_cameras_whose_names_end_alike_have_different_episodes(tmp_path, episodes):
    root = write(tmp_path / "robot", episodes, cameras=("top.rgb", "wrist.rgb"))
    ids = {LeRobotDataset(root, camera=name).episodes[0].episode_id for name in ("top.rgb", "wrist.rgb")}
    assert ids == {"000000/top.rgb", "000000/wrist.rgb"}
    with pytest.raises(ValueError, match="camera is 'rgb', expected one of"):
        LeRobotDataset(root, camera="rgb")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[1.0, 2.0], [3.0], [4.0, 5.0, 6.0]], "rows of different lengths in 'action'"),
        ([[1.0, 2.0], None, [5.0, 6.0]], "rows without a value of 'action'"),
        ([[1.0, 2.0], [None, 4.0], [5.0, 6.0]], "rows without a value of 'action'"),
    ],
)
def test_rows_that_do_not_fit_are_named(tmp_path, rows, message):
    path = write(tmp_path / "robot", [make_episode(0, 3)]) / "data/chunk-000/file-000.parquet"
    table = pq.read_table(path).drop_columns(["action"])
    pq.write_table(table.append_column("action", pa.array(rows)), path)
    with pytest.raises(EpisodeError, match=message):
        _ = LeRobotDataset(tmp_path / "robot").episodes[0].actions


def test_paths_that_lead_out_are_refused(tmp_path, episodes):
    root = write(tmp_path / "robot", episodes, info={"video_path": "../{video_key}.mp4"})
    with pytest.raises(EpisodeError, match="leads out of the dataset, expected one below its root"):
        LeRobotDataset(root)


def test_a_dataset_that_is_all_held_out_says_so(tmp_path, episodes):
    root = write(tmp_path / "robot", episodes, info={"splits": {"test": "0:5"}})
    with pytest.warns(RuntimeWarning, match="all 5 episodes are held out by their authors"):
        split_episodes(LeRobotDataset(root).episodes, held_out=0.2)


def test_a_camera_is_no_state(tmp_path, episodes):
    root = write(tmp_path / "robot", episodes)
    with pytest.raises(ValueError, match=r"state is .observation.images.front., expected one of the features action"):
        LeRobotDataset(root, state="observation.images.front")


def test_fewer_rows_than_frames(tmp_path, episodes):
    root = write(tmp_path / "robot", episodes)
    path = root / "data/chunk-000/file-000.parquet"
    pq.write_table(pq.read_table(path).slice(0, 10), path)
    with pytest.warns(RuntimeWarning, match=r"000002 \(data/.* holds 2 rows of it, expected 12\)"):
        assert len(LeRobotDataset(root)) == 2


def test_other_versions_and_folders(tmp_path, episodes):
    root = write(tmp_path / "old", episodes, info={"codebase_version": "v2.1"})
    with pytest.raises(ValueError, match=r"codebase_version 'v2.1', expected 'v3.0'; lerobot's convert_dataset_v21"):
        LeRobotDataset(root)
    with pytest.raises(FileNotFoundError, match="expected a folder with a LeRobotDataset"):
        LeRobotDataset(tmp_path)
    (root / "meta/info.json").write_text("{")
    with pytest.raises(ValueError, match="is not valid JSON"):
        LeRobotDataset(root)


def test_frames_are_found_by_time_without_decoding_what_lies_before(tmp_path, episodes):
    root = write(tmp_path / "robot", episodes)
    path = root / "videos/observation.images.front/chunk-000/file-000.mp4"
    total = sum(LENGTHS)
    expected = read_frames(path, range(total))
    for order in ([33], [0, 33], [20, 3, 20, 4], list(range(total))):
        found = read_frames_at(path, [i / 10 for i in order], tolerance=0.05)
        assert torch.equal(found, expected[order])
    assert torch.equal(read_frames_at(path, [0.31], tolerance=0.05)[0], expected[3])
    for time in (total / 10 + 0.2, 0.35):
        with pytest.raises(ValueError, match=f"has no frame at {time:.3f} s"):
            read_frames_at(path, [time], tolerance=0.04)


@needs("lerobot")
@pytest.mark.parametrize("camera", ["front", "wrist"])
def test_the_real_dataset(camera):
    """Frames are those of decoding the whole file, and statistics those of the dataset's own library."""
    dataset = LeRobotDataset(ROOT / "lerobot", camera=camera)
    path = ROOT / "lerobot" / f"videos/observation.images.{camera}/chunk-000/file-000.mp4"
    first = 0
    for episode in dataset.episodes:
        expected = read_frames(path, range(first, first + episode.length))
        assert torch.equal(episode.frames(range(episode.length)), expected)
        assert torch.equal(episode.frames([episode.length - 1, 0]), expected[[-1, 0]])
        first += episode.length
    assert [e.length for e in dataset.episodes] == [39, 42, 23, 56]
    assert dataset.episodes[0].instruction == "Put the cheese onto the cloth."
    stats = json.loads((ROOT / "lerobot/meta/stats.json").read_text())
    for name, rows in (("action", "actions"), ("observation.state", "states")):
        values = torch.cat([getattr(e, rows) for e in dataset.episodes]).double()
        torch.testing.assert_close(values.mean(0), torch.tensor(stats[name]["mean"]).double(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(values.amax(0), torch.tensor(stats[name]["max"]).double(), rtol=1e-4, atol=1e-5)


def settings(folder, *overrides):
    return tiny.settings(
        folder, "data.format=lerobot", "data.stride=1", "model.latent_channels=4", "policy.num_steps=2",
        "policy.batch_size=2", "policy.width=16", "policy.num_attention_heads=2", "policy.depth=1",
        "policy.former_depth=1", "policy.action_horizon=4", "policy.num_executed_steps=2", *overrides,
    )  # fmt: skip


def test_every_verb_works_with_it(tmp_path):
    written = [make_episode(number, 8) for number in range(6)]
    write(tmp_path / "data", written, cameras=("front", "wrist"))
    config = settings(tmp_path, "data.camera=wrist", "reward.action_weight=1")
    result = vampo_core.train(config)
    assert result.history[-1]["grad_norm"] > 0 and result.after.action_error is not None
    assert vampo_core.evaluate(result.checkpoint, config).psnr is not None
    assert vampo_core.sample(result.checkpoint, config, output=tmp_path / "x.mp4", num_clips=1).is_file()
    policy = vampo_core.train_policy(config, f"policy.predictor={result.checkpoint}", f"run.dir={tmp_path}/policy")
    assert policy.checkpoint.is_dir()
    with pytest.raises(ValueError, match=r"camera is None, expected one of observation.images.front"):
        vampo_core.train(config, "data.camera=null", f"run.dir={tmp_path}/other")


def test_only_this_format_has_cameras(tmp_path):
    with pytest.raises(ConfigError, match=r"data.camera is 'front' with data.format = 'recorded', expected null"):
        tiny.settings(tmp_path, "data.camera=front")
