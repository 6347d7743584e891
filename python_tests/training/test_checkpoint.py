"""Checkpoints: whole or absent, exact, and found by whatever name they are asked for."""

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from leftovers import leftover_of
from safetensors.torch import load_file, save_file

from vampo_core.training import checkpoint as module
from vampo_core.training.checkpoint import CheckpointError, Checkpoints, TrainerState, find_checkpoint, read_state
from vampo_core.training.rng import rng_state, set_rng_state


class Training:
    """A tiny training run whose every step depends on the weights, the optimizer and three random generators."""

    def __init__(self) -> None:
        random.seed(1)
        np.random.seed(2)  # noqa: NPY002 - the global generator is what is saved
        torch.manual_seed(3)
        self.model = torch.nn.Linear(3, 2)
        self.ema = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.1)
        self.step = 0
        self.losses: list[float] = []

    def advance(self, num_steps: int) -> None:
        for _ in range(num_steps):
            inputs = torch.randn(4, 3) + random.random() + float(np.random.randn())  # noqa: NPY002
            loss = self.model(inputs).square().mean()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            for name, value in self.model.state_dict().items():
                self.ema[name].lerp_(value, 0.1)
            self.step += 1
            self.losses.append(loss.item())

    def state(self) -> TrainerState:
        return TrainerState(
            step=self.step,
            optimizer=self.optimizer.state_dict(),
            weights={"policy": self.model.state_dict(), "ema": self.ema},
            counters={"losses": self.losses, "num_clips": 4 * self.step},
            rng=[rng_state()],
        )

    def restore(self, checkpoint: Path) -> None:
        state = read_state(checkpoint)
        self.step, self.losses = state.step, state.counters["losses"]
        self.model.load_state_dict(state.weights["policy"])
        self.ema = dict(state.weights["ema"])
        self.optimizer.load_state_dict(state.optimizer)
        set_rng_state(state.rng[0])

    def save_model(self, folder: Path) -> None:
        (folder / "unet").mkdir()
        save_file(self.model.state_dict(), folder / "unet" / "model.safetensors")


def files_of(folder: Path) -> dict[str, bytes | str]:
    """Everything a folder holds, links by what they point at."""
    return {
        str(path.relative_to(folder)): os.readlink(path) if path.is_symlink() else path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


@pytest.fixture(scope="session")
def saved_run(tmp_path_factory) -> Path:
    training, folder = Training(), tmp_path_factory.mktemp("saved")
    for best in (True, False, False):
        training.advance(2)
        Checkpoints(folder / "checkpoints").save(training.state(), training.save_model, best=best)
    return folder


@pytest.fixture
def run(tmp_path, saved_run) -> Path:
    """A run folder with checkpoints of steps 2 (best) and 6 (latest)."""
    return shutil.copytree(saved_run, tmp_path / "run", symlinks=True)


def test_a_resumed_training_is_bit_identical(tmp_path):
    whole = Training()
    whole.advance(9)

    interrupted = Training()
    interrupted.advance(4)
    path = Checkpoints(tmp_path).save(interrupted.state(), interrupted.save_model)
    interrupted.advance(3)  # lost
    resumed = Training()
    resumed.restore(path)
    resumed.advance(5)

    assert resumed.losses == whole.losses
    assert all(torch.equal(value, resumed.ema[name]) for name, value in whole.ema.items())
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name])
    expected, found = whole.optimizer.state_dict(), resumed.optimizer.state_dict()
    assert found["param_groups"] == expected["param_groups"]
    for index, entries in expected["state"].items():
        assert all(torch.equal(value, found["state"][index][name]) for name, value in entries.items())


def test_state_is_read_back_as_it_was(tmp_path):
    tied = torch.randn(4, 4)
    weights = {
        "policy": {"a": tied, "b": tied, "c": tied.T, "half": torch.randn(3).bfloat16(), "count": torch.tensor(7)}
    }
    counters = {"best_reward": -0.1, "none": None, "scaler": {"scale": 65536.0}, "clips": [1, 2]}
    state = TrainerState(step=5, weights=weights, counters=counters, optimizer={"state": {0: {"exp_avg": tied}}})
    again = read_state(Checkpoints(tmp_path).save(state, lambda folder: None))
    assert (again.step, again.counters, again.rng) == (5, counters, [])
    assert again.weights.keys() == {"policy"}
    for name, value in weights["policy"].items():
        found = again.weights["policy"][name]
        assert found.dtype == value.dtype and torch.equal(found, value)
    assert torch.equal(again.optimizer["state"][0]["exp_avg"], tied)


