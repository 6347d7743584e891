"""Recording: deterministic and resumable, with any number of workers, even if some of them die."""

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
from recordings import LINE, SHORT, contents, record_short

from vampo_core.data import RecordedDataset, record
from vampo_core.data.formats.recorded import episode_folder, is_whole
from vampo_core.data.record import PUSH_LENGTH, PUSH_RATE, Disturbance
from vampo_core.envs import SimulatorError, SimulatorWarning, workers
from vampo_core.files import locked

pytest.importorskip("gym_pusht", reason="recording tests need `pip install vampo_core[pusht]`")


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
    dataset = record(LINE, root, num_episodes=num_episodes, progress=False, **kwargs)
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
        record_short(tmp_path / "undisturbed", 3)
        half_written.rmdir()
    assert process.wait() == 0
    assert contents(tmp_path / "shared") == contents(tmp_path / "undisturbed")


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


def test_other_settings_in_the_same_folder_are_refused(tmp_path):
    record_short(tmp_path / "data", 1)
    with pytest.raises(ValueError, match=r"seed is 5, but the dataset at .* was recorded with 0"):
        record_short(tmp_path / "data", 1, seed=5)
    with pytest.raises(ValueError, match=r"action_noise is 0.1, but the dataset at .* was recorded with 0.0"):
        record_short(tmp_path / "data", 1, action_noise=0.1)
    with pytest.raises(ValueError, match=r"env_kwargs is .* was recorded with"):
        record("pusht", tmp_path / "data", num_episodes=1, progress=False)
    for name in ("thesis.txt", "latents/pool/000000.safetensors"):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).write_text("precious")
    assert len(record_short(tmp_path / "data", 1, seed=5, overwrite=True)) == 1
    assert (tmp_path / "data" / "thesis.txt").exists() and not (tmp_path / "data" / "latents").exists()
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
    ],
)
def test_bad_arguments(tmp_path, kwargs, message):
    with pytest.raises(ValueError, match=message):
        record("pusht", tmp_path, **({"num_episodes": 1} | kwargs))
    assert not list(tmp_path.iterdir())


def test_datasets_that_say_how_long_experts_went_on_are_read_and_extended_if_they_did_not(tmp_path):
    record_short(tmp_path, 1)
    info = tmp_path / "dataset.json"
    recorded = json.loads(info.read_text())
    info.write_text(json.dumps(recorded | {"steps_after_success": 0}))
    assert len(record_short(tmp_path, 2)) == 2
    info.write_text(json.dumps(recorded | {"steps_after_success": 4}))
    assert len(RecordedDataset(tmp_path, include_failures=True)) == 2
    with pytest.raises(ValueError, match=r"was recorded with steps_after_success = 4, which is not supported any more"):
        record_short(tmp_path, 3)


def test_a_copy_of_an_episode_made_by_a_file_manager_is_ignored_with_a_warning(tmp_path):
    record_short(tmp_path, 3)
    (tmp_path / "episodes" / "000002").rename(tmp_path / "episodes" / "000002 (copy)")
    with pytest.warns(RuntimeWarning, match=r"holds '000002 \(copy\)', expected folders named like '000000'; ignored"):
        assert len(record_short(tmp_path, 4)) == 4
    with pytest.warns(RuntimeWarning, match="copy"):
        assert len(RecordedDataset(tmp_path, include_failures=True, num_episodes=2)) == 2


def test_a_killed_worker_is_replaced_and_its_episode_recorded_again(tmp_path):
    kill = {"kill_once": str(tmp_path / "killed")}
    record(LINE, tmp_path / "killed-once", num_episodes=4, num_workers=2, env_kwargs=kill, progress=False)
    record(LINE, tmp_path / "calm", num_episodes=4, env_kwargs=kill, progress=False)
    assert (tmp_path / "killed").exists()
    assert contents(tmp_path / "killed-once") == contents(tmp_path / "calm")


def test_a_worker_that_dies_every_time_is_an_error_that_names_the_episode(tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "MAX_ATTEMPTS", 1)
    kill = {"kill_always": True}
    message = rf"episode [01] of '{LINE}' \(seed \d+\): its worker was lost 1 times \(it died: exit code -9\)"
    with pytest.raises(SimulatorError, match=message):
        record(LINE, tmp_path, num_episodes=2, num_workers=2, env_kwargs=kill, progress=False)
    assert not list((tmp_path / "episodes").glob("0*"))


@pytest.mark.parametrize("num_workers", [1, 2])
def test_an_error_of_the_simulator_names_the_episode(tmp_path, num_workers):
    message = rf"^episode [01] of '{LINE}' \(seed \d+\) could not be recorded: the motor is hot$"
    with pytest.raises(SimulatorError, match=message) as error:
        record(LINE, tmp_path, num_episodes=2, num_workers=num_workers, env_kwargs={"fail": True}, progress=False)
    assert "in step" in str(error.value.__cause__), "the traceback from the worker"


@pytest.mark.parametrize("success", ["False", None, 2, [True, True]])
def test_success_that_is_no_bool_is_refused(tmp_path, monkeypatch, success):
    monkeypatch.setattr(simulators.Line, "success", success)
    with pytest.raises(SimulatorError, match=r"success is .*, expected True or False"):
        record(LINE, tmp_path, num_episodes=1, progress=False)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_frames_that_are_squeezed_are_said_once(tmp_path, num_workers):
    with pytest.warns(SimulatorWarning, match="renders 32x64 frames, which are squeezed to 32x32") as warned:
        record(LINE, tmp_path, num_episodes=4, num_workers=num_workers, env_kwargs={"height": 32}, progress=False)
    assert len([w for w in warned if issubclass(w.category, SimulatorWarning)]) == 1
