"""Run folders: nothing of a run is lost by mistake, and a resumed run's records are those of an uninterrupted one."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from leftovers import leftover_of

from vampo_core.config import ConfigError, VampoConfig, load_config
from vampo_core.training import trackers
from vampo_core.training.checkpoint import TrainerState
from vampo_core.training.metrics import MetricsLog, read_metrics
from vampo_core.training.run_folder import RunFolder
from vampo_core.training.signals import GracefulStop
from vampo_core.training.trackers import Trackers


@pytest.fixture
def config(tmp_path) -> VampoConfig:
    return load_config("pusht", f"run.dir={tmp_path / 'run'}")


def work(folder: RunFolder, iterations: range, save_every: int = 2) -> None:
    """Iterations whose metrics depend on their number alone."""
    for iteration in iterations:
        folder.metrics.append({"iteration": iteration, "loss": 0.1 / iteration, "reward_mean": iteration / 3})
        if iteration % save_every == 0:
            folder.checkpoints.save(TrainerState(step=iteration), lambda path: None)


@pytest.fixture
def finished(config) -> Path:
    """The folder of a run of 5 iterations with checkpoints after 2 and 4."""
    with RunFolder(config) as folder:
        work(folder, range(1, 6))
    return folder.path


def test_a_new_run_folder(config, finished):
    assert load_config(finished) == config
    assert [row["iteration"] for row in read_metrics(finished / "metrics.jsonl")] == [1, 2, 3, 4, 5]


def test_a_folder_that_holds_a_run_is_refused_untouched(config, finished):
    before = (finished / "metrics.jsonl").read_bytes()
    with pytest.raises(ConfigError, match=r"run\.dir is .*--resume-from .*resume_from=.*run\.overwrite=true"):
        RunFolder(config)
    assert (finished / "metrics.jsonl").read_bytes() == before
    lock = "import filelock, sys; filelock.FileLock(sys.argv[1]).acquire(timeout=0)"
    subprocess.run([sys.executable, "-c", lock, finished / ".lock"], check=True)  # the refusal holds none


@pytest.mark.parametrize("left", ["config.yaml", "metrics.jsonl", "checkpoints"])
def test_a_run_killed_before_its_first_checkpoint_begins_again(config, left):
    """Neither resume_from nor overwrite is needed: there is nothing to continue, and nothing to lose."""
    folder = Path(config.run.dir)
    folder.mkdir()
    config.save(folder / "config.yaml")
    if left != "config.yaml":
        (folder / "metrics.jsonl").touch()
    if left == "checkpoints":
        leftover_of(folder / "checkpoints" / "step-0").mkdir(parents=True)
    with RunFolder(config) as begun:
        assert begun.checkpoint is None
        work(begun, range(1, 4))
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["best", "latest", "step-2"]


def test_metrics_whose_checkpoints_are_gone_are_not_lost(config):
    with RunFolder(config) as folder:
        folder.metrics.append({"iteration": 1})
    with pytest.raises(ConfigError, match="holds a run already"):
        RunFolder(config)
    assert len(read_metrics(folder.path / "metrics.jsonl")) == 1


def test_overwrite_deletes_the_run_and_nothing_else(config, finished):
    (finished / "notes.txt").write_text("mine")
    (finished / "samples").mkdir()
    with RunFolder(load_config(config, "run.overwrite=true", "run.seed=1")) as folder:
        assert folder.checkpoint is None
        work(folder, range(1, 2))
    names = {path.name for path in finished.iterdir()}
    assert names == {"config.yaml", "metrics.jsonl", "notes.txt", ".lock"}
    assert load_config(finished).run.seed == 1
    assert not load_config(finished).run.overwrite  # or --config with this folder would delete the run
    assert len(read_metrics(finished / "metrics.jsonl")) == 1


@pytest.mark.parametrize("theirs", ["config.yaml", "metrics.jsonl", "checkpoints/epoch-1.ckpt"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_of_something_else_is_refused_untouched(config, theirs, overwrite):
    folder = Path(config.run.dir)
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "wandb").mkdir()
    (folder / theirs).write_text("model: theirs\n")
    before = sorted(folder.rglob("*"))
    with pytest.raises(ConfigError, match=rf"run\.dir is .*, which holds .*{theirs.partition('/')[0]}.* no config"):
        RunFolder(load_config(config, f"run.overwrite={overwrite}"))
    assert sorted(folder.rglob("*")) == before and (folder / theirs).read_text() == "model: theirs\n"


def test_overwrite_deletes_nothing_where_there_was_no_run(config):
    wandb = Path(config.run.dir) / "wandb"
    wandb.mkdir(parents=True)
    (wandb / "theirs").touch()
    with RunFolder(load_config(config, "run.overwrite=true")) as folder:
        work(folder, range(1, 2))
    assert (wandb / "theirs").exists()


def test_temporary_files_of_others_stay(config):
    """A run removes what it left itself, and only where it writes."""
    folder = Path(config.run.dir)
    ours = [leftover_of(folder / name) for name in ("report.html", "samples/clip-01.mp4", "checkpoints/step-2")]
    theirs = [folder / name for name in (".notes.tmp", ".probe.tmp", "sub/.x.0123456789ab.tmp")]
    theirs += [leftover_of(folder / "closed_loop" / "episodes.jsonl"), leftover_of(folder / "x", os.getppid())]
    for path in ours + theirs:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    config.save(folder / "config.yaml")
    RunFolder(config).close()
    assert not any(path.exists() for path in ours)
    assert all(path.read_text() == "x" for path in theirs)


def test_resume_continues_the_metrics_as_if_uninterrupted(config, finished, tmp_path):
    with RunFolder(load_config(config, f"run.dir={tmp_path / 'whole'}")) as whole:
        work(whole, range(1, 8))
    with (finished / "metrics.jsonl").open("a") as file:
        file.write('{"iteration": 6, "lo')  # killed while writing
    with RunFolder(load_config(config, "run.overwrite=true"), resume_from=finished) as folder:
        assert folder.checkpoint == finished / "checkpoints" / "step-4"
        assert [row["iteration"] for row in folder.metrics.rows] == [1, 2, 3, 4]
        work(folder, range(5, 8))
        assert folder.metrics.rows == read_metrics(folder.metrics.path)
    assert (finished / "metrics.jsonl").read_bytes() == (whole.path / "metrics.jsonl").read_bytes()


def test_a_path_may_be_written_differently_on_resume(config, tmp_path):
    started = load_config(config, f"model.pretrained={tmp_path / 'base'}")
    with RunFolder(started) as folder:
        work(folder, range(1, 4))
    (tmp_path / "link").symlink_to(tmp_path)
    for same in (tmp_path / "link" / "base", tmp_path / "runs" / ".." / "base"):
        assert RunFolder.check(load_config(config, f"model.pretrained={same}"), resume_from=folder.path)
    for other in (tmp_path / "other", "null"):
        with pytest.raises(ConfigError, match=r"model\.pretrained is .*, expected"):
            RunFolder.check(load_config(config, f"model.pretrained={other}"), resume_from=folder.path)


def test_resume_may_extend_a_run_but_not_change_its_settings(config, finished):
    with RunFolder(load_config(config, "run.eval_every=500", "run.save_every=7"), resume_from=finished):
        assert load_config(finished).run.eval_every == 500
    for override in ("optim.lr=1e-3", "run.seed=9", "evaluation.seed=4"):
        key = override.partition("=")[0]
        with pytest.raises(ConfigError, match=rf"{key} is .*, expected .*config\.yaml.*model\.pretrained="):
            RunFolder(load_config(config, override), resume_from=finished)
    assert len(read_metrics(finished / "metrics.jsonl")) == 4


@pytest.mark.parametrize(
    ("length", "decay"),
    [
        ("grpo.num_iterations", "optim.decay_steps"),
        ("pretrain.num_steps", "pretrain.decay_steps"),
        ("policy.num_steps", "policy.decay_steps"),
    ],
)
def test_a_run_whose_learning_rate_falls_keeps_its_length(config, length, decay):
    """It counts back from the end: with another one it would jump."""
    settings = load_config(config, f"{decay}=10")
    with RunFolder(settings) as folder:
        work(folder, range(1, 4))
    before = (folder.path / "config.yaml").read_bytes()
    with pytest.raises(ConfigError, match=rf"{length} is 77, expected \d+ as in .*{decay} = 10"):
        RunFolder(load_config(settings, f"{length}=77"), resume_from=folder.path)
    assert (folder.path / "config.yaml").read_bytes() == before
    constant = load_config(config, f"{decay}=0", "run.overwrite=true")
    with RunFolder(constant) as folder:
        work(folder, range(1, 4))
    RunFolder(load_config(constant, f"{length}=77"), resume_from=folder.path).close()


def test_resume_from_another_run_is_refused(config, finished, tmp_path):
    with pytest.raises(ConfigError, match=rf"run\.dir is .*other.*, expected '{finished}'"):
        RunFolder(load_config(config, f"run.dir={tmp_path / 'other'}"), resume_from=finished)
    assert not (tmp_path / "other").exists()


def test_resume_without_a_checkpoint_is_refused(config):
    with RunFolder(config) as folder:
        folder.metrics.append({"iteration": 1})
    with pytest.raises(ValueError, match="no checkpoint"):
        RunFolder(config, resume_from=folder.path)
    assert len(read_metrics(folder.path / "metrics.jsonl")) == 1


def test_a_folder_that_cannot_be_written_to(config, tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "run", Path("/proc/run")):
        with pytest.raises(
            ConfigError, match=r"run\.dir is .*, expected a folder that can be written to: \w+"
        ) as caught:
            RunFolder(load_config(config, f"run.dir={path}"))
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)


HOLDER = """
import sys
from vampo_core.config import load_config
from vampo_core.training.run_folder import RunFolder
with RunFolder(load_config("pusht", f"run.dir={sys.argv[1]}")):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_two_processes_do_not_share_a_run_folder(config):
    path = config.run.dir
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    overwriting = load_config(config, "run.overwrite=true")
    with pytest.raises(ConfigError, match="another process is writing to it"):
        RunFolder(overwriting)
    assert (Path(path) / "config.yaml").exists()
    process.kill()
    process.communicate()
    RunFolder(overwriting).close()  # a killed process holds nothing


