"""Encoding: correct values, kept while valid, repeated when the video or the file changed."""

import errno
import importlib
import json
import os
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from leftovers import leftover_of
from torch.nn import functional

from vampo_core.data import EpisodeError, RecordedDataset, encode, shared_work
from vampo_core.data.folder import derived_folder
from vampo_core.data.formats.recorded import FORMAT, VERSION, EpisodeHeader, episode_folder, write_episode
from vampo_core.data.latent_files import latents_path, read_latents, write_latents
from vampo_core.data.windows import Windows


class PoolCodec:
    """Averages 8×8 patches and counts how many frames it saw."""

    def __init__(self, name="pool"):
        self.name, self.num_frames = name, 0

    def encode(self, frames):
        assert frames.dtype == torch.float32 and frames.min() >= 0 and frames.max() <= 1
        self.num_frames += len(frames)
        return functional.avg_pool2d(frames, 8)

    def fingerprint(self):
        return self.name


def make_dataset(root, lengths=(5, 7, 3), failures=()):
    info = {"format": FORMAT, "version": VERSION, "env": "none", "env_kwargs": {}, "seed": 0, "fps": 10.0}
    root.mkdir(exist_ok=True)
    (root / "dataset.json").write_text(json.dumps(info))
    rng = np.random.default_rng(0)
    for i, length in enumerate(lengths):
        header = EpisodeHeader(f"{i:06d}", length, i not in failures, i, "push", 10.0)
        frames = rng.integers(0, 256, (length, 16, 24, 3), dtype=np.uint8)
        arrays = {
            "actions": np.zeros((length - 1, 2)),
            "states": np.zeros((length, 2)),
            "privileged_states": np.zeros((length, 5)),
        }
        write_episode(episode_folder(root, i), header, frames, arrays)
    return RecordedDataset(root)


def test_latents_are_the_codecs(tmp_path):
    dataset = make_dataset(tmp_path)
    codec = PoolCodec()
    result = encode(dataset, codec, batch_size=2, progress=False)
    assert (result.latents, result.num_encoded, result.num_reused, result.skipped) == ("pool", 3, 0, ())
    for episode in RecordedDataset(tmp_path, latents=result.latents).episodes:
        frames = episode.frames(range(episode.length)).permute(0, 3, 1, 2).float() / 255
        latents = episode.latents(range(episode.length))
        assert latents.shape == (episode.length, 3, 2, 3)
        torch.testing.assert_close(latents, functional.avg_pool2d(frames, 8))
        assert torch.equal(episode.latents([2, 0, 2]), latents[[2, 0, 2]])


def test_failures_of_the_expert_need_no_latents(tmp_path):
    latents = encode(make_dataset(tmp_path, failures=(1,)), PoolCodec(), progress=False).latents
    dataset = RecordedDataset(tmp_path, latents=latents, strict=True)
    assert [episode.episode_id for episode in dataset.episodes] == ["000000", "000002"]
    with pytest.raises(EpisodeError, match=r"1 of 3 episodes .* cannot be read: 000001 \(it has no latents 'pool'"):
        RecordedDataset(tmp_path, latents=latents, strict=True, include_failures=True)


def test_second_run_encodes_only_what_changed(tmp_path):
    dataset = make_dataset(tmp_path)
    encode(dataset, PoolCodec(), progress=False)
    cut = latents_path(tmp_path, "pool", "000001")
    before = cut.read_bytes()
    cut.write_bytes(before[:-10])
    leftover = leftover_of(cut)
    leftover.write_bytes(b"half")
    codec = PoolCodec()
    result = encode(dataset, codec, progress=False)
    assert (result.num_encoded, result.num_reused, codec.num_frames) == (1, 2, 7)
    assert cut.read_bytes() == before and not leftover.exists()
    dataset = make_dataset(tmp_path, lengths=(5, 7, 6))
    result = encode(dataset, PoolCodec(), progress=False)
    assert (result.num_encoded, result.num_reused) == (1, 2)
    assert encode(dataset, PoolCodec("other"), progress=False).num_encoded == 3