def test_latest_and_best_are_kept_and_the_rest_removed(run):
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["best", "latest", "step-2", "step-6"]
    assert os.readlink(run / "checkpoints" / "latest") == "step-6"
    assert os.readlink(run / "checkpoints" / "best") == "step-2"
    assert load_file(run / "checkpoints" / "latest" / "unet" / "model.safetensors").keys() == {"weight", "bias"}


def test_a_step_that_is_saved_already_stays_and_may_become_the_best(run):
    checkpoints, before = Checkpoints(run / "checkpoints"), files_of(run / "checkpoints" / "step-6")
    checkpoints.save(TrainerState(step=6), lambda folder: pytest.fail("written again"), best=True)
    assert files_of(run / "checkpoints" / "step-6") == before
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["best", "latest", "step-6"]
    assert checkpoints.best == checkpoints.latest.resolve()


@pytest.mark.parametrize("place", ["model", "weights", "optimizer", "fsync", "rename"])
def test_a_full_disk_leaves_the_previous_checkpoint_untouched(run, monkeypatch, place):
    before, training = files_of(run), Training()
    training.advance(8)

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def save_model(folder: Path) -> None:
        training.save_model(folder)
        if place == "model":
            full()

    if place == "weights":
        monkeypatch.setattr(module, "save_file", full)
    elif place == "optimizer":
        monkeypatch.setattr(torch, "save", full)
    elif place == "fsync":
        monkeypatch.setattr(os, "fsync", full)
    elif place == "rename":
        monkeypatch.setattr(os, "replace", full)
    with pytest.raises(CheckpointError, match=r"step-8 .*No space left on device.*step-6 is whole") as caught:
        Checkpoints(run / "checkpoints").save(training.state(), save_model)
    assert "\n" not in str(caught.value)
    assert files_of(run) == before
    monkeypatch.undo()
    assert Checkpoints(run / "checkpoints").save(training.state(), training.save_model).name == "step-8"


def test_a_really_full_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a small tmpfs")
    try:
        checkpoints = Checkpoints(disk / "checkpoints")
        checkpoints.save(TrainerState(step=1, weights={"policy": {"w": torch.randn(1000)}}), lambda folder: None)
        before = files_of(disk)
        for large in (
            TrainerState(step=2, weights={"policy": {"w": torch.randn(100_000)}}),
            TrainerState(step=3, optimizer={"state": {0: {"exp_avg": torch.randn(100_000)}}}),
        ):
            with pytest.raises(CheckpointError, match="step-1 is whole") as caught:
                checkpoints.save(large, lambda folder: None)
            assert "\n" not in str(caught.value)
            assert files_of(disk) == before
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)  # the error still holds the file it was writing


def test_an_interrupt_while_saving_leaves_nothing_behind(run):
    before = files_of(run)

    def interrupt(folder: Path) -> None:
        (folder / "half").write_text("")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Checkpoints(run / "checkpoints").save(TrainerState(step=8), interrupt)
    assert files_of(run) == before
    assert not list((run / "checkpoints").glob(".*"))


KILLED = """
import sys
from pathlib import Path
import torch
from vampo_core.training.checkpoint import Checkpoints, TrainerState
checkpoints = Checkpoints(sys.argv[1])
for step in range(1, 100000):
    value = torch.full((2000,), float(step))
    state = TrainerState(step=step, weights={"policy": {"w": value}}, counters={"step": step})
    checkpoints.save(state, lambda folder: (folder / "model").write_text(str(step)), best=step % 3 == 0)
    print(step, flush=True)
"""


