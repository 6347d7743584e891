"""A run is found complete, continued or begun, by one job at a time."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny_run as tiny

from vampo_core import api
from vampo_core.cli.parser import main
from vampo_core.config import ConfigError, load_config
from vampo_core.files import locked
from vampo_core.grpo.trainer import VampoTrainer
from vampo_core.pipeline import waiting
from vampo_core.pipeline.base import base_config
from vampo_core.pipeline.codec import prepare_codec
from vampo_core.pipeline.runs import VAMPO, find_continue_or_begin
from vampo_core.training.checkpoint import Checkpoints
from vampo_core.training.pretrain import Pretrainer

HELPERS = Path(tiny.__file__).parent
JOB = """
import json, os, signal, sys, time
import vampo_core, tiny_run
from vampo_core.training.pretrain import Pretrainer

folder, name, die_in = sys.argv[1], sys.argv[2], int(sys.argv[3])
iterate, updates = Pretrainer.iterate, []

def counted(trainer, iteration, batches):
    if iteration == die_in:
        while not os.path.exists(f"{folder}/die"):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGKILL)
    updates.append(iteration)
    return iterate(trainer, iteration, batches)

Pretrainer.iterate = counted
config = tiny_run.settings(
    folder, f"run.dir={folder}/runs/{name}", "data.env=simulators:line", "data.num_episodes=4", "data.stride=1",
    "data.held_out_fraction=0.25", "model.latent_channels=4", "pretrain.num_steps=4", "pretrain.save_every=1",
    "grpo.num_iterations=1",
)
result = vampo_core.train(config)
print(json.dumps([updates, len(result.history)]))
"""


def start(folder, name, *, die_in=0):
    """A process that records, fits, pretrains and post-trains what is missing."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(HELPERS), *sys.path]), "ACCELERATE_USE_CPU": "true"}
    return subprocess.Popen(
        [sys.executable, "-c", JOB, str(folder), name, str(die_in)],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def ended(process):
    """What a process printed, and the updates of the base that it made."""
    out, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    updates, num_iterations = json.loads(out.splitlines()[-1])
    assert num_iterations == 1
    return out, updates


def test_two_processes_that_start_from_nothing_share_one_base(tmp_path):
    first, second = start(tmp_path, "a"), start(tmp_path, "b")
    outputs = [ended(first), ended(second)]
    assert sorted(updates for _, updates in outputs) == [[], [1, 2, 3, 4]]
    (waited,) = [out for out, updates in outputs if not updates]
    assert "waiting for another process" in waited and "base model: " in waited and "(found)" in waited
    assert sorted(path.name.partition("-")[0] for path in (tmp_path / "runs").glob("[!.]*")) == [
        "a",
        "b",
        "base",
        "codec",
        "judge",
    ]


def test_a_process_that_waits_continues_the_base_of_one_that_died(tmp_path):
    first = start(tmp_path, "a", die_in=3)
    while not list((tmp_path / "runs").glob("base-*")):
        assert first.poll() is None, first.communicate()
        time.sleep(0.05)
    second = start(tmp_path, "b")
    assert any("waiting for another process" in line for line in iter(second.stdout.readline, ""))
    (tmp_path / "die").touch()
    assert first.wait(timeout=240) == -signal.SIGKILL
    first.communicate()
    out, updates = ended(second)
    assert updates == [3, 4] and "(continued)" in out


RANK = """
import sys
from pathlib import Path
from vampo_core.pipeline.waiting import made_by_one_job

print("begins", flush=True)
with made_by_one_job(Path(sys.argv[1])):
    print("has it", flush=True)
"""


def test_all_processes_of_a_distributed_run_wait_and_then_go_on_together(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    place = waiting._place(tmp_path / "base")
    common = {"ACCELERATE_USE_CPU": "true", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    with locked(place):
        ranks = [
            subprocess.Popen(
                [sys.executable, "-c", RANK, str(tmp_path / "base")], stdout=subprocess.PIPE, text=True,
                env=os.environ | common | {"MASTER_PORT": str(port), "RANK": str(rank), "LOCAL_RANK": str(rank)},
            )
            for rank in (0, 1)
        ]  # fmt: skip
        assert [rank.stdout.readline() for rank in ranks] == ["begins\n"] * 2
        assert "waiting for another process" in ranks[0].stdout.readline()
        time.sleep(0.5)
        assert [rank.poll() for rank in ranks] == [None, None]
        (place / "owner").write_text("another job")
    assert [rank.communicate(timeout=60)[0] for rank in ranks] == ["has it\n"] * 2
    assert [rank.returncode for rank in ranks] == [0, 0]


@pytest.fixture
def made(tmp_path):
    """A configuration of which data and base are there."""
    tiny.write_dataset(tmp_path / "data")
    config = tiny.settings(tmp_path, "run.save_every=1", "optim.decay_steps=0")
    api.base_checkpoint(config)
    return config


def count(monkeypatch, trainer):
    """Iterations that a trainer makes from now on."""
    real, steps = trainer.iterate, []
    monkeypatch.setattr(trainer, "iterate", lambda self, i, batches: steps.append(i) or real(self, i, batches))
    return steps


def find(config, **options):
    return find_continue_or_begin(VAMPO, config, api.train, label="run", **options)


def test_begun_continued_and_found(made, monkeypatch, capsys):
    steps, folder = count(monkeypatch, VampoTrainer), Path(made.run.dir)
    find(load_config(made, "grpo.num_iterations=2"))
    assert steps == [1, 2] and f"run: {folder}\n" in capsys.readouterr().out
    trained = find(made)
    assert steps == [1, 2, 3] and f"run: {folder} (continued)\n" in capsys.readouterr().out
    found = find(made)
    assert steps == [1, 2, 3] and f"run: {folder} (found)\n" in capsys.readouterr().out
    assert found == trained


def test_a_found_base_is_what_its_training_returned(made, monkeypatch):
    steps = count(monkeypatch, Pretrainer)
    codec = prepare_codec(made)
    found, folder = api.base_checkpoint(made), Path(base_config(made, codec).run.dir)
    assert not steps and found == Checkpoints(folder / "checkpoints").latest.resolve()


def test_a_run_whose_folders_were_moved_together_continues(made, tmp_path, monkeypatch):
    base = api.base_checkpoint(made)
    started = load_config(made, f"model.pretrained={base.parent.parent}", "grpo.num_iterations=2")
    find(started)
    new = tmp_path / "elsewhere"
    shutil.move(made.run.dir, new / "run")
    shutil.move(base.parent.parent, new / "base")
    moved = load_config(started, f"run.dir={new / 'run'}", f"model.pretrained={new / 'base'}", "grpo.num_iterations=3")
    steps = count(monkeypatch, VampoTrainer)
    assert len(api.train(moved, resume_from=new / "run").history) == 3 and steps == [3]
    shutil.copytree(new / "base", new / "other")  # the base is where it was, so another path is another base
    with pytest.raises(ConfigError, match=r"model\.pretrained is .*other', expected .*base'"):
        api.train(load_config(moved, f"model.pretrained={new / 'other'}"), resume_from=new / "run")


def test_a_run_with_other_settings_is_refused_unless_its_name_says_what_decides_it(made, monkeypatch):
    find(load_config(made, "grpo.num_iterations=2"))
    other = load_config(made, "optim.lr=1e-6")
    for config in (other, load_config(other, "grpo.num_iterations=2")):  # unfinished, and complete
        with pytest.raises(ConfigError, match=r"optim\.lr is 1e-06, expected"):
            find(config)
    with pytest.raises(ConfigError, match=r"run\.overwrite is True, expected False"):
        find(load_config(made, "run.overwrite=true"))
    steps = count(monkeypatch, VampoTrainer)
    find(load_config(other, "grpo.num_iterations=2"), named=True)
    assert not steps
    result = find(load_config(other, "run.save_every=7"), named=True)
    assert not steps, "the length of the run is its own too"
    assert result.config.optim.lr == made.optim.lr and result.config.run.save_every == 7


def test_a_run_of_another_kind_is_not_found(made):
    config = load_config(made, "pretrain.num_steps=3")
    api.pretrain(config)
    with pytest.raises(ConfigError, match=r"which holds a pretraining run, expected a VAMPO run"):
        find(config)
    with pytest.raises(ConfigError, match=r"which holds a pretraining run, expected a VAMPO run"):
        api.train(config, resume_from=config.run.dir)


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_again(made, monkeypatch):
    def killed(*_):
        raise RuntimeError("killed")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="killed"):
        patch.setattr(VampoTrainer, "evaluate", killed)
        find(made)
    steps = count(monkeypatch, VampoTrainer)
    find(made)
    assert steps == [1, 2, 3]


def test_continue_on_the_command_line(made, monkeypatch, capsys):
    made.save(Path(made.run.dir).parent / "tiny.yaml")
    command = ["train", "--config", str(Path(made.run.dir).parent / "tiny.yaml"), "--continue"]
    steps = count(monkeypatch, VampoTrainer)
    assert main([*command, "grpo.num_iterations=2"]) == 0 and steps == [1, 2]
    assert main(command) == 0 and steps == [1, 2, 3]
    report = Path(made.run.dir) / "report.html"
    report.unlink()
    capsys.readouterr()
    assert main(command) == 0 and steps == [1, 2, 3] and report.is_file()
    assert "held-out clips" in capsys.readouterr().out
    assert main([*command, "--resume-from", made.run.dir]) == 2
    assert "expected one of them" in capsys.readouterr().err


def test_while_another_job_has_the_run_it_is_waited_for(made, monkeypatch, capsys):
    """The other job is another process, because locks belong to processes."""
    place = Path(made.run.dir).parent / ".locks" / Path(made.run.dir).name
    script = (
        "import sys, time; from vampo_core.files import locked; from pathlib import Path\n"
        "with locked(Path(sys.argv[1])): print('held', flush=True); time.sleep(1.5)"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(place)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        begin = time.monotonic()
        find(load_config(made, "grpo.num_iterations=1"))
        assert other.poll() == 0 and time.monotonic() - begin > 0.5
    assert "waiting for another process" in capsys.readouterr().out
