"""Two processes over gloo make the run that one makes."""

import pytest
from training_processes import run, run_two
from training_runs import metrics_of, relative_distance, tensors_of

SETTINGS = {
    "one part": ["grpo.anchor_coef=1"],
    "two parts, every step": [
        "optim.gradient_accumulation_steps=2", "sampler.stochastic_steps=[0,1,2]", "sampler.sigma_min=1.0",
    ],
    "inner epochs": ["grpo.num_inner_epochs=2", "grpo.kl_coef=0.1", "model.ema_decay=0.5"],
    "adapters": ["model.lora=2", "model.gradient_checkpointing=true"],
}  # fmt: skip


def assert_close_runs(folder, expected):
    """Metrics and weights up to rounding; optimizer and all."""
    rows, wanted = metrics_of(folder), metrics_of(expected)
    assert len(rows) == len(wanted) == 4
    for row, other in zip(rows, wanted, strict=True):
        assert row == pytest.approx(other, rel=2e-3, abs=2e-5)
    ours, theirs = (tensors_of(path / "checkpoints" / "latest") for path in (folder, expected))
    assert relative_distance(ours, theirs) < 1e-3


@pytest.mark.parametrize("settings", SETTINGS)
def test_training(tmp_path, settings):
    overrides = ["grpo.batch_size=4", "optim.lr=1e-4", "run.eval_every=4", *SETTINGS[settings]]
    assert run("train", tmp_path / "one", *overrides) == 0
    run_two("train", tmp_path / "two", *overrides)
    assert_close_runs(tmp_path / "two", tmp_path / "one")


def test_pretraining(tmp_path):
    """The instruction encoder is called outside of the wrapped module: its gradient is averaged nonetheless."""
    overrides = ["pretrain.batch_size=4", "pretrain.lr=1e-4"]
    assert run("pretrain", tmp_path / "one", *overrides) == 0
    run_two("pretrain", tmp_path / "two", *overrides)
    assert_close_runs(tmp_path / "two", tmp_path / "one")


def test_policy(tmp_path):
    """With the predictor under training, whose unused parts must not keep the processes waiting."""
    overrides = ["policy.lr=1e-4", "policy.train_predictor=true"]
    assert run("policy", tmp_path / "one", *overrides) == 0
    run_two("policy", tmp_path / "two", *overrides)
    assert_close_runs(tmp_path / "two", tmp_path / "one")


def test_a_preset_from_nothing(tmp_path):
    """One process records, fits and encodes; the other finds what it made."""
    settings = [f"data.root={tmp_path / 'data'}", "data.num_episodes=4", "data.held_out_fraction=0.25"]
    run_two("preset", tmp_path / "run", *settings)
    assert sorted(path.name.partition("-")[0] for path in tmp_path.glob("[!.]*")) == ["base", "codec", "data", "run"]
    assert len(metrics_of(tmp_path / "run")) == 4
    assert (tmp_path / "run" / "report.html").is_file()
