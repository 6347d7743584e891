"""Recording and the recorded format: deterministic, resumable, whole or absent, and honest about damage."""

import json
import os
import signal
import subprocess
import sys
import time

import gymnasium
import numpy as np
import pytest
import simulators
import torch
from leftovers import leftover_of

from vampo_core.data import EpisodeError, RecordedDataset, record
from vampo_core.data.formats.recorded import EpisodeHeader, episode_folder, is_whole, write_episode
from vampo_core.data.record import PUSH_LENGTH, PUSH_RATE, Disturbance
from vampo_core.data.video import count_frames, read_frames, write_video
from vampo_core.files import locked

pytest.importorskip("gym_pusht", reason="recording tests need `pip install vampo_core[pusht]`")

SHORT = {"max_steps": 4, "image_size": 32}


def record_short(root, num_episodes=3, **kwargs):
    return record("pusht", root, num_episodes=num_episodes, env_kwargs=SHORT, progress=False, **kwargs)


def contents(root):
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def test_video_round_trip_is_exact(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (7, 48, 64, 3), dtype=np.uint8)
    write_video(tmp_path / "video.mp4", frames, fps=10)
    assert count_frames(tmp_path / "video.mp4") == 7
    assert np.array_equal(read_frames(tmp_path / "video.mp4", range(7)), frames)
    assert np.array_equal(read_frames(tmp_path / "video.mp4", [5, 0, 5]), frames[[5, 0, 5]])


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


