"""Export as LeRobotDataset v3.0: what is written is read back identical, whole or not at all."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from leftovers import leftover_of
from lerobot_dataset import make_episode, write

from vampo_core.cli import main
from vampo_core.data import RecordedDataset
from vampo_core.data.episode import EpisodeError
from vampo_core.data.formats import lerobot_writer
from vampo_core.data.formats.lerobot import LeRobotDataset
from vampo_core.data.formats.lerobot_stats import ImageStats
from vampo_core.data.formats.lerobot_writer import write_lerobot
from vampo_core.data.formats.recorded import FORMAT, VERSION, EpisodeHeader, episode_folder, write_episode


@pytest.fixture
def recorded(tmp_path):
    """Recorded episodes with pushes, two tasks and a failure."""
    root, rng = tmp_path / "recorded", np.random.default_rng(0)
    root.mkdir()
    info = {"format": FORMAT, "version": VERSION, "env": "none", "env_kwargs": {}, "seed": 0, "fps": 12.5}
    (root / "dataset.json").write_text(json.dumps(info))
    for i, length in enumerate((5, 30, 2)):
        header = EpisodeHeader(f"{i:06d}", length, i != 1, i, ("push", "öffne")[i % 2], 12.5)
        arrays = {
            "actions": rng.normal(size=(length - 1, 3)),
            "states": rng.normal(size=(length, 1)),
            "privileged_states": np.zeros((length, 0)),
            "is_pushed": rng.random((length - 1, 1)) < 0.3,
        }
        frames = rng.integers(0, 256, (length, 15, 23, 3), dtype=np.uint8)
        write_episode(episode_folder(root, i), header, frames, arrays)
    return root


def assert_equal(read, written):
    assert (read.length, read.instruction) == (written.length, written.instruction)
    assert torch.equal(read.frames(range(read.length)), written.frames(range(read.length)))
    for name in ("actions", "states", "is_pushed"):
        assert torch.equal(getattr(read, name), getattr(written, name)), name


def test_recorded_episodes_come_back_identical(tmp_path, recorded, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    command = ["export", "--config", "pusht", "data.env=null", "data.root=recorded", "--to", "lerobot", "--output"]
    assert main([*command, "all", "--failures"]) == 0 and "dataset: all" in capsys.readouterr().out
    source = RecordedDataset(recorded, include_failures=True)
    dataset = LeRobotDataset(tmp_path / "all", strict=True)
    assert dataset.fps == 12.5
    for read, written in zip(dataset.episodes, source.episodes, strict=True):
        assert_equal(read, written)
    rows = pq.read_table(tmp_path / "all/data/chunk-000/file-000.parquet").to_pydict()
    assert [i for i, success in enumerate(rows["next.success"]) if success] == [4, 36]
    assert rows["index"] == list(range(37)) and rows["timestamp"][6] == pytest.approx(1 / 12.5)
    assert main([*command, "successes"]) == 0
    assert [e.length for e in LeRobotDataset(tmp_path / "successes").episodes] == [5, 2]


def test_a_lerobot_dataset_is_written_again(tmp_path, monkeypatch):
    """One camera of it; an episode whose task changes becomes several; the authors' split stays."""
    made = [make_episode(0, 7, ["a"] * 3 + ["b"] * 4), make_episode(1, 5), make_episode(2, 4)]
    info = {"splits": {"val": "0:1", "train": "1:3"}}
    source = LeRobotDataset(write(tmp_path / "made", made, cameras=("front", "wrist"), info=info), camera="wrist")
    root = write_lerobot(source.episodes, tmp_path / "again", fps=source.fps, camera=source.camera, progress=False)
    dataset = LeRobotDataset(root)
    assert dataset.camera == "observation.images.wrist" and dataset.info["splits"] == {"train": "0:2", "val": "2:4"}
    order = sorted(source.episodes, key=lambda episode: bool(episode.is_held_out))
    for read, written in zip(dataset.episodes, order, strict=True):
        assert_equal(read, written)
        assert read.is_held_out == written.is_held_out


def test_several_files(tmp_path, recorded, monkeypatch):
    monkeypatch.setattr(lerobot_writer, "_DATA_MB", 0)
    monkeypatch.setattr(lerobot_writer, "_FRAMES_AT_ONCE", 7)
    monkeypatch.setattr(lerobot_writer, "_CHUNK", 2)
    source = RecordedDataset(recorded, include_failures=True)
    root = write_lerobot(source.episodes, tmp_path / "files", fps=12.5, progress=False)
    found = sorted(str(p.relative_to(root / "data")) for p in (root / "data").rglob("*.parquet"))
    assert found == ["chunk-000/file-000.parquet", "chunk-000/file-001.parquet", "chunk-001/file-000.parquet"]
    for read, written in zip(LeRobotDataset(root).episodes, source.episodes, strict=True):
        assert_equal(read, written)