def test_interruption_leaves_whole_files_alone(tmp_path):
    class Failing(PoolCodec):
        def encode(self, frames):
            if self.num_frames >= 5:
                raise KeyboardInterrupt
            return super().encode(frames)

    dataset = make_dataset(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        encode(dataset, Failing(), progress=False)
    assert [p.name for p in (tmp_path / "latents" / "pool").iterdir() if p.is_file()] == ["000000.safetensors"]
    assert encode(dataset, PoolCodec(), progress=False).num_reused == 1


def test_image_size_makes_another_encoding(tmp_path):
    dataset = make_dataset(tmp_path)
    result = encode(dataset, PoolCodec(), image_size=(32, 48), progress=False)
    assert result.latents == "pool-32x48"
    assert RecordedDataset(tmp_path, latents="pool-32x48").episodes[0].latents([0]).shape == (1, 3, 4, 6)


def test_a_module_gets_its_frames_where_it_is(tmp_path):
    class Elsewhere(torch.nn.Linear):
        def encode(self, frames):
            assert frames.device == self.weight.device == torch.device("meta")
            return torch.zeros(len(frames), 3, 2, 3)

        def fingerprint(self):
            return "elsewhere"

    codec = Elsewhere(1, 1, device="meta")
    assert encode(make_dataset(tmp_path), codec, progress=False).num_encoded == 3


def test_unreadable_video_is_skipped_by_name(tmp_path):
    dataset = make_dataset(tmp_path)
    video = dataset.episodes[1].folder / "video.mp4"
    video.write_bytes(video.read_bytes()[:-300])
    with pytest.warns(RuntimeWarning, match="1 of 3 episodes of .* cannot be read: 000001"):
        result = encode(dataset, PoolCodec(), progress=False)
    assert [s.episode_id for s in result.skipped] == ["000001"] and result.num_encoded == 2
    with pytest.raises(EpisodeError, match="000001"):
        encode(dataset, PoolCodec(), strict=True, progress=False)
    with pytest.warns(RuntimeWarning, match=r"000001 \(it has no latents 'pool'; `vampo encode` makes them\)"):
        assert len(RecordedDataset(tmp_path, latents="pool")) == 2


@pytest.mark.parametrize(
    ("codec", "message"),
    [
        (
            type("Few", (PoolCodec,), {"encode": lambda self, x: x[:1]})(),
            r"codec.encode returned \(1, 3, 16, 24\) for 5",
        ),
        (type("Nan", (PoolCodec,), {"encode": lambda self, x: x / 0 * 0})(), "not finite for episode '000000'"),
        (PoolCodec("../escape"), "codec.fingerprint.. is '../escape'"),
    ],
)
def test_bad_codecs(tmp_path, codec, message):
    with pytest.raises(ValueError, match=message):
        encode(make_dataset(tmp_path), codec, progress=False)
    assert not [p for p in tmp_path.glob("latents/*/*") if p.is_file()]


@pytest.mark.parametrize("episode_id", ["../../x", "/tmp/x", "a/../b", "a//b", "", ".hidden", "a\\b"])
def test_ids_that_lead_out_of_the_dataset_are_refused(tmp_path, episode_id):
    frames = torch.zeros(2, 16, 24, 3, dtype=torch.uint8)
    episode = SimpleNamespace(
        dataset="odd", episode_id=episode_id, length=2, fingerprint={"video_bytes": 1}, frames=lambda indices: frames
    )
    root = tmp_path / "a" / "b" / "data"
    source = SimpleNamespace(name="odd", root=root, episodes=[episode], skipped=[])
    with pytest.raises(EpisodeError, match=r"episode_id is .*, expected a name without"):
        encode(source, PoolCodec(), progress=False)
    assert not list(tmp_path.rglob("*.safetensors"))
    episode.episode_id = "val/7"
    assert encode(source, PoolCodec(), progress=False).num_encoded == 1
    assert (root / "latents" / "pool" / "val" / "7.safetensors").is_file()


def test_latents_of_an_earlier_version_stay_valid(tmp_path):
    episode = make_dataset(tmp_path, lengths=(5,)).episodes[0]
    video = episode.folder / "video.mp4"
    header = {"length": 5, "video_bytes": video.stat().st_size}
    write_latents(latents_path(tmp_path, "pool", "000000"), torch.zeros(5, 3, 2, 3), header)
    assert encode(RecordedDataset(tmp_path), PoolCodec(), progress=False).num_reused == 1


def test_latents_of_a_read_only_dataset_are_kept_in_the_users_cache(tmp_path, monkeypatch):
    root, cache = tmp_path / "data", tmp_path / "cache"
    dataset = make_dataset(root)
    encode(dataset, PoolCodec(), progress=False)
    before = sorted(root.rglob("*"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path != root and access(path, mode))
    assert encode(dataset, PoolCodec(), progress=False).num_reused == 3 and not cache.exists()
    for num_encoded in (3, 0):
        assert encode(dataset, PoolCodec("other"), progress=False).num_encoded == num_encoded
    assert sorted(root.rglob("*")) == before and len(list(cache.rglob("*.safetensors"))) == 3
    written, read = RecordedDataset(root, latents="pool"), RecordedDataset(root, latents="other")
    assert torch.equal(written.episodes[1].latents([0, 2]), read.episodes[1].latents([0, 2]))
    elsewhere = tmp_path / "elsewhere" / "data"  # of the same name
    assert derived_folder(root, "features").parent.parent == cache / "vampo_core"
    assert derived_folder(elsewhere, "features") == elsewhere / "features"


def test_a_read_only_dataset_is_one_clear_line(tmp_path, monkeypatch):
    def read_only(place):
        raise OSError(errno.EROFS, "Read-only file system", str(place))

    dataset = make_dataset(tmp_path)
    encode(dataset, PoolCodec(), progress=False)
    monkeypatch.setattr(shared_work, "lock", read_only)
    assert encode(dataset, PoolCodec(), progress=False).num_reused == 3
    with pytest.raises(PermissionError) as error:
        encode(dataset, PoolCodec("other"), progress=False)
    assert str(error.value) == (
        f"dataset {str(tmp_path)!r} cannot be written to (Read-only file system), but its latents are kept there: "
        "make it writable, or use a copy of it"
    )


@pytest.mark.parametrize("num_workers", [0, 3])
def test_long_episodes_are_read_a_part_at_a_time(tmp_path, monkeypatch, num_workers):
    """Whatever the size of a part and the number of threads, the latents are the same."""
    lengths = (40, 3, 25)
    whole = make_dataset(tmp_path / "whole", lengths)
    encode(whole, PoolCodec(), progress=False)
    dataset, num_read = make_dataset(tmp_path / "parts", lengths), []
    frames = type(dataset.episodes[0]).frames

    def noted(episode, indices):
        num_read.append(len(indices))
        return frames(episode, indices)

    monkeypatch.setattr(importlib.import_module("vampo_core.data.encode"), "_FRAMES_AT_ONCE", 10)
    monkeypatch.setattr(type(dataset.episodes[0]), "frames", noted)
    encode(dataset, PoolCodec(), batch_size=4, num_workers=num_workers, progress=False)
    assert max(num_read) <= 10 and sum(num_read) == sum(lengths)
    for path in (tmp_path / "whole/latents/pool").glob("*.safetensors"):
        assert path.read_bytes() == (tmp_path / "parts/latents/pool" / path.name).read_bytes()


def test_windows_that_overlap_share_their_frames(tmp_path, monkeypatch):
    dataset = make_dataset(tmp_path, (30,))
    windows = Windows(num_latents=3, temporal_ratio=2, stride=1)

    class Video(PoolCodec):
        def encode(self, videos):
            assert videos.shape == (1, 5, 3, 16, 24)
            return functional.avg_pool2d(videos[0, ::2], 8).unsqueeze(0)

    monkeypatch.setattr(importlib.import_module("vampo_core.data.encode"), "_FRAMES_AT_ONCE", 8)
    name = encode(dataset, Video(), windows=windows, progress=False).latents
    episode = dataset.episodes[0]
    frames = functional.avg_pool2d(episode.frames(range(30)).permute(0, 3, 1, 2).float() / 255, 8)
    expected = torch.cat([frames[windows.frames(start, 30)[::2]] for start in windows.starts(30)])
    torch.testing.assert_close(read_latents(latents_path(tmp_path, name, "000000"), range(len(expected))), expected)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_processes_share_the_work(tmp_path, num_workers):
    """Two at a time encode every episode once, and both return when all are done."""
    dataset, results = make_dataset(tmp_path, (4,) * 20), {}
    both = threading.Barrier(2)

    class Meeting(PoolCodec):
        def encode(self, frames):
            if self.num_frames == 0:
                both.wait(timeout=30)  # the other one works too
            time.sleep(0.01)
            return super().encode(frames)

    codecs = [Meeting(), Meeting()]

    def work(number):
        results[number] = encode(dataset, codecs[number], num_workers=num_workers, progress=False)

    threads = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert codecs[0].num_frames + codecs[1].num_frames == 80 and min(c.num_frames for c in codecs) > 0
    assert results[0].num_encoded + results[1].num_encoded == 20
    assert [result.num_encoded + result.num_reused for result in results.values()] == [20, 20]


def test_a_cache_of_the_users_choice(tmp_path):
    dataset = make_dataset(tmp_path / "data")
    before = sorted((tmp_path / "data").rglob("*"))
    for num_encoded in (3, 0):
        assert encode(dataset, PoolCodec(), cache=tmp_path / "cache", progress=False).num_encoded == num_encoded
    assert sorted((tmp_path / "data").rglob("*")) == before
    found = RecordedDataset(tmp_path / "data", latents="pool", cache=tmp_path / "cache", strict=True)
    assert found.episodes[0].latents([1]).shape == (1, 3, 2, 3)
    with pytest.raises(EpisodeError, match="has no latents 'pool'"):
        RecordedDataset(tmp_path / "data", latents="pool")


def test_one_that_comes_later_repeats_nothing(tmp_path):
    """Its parts are those of the first one, although some episodes are done by then."""
    dataset, codec = make_dataset(tmp_path, (4,) * 30), PoolCodec()

    class Interrupted(PoolCodec):
        def encode(self, frames):
            if self.num_frames == 40:
                assert encode(dataset, codec, progress=False).num_encoded == 19  # all but those done and this one's own
            return super().encode(frames)

    first = Interrupted()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shared_work.SharedWork, "taken", lambda self: (_ for _ in ()))  # it would wait for the first
        result = encode(dataset, first, progress=False)
    assert first.num_frames + codec.num_frames == 120 and result.num_encoded == 11


def test_a_cache_keeps_the_dataset_as_it_is(tmp_path):
    """Latents of another video, which lie in the dataset, are not replaced there."""
    encode(make_dataset(tmp_path / "data"), PoolCodec(), progress=False)
    video = tmp_path / "data/episodes/000001/video.mp4"
    changed = make_dataset(tmp_path / "data", (5, 8, 3))
    before = {path: path.read_bytes() for path in (tmp_path / "data/latents").rglob("*.safetensors")}
    assert encode(changed, PoolCodec(), cache=tmp_path / "cache", progress=False).num_encoded == 2
    assert {path: path.read_bytes() for path in (tmp_path / "data/latents").rglob("*.safetensors")} == before
    found = RecordedDataset(tmp_path / "data", latents="pool", cache=tmp_path / "cache").episodes[1]
    assert video.is_file() and len(found.latents(range(8))) == 8


def test_a_cache_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(PermissionError, match=r"cache is '.*file', expected a folder that can be written to \(File"):
        encode(make_dataset(tmp_path / "data"), PoolCodec(), cache=tmp_path / "file", progress=False)