def test_same_bytes_with_any_number_of_workers(tmp_path):
    record_short(tmp_path / "one", 4, num_workers=1)
    record_short(tmp_path / "two", 4, num_workers=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    record_short(tmp_path / "other", 4, seed=1)
    seeds = [
        {e.header.seed for e in RecordedDataset(tmp_path / n, include_failures=True).episodes} for n in ("one", "other")
    ]
    assert len(seeds[0] | seeds[1]) == 8


def test_killed_recording_resumes_to_the_same_bytes(tmp_path):
    script = (
        "from vampo_core.data import record\n"
        "if __name__ == '__main__':\n"
        f"    record('pusht', {str(tmp_path / 'killed')!r}, num_episodes=500, num_workers=2, env_kwargs={SHORT!r})\n"
    )
    (tmp_path / "script.py").write_text(script)
    path = os.pathsep.join(p for p in sys.path if p)
    process = subprocess.Popen(
        [sys.executable, tmp_path / "script.py"],
        env=os.environ | {"PYTHONPATH": path},
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    episodes = tmp_path / "killed" / "episodes"
    while len(list(episodes.glob("0*"))) < 3:
        assert process.poll() is None and time.monotonic() < deadline, "recording did not get going"
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    while _group_is_alive(process.pid):  # its workers follow it
        assert time.monotonic() < deadline, "workers outlived their killed parent"
        time.sleep(0.05)
    recorded = list(episodes.glob("0*"))
    assert 3 <= len(recorded) < 500 and all(map(is_whole, recorded))
    num_episodes = max(int(p.name) for p in recorded) + 2
    record_short(tmp_path / "killed", num_episodes)
    record_short(tmp_path / "whole", num_episodes)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def record_line(root, num_episodes=4, **kwargs):
    dataset = record("simulators:line", root, num_episodes=num_episodes, progress=False, **kwargs)
    return [(e.actions[:-1, 0], e.states[:, 0], e.is_pushed[:-1]) for e in dataset.episodes]


def test_disturbed_experts_answer_to_where_they_are(tmp_path):
    for actions, states, is_pushed in record_line(tmp_path / "calm"):
        torch.testing.assert_close(states.diff(), actions)
        assert is_pushed.dtype == torch.bool and is_pushed.shape == actions.shape and not is_pushed.any()
    disturbed = record_line(tmp_path / "disturbed", 30, action_noise=1.0)
    for actions, states, is_pushed in disturbed:
        assert is_pushed[(states.diff() - actions).abs() > 1e-6].all()
        torch.testing.assert_close(actions, (-states[:-1]).clamp(-0.2, 0.2))  # the expert's own, not what was executed
        assert states.diff().abs().max() <= 0.2 + 1e-6
    assert any((states.diff() - actions).abs().max() > 0.05 for actions, states, _ in disturbed)
    pushed = torch.cat([is_pushed for *_, is_pushed in disturbed])
    assert 0 < pushed.float().mean() < 0.5
    record_line(tmp_path / "two", 30, action_noise=1.0, num_workers=2)
    assert contents(tmp_path / "disturbed") == contents(tmp_path / "two")


def test_experts_go_on_after_their_success(tmp_path):
    def episodes(name, **settings):
        root = tmp_path / name
        return record("simulators:line", root, num_episodes=6, progress=False, **settings).episodes

    ended, went_on = episodes("ended"), episodes("went_on", steps_after_success=4)
    for before, after in zip(ended, went_on, strict=True):
        assert before.header.success and after.header.success
        assert after.length == before.length + 4
        assert torch.equal(after.states[: before.length], before.states)
        assert torch.equal(after.frames(range(before.length)), before.frames(range(before.length)))
        torch.testing.assert_close(after.states.diff(dim=0), after.actions[:-1])  # still the expert's
        assert after.states[-1].abs() < 1e-6
    at_most = max(e.length for e in ended)  # one step beyond the slowest
    for episode in episodes("bounded", steps_after_success=4, env_kwargs={"max_steps": at_most}):
        assert episode.header.success and episode.length == min(ended[int(episode.episode_id)].length + 4, at_most + 1)
    for episode in episodes("failed", steps_after_success=4, env_kwargs={"max_steps": 2}):
        assert not episode.header.success and episode.length == 3


def test_pushes_have_their_deviation_in_half_ranges_their_length_and_their_rate():
    space = gymnasium.spaces.Box(np.float32([-1, 100]), np.float32([1, 500]))
    disturbed = Disturbance(space, 0.1, seed=3)
    middle = np.array([0, 300], np.float32)
    noise = (np.stack([disturbed(middle) for _ in range(100_000)]) - middle) / [1, 200]
    pushed = noise[:, 0] != 0
    begins = np.flatnonzero(pushed[1:] & (noise[1:, 0] != noise[:-1, 0])) + 1
    pushes = noise[begins]
    np.testing.assert_allclose(pushes.std(0), 0.1, rtol=0.06)
    np.testing.assert_allclose(pushes.mean(0), 0, atol=0.008)
    np.testing.assert_allclose(np.corrcoef(pushes.T)[0, 1], 0, atol=0.08)
    assert all((noise[n : n + PUSH_LENGTH] == noise[n]).all() for n in begins)
    np.testing.assert_allclose(len(begins) / (~pushed).sum(), PUSH_RATE, rtol=0.08)


def test_disturbance_needs_bounds_of_actions(tmp_path, monkeypatch):
    monkeypatch.setattr(simulators.Line, "__init__", _without_bounds(simulators.Line.__init__))
    with pytest.raises(ValueError, match="actions of env 'simulators:line' have no bounds to measure it by"):
        record_line(tmp_path, action_noise=0.1)
    assert not list(tmp_path.iterdir())


def _without_bounds(init):
    def unbounded(self, *args, **kwargs):
        init(self, *args, **kwargs)
        self.action_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float32)

    return unbounded


def _group_is_alive(group):
    listing = subprocess.run(["ps", "-eo", "pgid=,stat="], capture_output=True, text=True, check=True).stdout
    processes = (line.split() for line in listing.splitlines())
    return any(pgid == str(group) and not state.startswith("Z") for pgid, state in processes)


def test_recording_waits_for_another_process_and_leaves_it_what_it_is_writing(tmp_path):
    script = (
        "from vampo_core.data import record\n"
        f"record('pusht', {str(tmp_path / 'shared')!r}, num_episodes=3, env_kwargs={SHORT!r}, progress=False)\n"
    )
    path = os.pathsep.join(p for p in sys.path if p)
    record_short(tmp_path / "shared", 1)
    half_written = leftover_of(tmp_path / "shared" / "episodes" / "000001")
    with locked(tmp_path / "shared"):
        half_written.mkdir()
        process = subprocess.Popen(
            [sys.executable, "-c", script], env=os.environ | {"PYTHONPATH": path}, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout.readline() == f"{tmp_path / 'shared'}: waiting for another process that writes there\n"
        assert half_written.exists() and process.poll() is None
        record_short(tmp_path / "alone", 3)
        half_written.rmdir()
    assert process.wait() == 0
    assert contents(tmp_path / "shared") == contents(tmp_path / "alone")


def test_existing_episodes_are_kept_and_damaged_ones_redone(tmp_path):
    record_short(tmp_path, 3)
    before = contents(tmp_path)
    untouched = episode_folder(tmp_path, 0) / "video.mp4"
    modified = untouched.stat().st_mtime_ns
    video = episode_folder(tmp_path, 1) / "video.mp4"
    video.write_bytes(video.read_bytes()[:-200])
    (episode_folder(tmp_path, 2) / "episode.safetensors").unlink()
    leftover = leftover_of(tmp_path / "episodes" / "000003")
    leftover.mkdir()
    record_short(tmp_path, 3)
    assert contents(tmp_path) == before
    assert untouched.stat().st_mtime_ns == modified and not leftover.exists()


def test_a_complete_dataset_needs_no_simulator(tmp_path, monkeypatch):
    def missing(name, **kwargs):
        raise ImportError(f"{name} is not installed")

    record_short(tmp_path, 2)
    monkeypatch.setattr("vampo_core.envs.make", missing)
    assert len(record_short(tmp_path, 2)) == 2
    with pytest.raises(ValueError, match="seed is 1, but the dataset at"):
        record_short(tmp_path, 2, seed=1)
    for arguments in ({"num_episodes": 3}, {"num_episodes": 2, "overwrite": True}):
        with pytest.raises(ImportError, match="pusht is not installed"):
            record_short(tmp_path, **arguments)
    assert len(record_short(tmp_path, 2)) == 2


def test_damage_that_a_decoder_would_not_notice(tmp_path):
    episode = record_short(tmp_path, 1).episodes[0]
    video = bytearray(episode.video_path.read_bytes())
    video[len(video) // 2] ^= 1
    episode.video_path.write_bytes(video)
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


def test_other_settings_in_the_same_folder_are_refused(tmp_path):
    record_short(tmp_path / "data", 1)
    with pytest.raises(ValueError, match=r"seed is 5, but the dataset at .* was recorded with 0"):
        record_short(tmp_path / "data", 1, seed=5)
    with pytest.raises(ValueError, match=r"action_noise is 0.1, but the dataset at .* was recorded with 0.0"):
        record_short(tmp_path / "data", 1, action_noise=0.1)
    with pytest.raises(ValueError, match=r"steps_after_success is 2, but the dataset at .* was recorded with 0"):
        record_short(tmp_path / "data", 1, steps_after_success=2)
    info = tmp_path / "data" / "dataset.json"
    recorded = json.loads(info.read_text())
    del recorded["action_noise"], recorded["steps_after_success"]  # as before there was a choice
    info.write_text(json.dumps(recorded))
    record_short(tmp_path / "data", 1)
    for name in ("action_noise", "steps_after_success"):
        with pytest.raises(ValueError, match=f"{name} is 1, but"):
            record_short(tmp_path / "data", 1, **{name: 1})
    with pytest.raises(ValueError, match=r"env_kwargs is .* was recorded with"):
        record("pusht", tmp_path / "data", num_episodes=1, progress=False)
    assert len(record_short(tmp_path / "data", 1, seed=5, overwrite=True)) == 1
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("precious")
    with pytest.raises(ValueError, match=r"expected a recorded dataset, or an empty or new folder"):
        record_short(tmp_path / "other", 1, overwrite=True)
    assert (tmp_path / "other" / "thesis.txt").exists()


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"num_episodes": 0}, "num_episodes is 0, expected at least 1"),
        ({"num_workers": 0}, "num_workers is 0, expected at least 1"),
        ({"seed": -1}, "seed is -1, expected at least 0"),
        ({"action_noise": -0.1}, "action_noise is -0.1, expected at least 0"),
        ({"steps_after_success": -1}, "steps_after_success is -1, expected at least 0"),
    ],
)
def test_bad_arguments(tmp_path, kwargs, message):
    with pytest.raises(ValueError, match=message):
        record("pusht", tmp_path, **({"num_episodes": 1} | kwargs))
    assert not list(tmp_path.iterdir())


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
