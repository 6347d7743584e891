"""Our reader and writer against the format's own library, frame by frame and time stamp by time stamp."""

import numpy as np
import pytest
import torch
from lerobot_dataset import make_episode, write
from lerobot_library import library, needs_decoder, open_with_library
from real_data import ROOT, needs

from vampo_core.data.formats.lerobot import LeRobotDataset
from vampo_core.data.formats.lerobot_writer import CAMERA, write_lerobot


def assert_same(ours, theirs, key):
    """Frames, rows and tasks of every frame."""
    number = 0
    for episode in ours.episodes:
        frames = episode.frames(range(episode.length)).permute(0, 3, 1, 2)
        for t in range(episode.length):
            item = theirs[number]
            assert torch.equal((item[key] * 255).round().to(torch.uint8), frames[t]), (number, key)
            assert item["task"] == episode.instruction
            assert float(item["timestamp"]) == pytest.approx((episode.begin + t) / ours.fps, abs=1e-4)
            torch.testing.assert_close(item["action"].reshape(-1).float(), episode.actions[t])
            if "observation.state" in item:
                torch.testing.assert_close(item["observation.state"].reshape(-1).float(), episode.states[t])
            number += 1
    assert number == len(theirs)


@needs("lerobot")
@pytest.mark.parametrize("camera", ["front", "wrist"])
def test_the_real_dataset(camera):
    library()
    needs_decoder()
    theirs = open_with_library(ROOT / "lerobot")
    assert_same(LeRobotDataset(ROOT / "lerobot", camera=camera), theirs, f"observation.images.{camera}")


@pytest.mark.parametrize("encoding", ["lossless", "av1"])
def test_what_we_write(tmp_path, encoding):
    library()
    needs_decoder()
    source = LeRobotDataset(write(tmp_path / "made", [make_episode(n, 9 + n, f"task {n} 抓") for n in range(3)]))
    root = write_lerobot(
        source.episodes, tmp_path / "ours", fps=10, successes=[True, False, True], encoding=encoding, progress=False
    )
    theirs = open_with_library(root)
    assert_same(LeRobotDataset(root), theirs, CAMERA)
    assert [bool(theirs[i]["next.success"]) for i in (8, 18, 29)] == [True, False, True]
    assert (theirs.meta.total_episodes, theirs.meta.fps, theirs.num_frames) == (3, 10, 30)
    for name, values in (("action", "actions"), ("observation.state", "states")):
        rows = torch.cat([getattr(episode, values) for episode in source.episodes]).double().numpy()
        np.testing.assert_allclose(theirs.meta.stats[name]["mean"], rows.mean(0), rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(theirs.meta.stats[name]["std"], rows.std(0), rtol=1e-6)


def test_their_statistics_are_ours(tmp_path):
    """The library's own functions for an episode, on the same arrays."""
    from vampo_core.data.formats.lerobot_stats import row_stats

    library()
    module = pytest.importorskip("ledataset.datasets.compute_stats")
    rows = np.random.default_rng(0).normal(size=(5000, 3)).astype(np.float32)
    theirs = module.get_feature_stats(rows, axis=0, keepdims=False)
    for name, values in row_stats(rows).items():
        tolerance = 0.06 if name.startswith("q") else 1e-5  # theirs come from histograms that are stretched
        np.testing.assert_allclose(values, np.asarray(theirs[name]).reshape(-1), rtol=tolerance, atol=tolerance)