def test_processes_of_one_run_may_look_at_its_folder_at_once(config, monkeypatch):
    original = Path.write_text

    def write_text(path, *arguments, **options):
        original(path, *arguments, **options)
        path.unlink()  # by the other one

    monkeypatch.setattr(Path, "write_text", write_text)
    assert RunFolder.check(config) is None


def test_metrics_are_plain_numbers_on_disk_at_once(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.append({"iteration": 1, "loss": torch.tensor(0.5), "l1": np.float64(0.1), "bad": float("nan"), "ci95": (1, 2)})
    row = {"iteration": 1, "loss": 0.5, "l1": 0.1, "bad": None, "ci95": [1, 2]}
    assert (tmp_path / "metrics.jsonl").read_text() == json.dumps(row) + "\n"
    assert log.rows == [row]
    log.close()


def test_metrics_of_another_run_are_not_appended_to(tmp_path):
    MetricsLog(tmp_path / "metrics.jsonl").close()
    with pytest.raises(FileExistsError):
        MetricsLog(tmp_path / "metrics.jsonl")


@pytest.mark.parametrize(("resume_at", "expected"), [(2, ("k3jw", "allow")), (None, (None, None))])
def test_a_resumed_run_goes_on_in_its_own_wandb_run(config, monkeypatch, resume_at, expected):
    file = Path(config.run.dir) / "wandb" / "latest-run" / "run-k3jw.wandb"
    file.parent.mkdir(parents=True)
    file.touch()
    made = []
    monkeypatch.setattr(trackers, "check_trackers", lambda config: None)
    monkeypatch.setattr(trackers, "WandBTracker", lambda *args, **kwargs: made.append(kwargs) or MagicMock())
    Trackers(load_config(config, "run.trackers=[wandb]"), resume_at=resume_at)
    assert [(kwargs["id"], kwargs["resume"]) for kwargs in made] == [expected]


@pytest.mark.parametrize("damage", ['{"iter', "7", '{"loss": 1}', '{"iteration": "x"}'])
def test_a_damaged_line_in_the_middle_is_named(tmp_path, damage):
    (tmp_path / "metrics.jsonl").write_text(f'{{"iteration": 1}}\n{damage}\n{{"iteration": 3}}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2"):
        read_metrics(tmp_path / "metrics.jsonl")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_asks_and_the_second_interrupts(number):
    before = [signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)]
    with pytest.raises(KeyboardInterrupt, match="while stopping"), GracefulStop() as stop:
        assert not stop.requested and stop.signal is None
        os.kill(os.getpid(), number)
        assert stop.requested and stop.signal is number
        os.kill(os.getpid(), signal.SIGTERM)
    assert [signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)] == before


def test_graceful_stop_outside_of_the_main_thread():
    requested = []

    def run() -> None:
        with GracefulStop() as stop:
            requested.append(stop.requested)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert requested == [False]


def test_a_tracker_whose_package_is_missing(config, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"run\.trackers names 'wandb'.*pip install vampo_core\[wandb\]"):
        Trackers(load_config(config, "run.trackers=[wandb]"))
    Trackers(config).close()


def test_tensorboard_shows_a_resumed_run_as_one(config):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = load_config(config, "run.trackers=[tensorboard]")
    for resume_at, iterations in ((None, range(1, 5)), (2, range(3, 7))):
        trackers = Trackers(config, resume_at=resume_at)
        for iteration in iterations:
            trackers.log({"iteration": iteration, "loss": float(iteration), "held_out": {"l1": 0.5}, "note": None})
        trackers.close()
    events = EventAccumulator(str(Path(config.run.dir) / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(i, float(i)) for i in range(1, 7)]
    assert "held_out/l1" in events.Tags()["scalars"] and "note" not in events.Tags()["scalars"]