def test_a_process_killed_at_any_moment_leaves_a_whole_checkpoint(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    for _ in range(random.Random().randint(1, 9)):
        printed = int(process.stdout.readline())
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    found = find_checkpoint(tmp_path)
    state = read_state(found)
    assert state.step >= printed
    assert found.name == f"step-{state.step}" and (found / "model").read_text() == str(state.step)
    assert torch.equal(state.weights["policy"]["w"], torch.full((2000,), float(state.step)))

    checkpoints = Checkpoints(tmp_path)
    checkpoints.resume(found)
    assert not list(tmp_path.glob(".*"))
    assert os.readlink(tmp_path / "latest") == found.name
    best = max(3 * (state.step // 3), 1)
    assert checkpoints.best.name == f"step-{best}"
    checkpoints.save(TrainerState(step=state.step + 1), lambda folder: None)
    assert {path.name for path in tmp_path.iterdir()} == {"latest", "best", f"step-{best}", f"step-{state.step + 1}"}


def test_what_a_kill_left_undone_is_finished_on_resume(run):
    """Killed after the rename of step-8, the new best: links still point at the older ones, nothing is pruned."""
    folder = run / "checkpoints"
    training = Training()
    training.advance(8)
    Checkpoints(run / "other").save(training.state(), training.save_model, best=True)
    os.rename(run / "other" / "step-8", folder / "step-8")
    (leftover_of(folder / "step-7") / "unet").mkdir(parents=True)

    assert find_checkpoint(run).name == "step-8"
    Checkpoints(folder).resume(find_checkpoint(run))
    assert (os.readlink(folder / "latest"), os.readlink(folder / "best")) == ("step-8", "step-8")
    assert not list(folder.glob(".*"))


def test_resuming_from_an_earlier_checkpoint_removes_the_later_ones(run):
    checkpoints = Checkpoints(run / "checkpoints")
    checkpoints.resume(find_checkpoint(run / "best"))
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["best", "latest", "step-2"]
    assert checkpoints.latest.name == "step-2"


@pytest.mark.parametrize(
    ("path", "step"),
    [
        ("", "step-6"),
        ("latest", "step-6"),
        ("best", "step-2"),
        ("checkpoints", "step-6"),
        ("checkpoints/latest", "step-6"),
        ("checkpoints/best", "step-2"),
        ("checkpoints/step-2", "step-2"),
    ],
)
def test_find_checkpoint(run, path, step):
    for given in (run / path, str(run / path)):
        assert find_checkpoint(given) == run / "checkpoints" / step


def test_find_checkpoint_follows_a_moved_run(run):
    os.rename(run, run.parent / "moved")
    assert find_checkpoint(run.parent / "moved" / "best") == run.parent / "moved" / "checkpoints" / "step-2"


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("nowhere", "no"),
        ("nowhere/best", "no"),
        ("empty", "no checkpoint"),
        ("empty/latest", "no checkpoint"),
        ("model", "a model without trainer state"),
        ("config.yaml", "expected a folder"),
    ],
)
def test_find_checkpoint_says_what_it_found_instead(tmp_path, path, words):
    (tmp_path / "empty").mkdir()
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "vampo.json").write_text("{}")
    (tmp_path / "config.yaml").write_text("")
    with pytest.raises(ValueError, match=words) as caught:
        find_checkpoint(tmp_path / path)
    assert str(tmp_path / path) in str(caught.value) and "expected" in str(caught.value)


@pytest.mark.parametrize("name", ["state.json", "optimizer.pt", "policy.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_a_damaged_checkpoint_is_named(run, name, damage):
    path = run / "checkpoints" / "step-6" / "trainer_state" / name
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(CheckpointError, match="step-6") as caught:
        read_state(run / "checkpoints" / "step-6")
    assert "\n" not in str(caught.value)


def test_a_pickle_that_runs_code_is_refused(run, tmp_path):
    class Malicious:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "pwned",))

    torch.save(Malicious(), run / "checkpoints" / "step-6" / "trainer_state" / "optimizer.pt")
    with pytest.raises(CheckpointError):
        read_state(run / "checkpoints" / "step-6")
    assert not (tmp_path / "pwned").exists()


def test_another_format_is_refused(run):
    path = run / "checkpoints" / "step-6" / "trainer_state" / "state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 2}))
    with pytest.raises(CheckpointError, match="format 2, expected 1"):
        read_state(run / "checkpoints" / "step-6")