def test_statistics_of_pictures():
    pictures = torch.from_numpy((256 * np.random.default_rng(0).random((40, 6, 7, 3)) ** 2).astype(np.uint8))
    stats, halves = ImageStats(), ImageStats()
    stats.add(pictures[:10])
    halves.add(pictures[10:])
    stats.merge(halves)
    values = pictures.numpy().reshape(-1, 3) / 255
    found = stats.result()
    for name, expected in (
        *(("min", values.min(0)), ("max", values.max(0)), ("mean", values.mean(0)), ("std", values.std(0))),
        *((f"q{q:02d}", np.quantile(values, q / 100, axis=0, method="inverted_cdf")) for q in (1, 10, 50, 90, 99)),
    ):
        assert found[name].shape == (3, 1, 1)
        np.testing.assert_allclose(found[name].ravel(), expected, rtol=1e-9, atol=1e-12, err_msg=name)
    assert found["count"].tolist() == [40]


def test_nothing_is_replaced_and_nothing_half_done(tmp_path, recorded, monkeypatch):
    source = RecordedDataset(recorded, include_failures=True)
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine").write_text("x")
    with pytest.raises(FileExistsError, match="expected a new folder: nothing there is replaced"):
        write_lerobot(source.episodes, full, fps=12.5)
    video = source.episodes[1].folder / "video.mp4"
    video.write_bytes(video.read_bytes()[:-20])
    with pytest.raises(EpisodeError, match="episode '000001' of 'recorded'"):
        write_lerobot(source.episodes, tmp_path / "new", fps=12.5, progress=False)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["full", "recorded"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoding": "mpeg2"}, "encoding is 'mpeg2', expected one of lossless, av1"),
        ({"successes": [True]}, "successes has 1 entries, expected one for each of 3 episodes"),
        ({"encoding": "av1"}, "frames are 15x23, expected an even height and width for this encoding"),
        ({"episodes": []}, "episodes is empty"),
    ],
)
def test_bad_arguments(tmp_path, recorded, options, message):
    episodes = options.pop("episodes", RecordedDataset(recorded, include_failures=True).episodes)
    with pytest.raises(ValueError, match=message):
        write_lerobot(episodes, tmp_path / "new", fps=12.5, progress=False, **options)


def test_episodes_of_other_sizes_are_named(tmp_path):
    narrow, wide = make_episode(0, 4), make_episode(1, 4)
    wide.actions = np.zeros((4, 5), np.float32)
    first = LeRobotDataset(write(tmp_path / "a", [narrow]))
    second = LeRobotDataset(write(tmp_path / "b", [wide]))
    with pytest.raises(ValueError, match=r"episode '000000' has 5 numbers in action, expected 3 as in the others"):
        write_lerobot([*first.episodes, *second.episodes], tmp_path / "new", fps=10, progress=False)


def test_what_cannot_be_written_is_refused_before_anything_is_recorded(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("vampo_core.pipeline.clips.record", lambda *given, **options: pytest.fail("it records"))
    (tmp_path / "full" / "x").mkdir(parents=True)
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to("nowhere")
    for output, message in (
        ("full", "output is 'full', expected a new folder"),
        ("link", "output is 'link', expected a new folder"),
        ("file/x", "output is 'file/x', expected a folder that can be made there"),
    ):
        assert main(["export", "--config", "pusht", "--to", "lerobot", "--output", output]) == 1
        assert message in capsys.readouterr().err
    assert main(["export", "--config", "pusht", "--to", "lerobot", "--output", "new", "--encoding", "x"]) == 1


def test_a_killed_export_is_cleared_away_by_the_next_one(tmp_path, recorded):
    left = leftover_of(tmp_path / "new")
    left.mkdir()
    write_lerobot(RecordedDataset(recorded).episodes, tmp_path / "new", fps=12.5, progress=False)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["new", "recorded"]


def test_numbers_that_are_not_finite_are_refused(tmp_path):
    made = make_episode(0, 4)
    made.states[2, 0] = np.nan
    source = LeRobotDataset(write(tmp_path / "made", [made]))
    with pytest.raises(ValueError, match=r"episode '000000' has numbers in observation.state that are not finite"):
        write_lerobot(source.episodes, tmp_path / "new", fps=10, progress=False)
