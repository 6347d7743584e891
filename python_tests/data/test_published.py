"""Latents that came with the data: checked when they are read, and for whether they fit together before any work."""

import pytest
import torch
from vpp_files import edit_annotation, make_episode

from vampo_core.data import ClipDataset, EpisodeError, VppDataset, clip_loader
from vampo_core.data.published import published_episodes


def test_latents_that_require_a_gradient_pass_through_workers(tmp_path):
    _, latents = make_episode(tmp_path, "1")
    torch.save(torch.load(latents, weights_only=True).requires_grad_(), latents)
    episodes = VppDataset(tmp_path, "train", strict=True).episodes
    assert not episodes[0].latents([0]).requires_grad
    loader = clip_loader([ClipDataset(episodes, num_frames=2)], batch_size=2, num_workers=1)
    batch = next(iter(loader))
    assert batch["latents"].shape == (2, 2, 4, 2, 3) and not batch["latents"].requires_grad


def test_latents_that_are_not_finite_are_named_and_the_whole_episode_skipped(tmp_path):
    for name in "12":
        _, latents = make_episode(tmp_path, name)
    values = torch.load(latents, weights_only=True)
    values[4, 0, 0, 0] = float("nan")
    torch.save(values, latents)
    episodes = VppDataset(tmp_path, "train", strict=True).episodes
    dataset = ClipDataset(episodes, num_frames=2)
    with pytest.warns(RuntimeWarning, match=r"'train/2' .*: 0.pt holds latents that are not finite, first at frame 4"):
        item = dataset[5]  # frames 0 and 1, which are finite
    assert item["episode_id"] == "train/1"
    assert [s.episode_id for s in dataset.skipped] == ["train/2"]
    with pytest.raises(EpisodeError, match="'train/2'"):
        ClipDataset(episodes, num_frames=2, strict=True)[5]


def test_latents_of_another_kind_are_named(tmp_path):
    _, latents = make_episode(tmp_path, "1")
    torch.save(torch.zeros(6, 4, 2, 3, dtype=torch.int64), latents)
    with pytest.raises(EpisodeError, match=r"0.pt holds torch.int64 \(6, 4, 2, 3\), expected .* floating-point"):
        VppDataset(tmp_path, "train").episodes[0].latents([0])


def fitting(root, can_encode, **options):
    dataset = VppDataset(root, "train")
    episodes = published_episodes(dataset, latent_channels=4, can_encode=can_encode, **({"strict": False} | options))
    return None if episodes is None else [e.episode_id[-1] for e in episodes]


def test_latents_that_do_not_fit_together_are_found_before_any_work(tmp_path):
    for name in "12345":
        video, latents = make_episode(tmp_path, name)
    assert fitting(tmp_path, can_encode=True) == fitting(tmp_path, can_encode=False) == list("12345")
    latents.write_bytes(b"cut")
    assert fitting(tmp_path, can_encode=True) == list("12345"), "damage is reported when it is read"
    torch.save(torch.zeros(6, 4, 8, 8), latents)
    torch.save(torch.zeros(6, 16, 2, 3), latents.parents[1] / "4" / "0.pt")
    edit_annotation(tmp_path, "3", latent_videos=[])
    assert fitting(tmp_path, can_encode=True) is None, "all have videos"
    with pytest.warns(RuntimeWarning, match="3 of 5 episodes") as warned:
        assert fitting(tmp_path, can_encode=False) == ["1", "2"]
    for reason in (
        "train/3 (it has no latents, and there is no codec to encode its video)",
        "train/4 (its latents have 16 channels, expected 4)",
        "train/5 (its latents are [4, 8, 8], those of most episodes [4, 2, 3])",
    ):
        assert reason in str(warned[0].message)
    video.unlink()
    with pytest.warns(RuntimeWarning, match="3 of 5 episodes"):
        assert fitting(tmp_path, can_encode=True) == ["1", "2"]
    with pytest.raises(EpisodeError, match="3 of 5 episodes"):
        fitting(tmp_path, can_encode=False, strict=True)


def test_without_any_latents_videos_are_encoded(tmp_path):
    _, latents = make_episode(tmp_path, "1", latent_videos=[])
    latents.unlink()
    assert fitting(tmp_path, can_encode=True) is None
    with pytest.raises(EpisodeError, match=r"1 of 1 episodes .*it has no latents"):
        fitting(tmp_path, can_encode=False)
