"""A run that is killed, stopped or out of disk space and resumed is bit for bit the run that was left alone.

``VAMPO_NUM_KILLS=20 pytest python_tests/training/test_resume.py -k random`` kills at more moments.
"""

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import tiny_run
import training_processes
from training_processes import KILL_POINTS, finish, kill_after, run, start, wait_for, warm_up
from training_runs import assert_same_run, make_config, make_pretrainer, make_trainer, metrics_of, trained_weights

import vampo_core.training.checkpoint
from vampo_core.config import ConfigError
from vampo_core.evaluation.statistics import Metric
from vampo_core.training.checkpoint import CheckpointError, Checkpoints, find_checkpoint, read_state

SETTINGS = {
    "noisy": [
        "grpo.num_iterations=6", "grpo.num_inner_epochs=2", "optim.warmup_steps=5", "model.ema_decay=0.8",
        "run.save_every=2", "run.eval_every=3",
    ],
    "pretrain": ["pretrain.num_steps=6", "pretrain.save_every=2", "pretrain.eval_every=3"],
}  # fmt: skip
KINDS = tuple(SETTINGS)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Folder of each run left alone, and how long it takes."""
    runs = {}
    warm_up()
    for kind in KINDS:
        folder, begin = tmp_path_factory.mktemp(kind), time.monotonic()
        assert run(kind, folder, *SETTINGS[kind]) == 0
        runs[kind] = folder, time.monotonic() - begin
    return runs


@pytest.mark.parametrize(
    ("kind", "point", "call"),
    [
        ("noisy", "the update", 7),  # between the inner epochs of iteration 4
        ("noisy", "the log", 3),
        ("noisy", "writing a checkpoint", 2),
        ("pretrain", "publishing a checkpoint", 4),
        ("pretrain", "pruning checkpoints", 3),
    ],
)
def test_resume_after_a_kill_at(uninterrupted, tmp_path, kind, point, call):
    assert point in KILL_POINTS
    assert run(kind, tmp_path, *SETTINGS[kind], kill=(point, call)) == -signal.SIGKILL
    finish(kind, tmp_path, *SETTINGS[kind])
    assert_same_run(tmp_path, uninterrupted[kind][0])


@pytest.mark.parametrize("number", range(int(os.environ.get("VAMPO_NUM_KILLS", "3"))))
def test_resume_after_a_kill_at_a_random_moment(uninterrupted, tmp_path, number):
    kind = KINDS[number % 2]
    expected, duration = uninterrupted[kind]
    while True:
        folder, delay = tmp_path / f"{time.monotonic()}", random.Random().uniform(0, duration)
        if kill_after(start(kind, folder, *SETTINGS[kind]), delay):
            break  # it was still at work
    print(f"killed after {delay:.3f} of {duration:.3f} s")
    finish(kind, folder, *SETTINGS[kind])
    assert_same_run(folder, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_sigterm_saves_and_ends_in_order(uninterrupted, tmp_path, kind):
    process = start(kind, tmp_path, *SETTINGS[kind])
    log = tmp_path / "metrics.jsonl"
    wait_for(lambda: log.exists() and log.read_text().count("\n") >= 1)
    os.kill(process.pid, signal.SIGTERM)
    process.join()
    assert process.exitcode == 3
    rows = metrics_of(tmp_path)
    assert 1 <= len(rows) < 6 and find_checkpoint(tmp_path).name == f"step-{len(rows)}"
    assert run(kind, tmp_path, *SETTINGS[kind], resume_from=tmp_path) == 0
    assert_same_run(tmp_path, uninterrupted[kind][0])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_whole_process_group_saves_too(tmp_path, number):
    """As schedulers and terminals send it: the processes that load data live until the iteration is done."""
    tiny_run.write_dataset(tmp_path / "data")
    tiny_run.settings(tmp_path, "data.num_workers=2", "pretrain.num_steps=500").save(tmp_path / "tiny.yaml")
    process = subprocess.Popen(
        [sys.executable, "-m", "vampo_core", "pretrain", "--config", tmp_path / "tiny.yaml"],
        start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    log = tmp_path / "runs" / "tiny" / "metrics.jsonl"
    wait_for(lambda: process.poll() is not None or (log.exists() and log.read_text().count("\n") >= 2))
    os.killpg(process.pid, number)
    printed, error = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in error and "interrupted; continue" in printed, error
    rows = metrics_of(log.parent)
    assert 2 <= len(rows) < 500 and find_checkpoint(log.parent).name == f"step-{len(rows)}"


def test_a_signal_between_iterations_loses_nothing(tmp_path):
    """It comes after iteration 3 has decided that there is nothing to save yet."""

    def callback(trainer, row):
        if row["iteration"] == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    trainer = make_trainer(make_config(tmp_path, "run.save_every=2", "run.eval_every=9"), callbacks=[callback])
    result = trainer.train()
    assert result.interrupted and len(result.history) == 3
    assert result.checkpoint.name == "step-3"


@pytest.mark.parametrize("kind", ["train", "pretrain"])
def test_a_full_disk_leaves_the_last_checkpoint_whole(tmp_path, monkeypatch, kind):
    make = make_pretrainer if kind == "pretrain" else make_trainer
    config, calls = make_config(tmp_path / "run"), []
    make(make_config(tmp_path / "expected")).train()

    def save_file(*args):
        calls.append(args)
        if len(calls) > (6 if kind == "pretrain" else 3):  # the policy (and the EMA) of steps 0, 1 and 2 fit
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(*args)

    original = vampo_core.training.checkpoint.save_file
    monkeypatch.setattr(vampo_core.training.checkpoint, "save_file", save_file)
    with pytest.raises(CheckpointError, match=r"step-3 could not be written.*No space left.*step-2 is whole"):
        make(config).train()
    assert read_state(find_checkpoint(tmp_path / "run")).step == 2
    assert not [path for path in (tmp_path / "run" / "checkpoints").iterdir() if path.name.startswith(".")]
    monkeypatch.undo()
    make(config).train(resume_from=tmp_path / "run")
    assert_same_run(tmp_path / "run", tmp_path / "expected")


def test_weights_under_training_and_their_mean_are_both_saved(tmp_path):
    """What the model folder holds is the mean; what goes on training is not."""
    config = make_config(tmp_path, "model.ema_decay=0.9")
    trainer = make_trainer(config)
    trainer.train()
    state, weights = read_state(find_checkpoint(tmp_path)), trained_weights(trainer)
    name = "unet.conv_out.weight"
    assert (state.weights["policy"][name] == weights[name]).all()
    mean = dict(zip(trainer.optimizer.names, trainer.optimizer.ema.shadow_params, strict=True))[name]
    assert (state.weights["ema"][name] == mean).all() and not (mean == weights[name]).all()
    saved = vampo_core.VideoPredictor.from_pretrained(find_checkpoint(tmp_path))
    assert (saved.unet.conv_out.weight == mean).all()


def test_the_best_checkpoint_is_the_one_with_the_highest_held_out_reward(tmp_path):
    result = make_trainer(make_config(tmp_path, "run.eval_every=1", "optim.lr=0.02")).train()
    rewards = [result.before.reward.mean, *(row["eval_reward"] for row in result.history)]
    assert len(set(rewards)) == 5
    assert result.best_checkpoint.name == f"step-{rewards.index(max(rewards))}"
    assert result.checkpoint.name == "step-4" and result.after.reward.mean == rewards[-1]


@pytest.mark.parametrize(
    ("settings", "score"),
    [
        (["reward.cosine_weight=0"], lambda l1, cosine: -l1),
        (["reward.l1_weight=0.1", "reward.cosine_weight=3"], lambda l1, cosine: 3 * cosine - 0.1 * l1),
        (["reward.l1_weight=0", "reward.cosine_weight=0", "reward.motion_weight=1"], lambda l1, cosine: cosine - l1),
    ],
)
def test_the_best_checkpoint_is_chosen_in_the_weights_of_the_reward(tmp_path, monkeypatch, settings, score):
    """Held-out L1 and cosine that disagree: each weighting has another best iteration."""
    metrics = iter([(1.0, 0.0), (0.9, 0.2), (1.2, 0.8), (0.1, -0.9), (0.2, 0.1)])
    trainer = make_trainer(make_config(tmp_path, "run.eval_every=1", *settings))
    result = trainer.evaluate()

    def evaluate():
        l1, cosine = next(metrics)
        changed = {"l1": l1, "cosine": cosine, "reward": cosine - l1}
        return replace(result, **{name: Metric(value, (value, value)) for name, value in changed.items()})

    monkeypatch.setattr(trainer, "evaluate", evaluate)
    finished = trainer.train()
    scores = [score(1.0, 0.0), *(score(row["eval_l1"], row["eval_cosine"]) for row in finished.history)]
    assert finished.best_checkpoint.name == f"step-{scores.index(max(scores))}"
    assert finished.history[0]["eval_reward"] == pytest.approx(0.2 - 0.9)


def test_a_longer_run_may_follow(tmp_path):
    """More iterations are the one thing that may change: the first ones are those of before."""
    make_trainer(make_config(tmp_path / "short")).train()
    result = make_trainer(make_config(tmp_path / "short", "grpo.num_iterations=6")).train(tmp_path / "short")
    assert len(result.history) == 6
    make_trainer(make_config(tmp_path / "long", "grpo.num_iterations=6")).train()
    assert_same_run(tmp_path / "short", tmp_path / "long")


def test_resume_from_an_earlier_checkpoint(tmp_path):
    config = make_config(tmp_path / "run", "run.eval_every=99")
    make_trainer(config).train()
    best = Checkpoints(tmp_path / "run" / "checkpoints").best
    assert best.name == "step-0" or best.name == "step-4"
    make_trainer(make_config(tmp_path / "expected", "run.eval_every=99")).train()
    make_trainer(config).train(resume_from=tmp_path / "run" / "best")
    assert_same_run(tmp_path / "run", tmp_path / "expected")


def test_resume_with_other_settings_is_refused(tmp_path):
    make_trainer(make_config(tmp_path)).train()
    with pytest.raises(ConfigError, match=r"optim\.lr is 0\.002, expected 0\.001"):
        make_trainer(make_config(tmp_path, "optim.lr=2e-3")).train(resume_from=tmp_path)


def test_resume_with_another_model_is_refused(tmp_path):
    config = make_config(tmp_path)
    make_trainer(config).train()
    file = find_checkpoint(tmp_path) / "trainer_state" / "state.json"
    assert json.loads(file.read_text())["step"] == 4
    adapted = training_processes.make_trainer(
        config, model=vampo_core.VideoPredictor.from_pretrained(find_checkpoint(tmp_path))
    )
    adapted.optimizer.names[0] = "unet.other.weight"
    with pytest.raises(ValueError, match=r"they differ in unet\..*model\.\* settings"):
        adapted.train(resume_from=tmp_path)
