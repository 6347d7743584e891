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


@pytest.mark.parametrize("settings", SETTINGS)
def test_one_reduction_per_update(tmp_path, settings):
    """Whatever the number of parts, stochastic steps and anchors."""
    overrides = ["grpo.batch_size=4", "run.eval_every=4", *SETTINGS[settings]]
    endings = run_two("train", tmp_path / "run", *overrides)
    num_updates = 8 if settings == "inner epochs" else 4
    assert [ending["num_reductions"] for ending in endings] == [num_updates, num_updates]


@pytest.mark.parametrize("kind", ["train", "rounding"])
def test_processes_end_with_the_same(tmp_path, kind):
    """Also where one finds other held-out metrics: what the main process decides counts."""
    ours, theirs = run_two(kind, tmp_path / "run", "grpo.batch_size=4", "run.eval_every=1")
    for name in ("checkpoint", "best", "history", "before", "after"):
        assert ours[name] == theirs[name]
    assert len(ours["history"]) == 4


def test_another_number_of_processes_resumes(tmp_path):
    """Two go on as two and as one, one goes on as two; a process that was not there before draws numbers of its own."""
    overrides = ["grpo.batch_size=4", "optim.lr=1e-4", "run.eval_every=4"]
    assert run("train", tmp_path / "whole", *overrides) == 0
    half, paths = "grpo.num_iterations=2", {}
    for name, begins, ends in (("22", run_two, run_two), ("12", run, run_two), ("21", run_two, run)):
        paths[name] = tmp_path / name
        begins("train", paths[name], *overrides, half)
        ending = ends("train", paths[name], *overrides, resume_from=paths[name])
        if ends is run_two:
            assert ending[0]["draw"] != ending[1]["draw"]
        else:
            assert ending == 0
        rows, wanted = metrics_of(paths[name]), metrics_of(tmp_path / "whole")
        assert rows[-1] == pytest.approx(wanted[-1], rel=2e-3, abs=2e-5)


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
    """One process records, fits and encodes, and the other finds what it made; both train the decoders."""
    settings = [f"data.root={tmp_path / 'data'}", "data.num_episodes=4", "data.held_out_fraction=0.25"]
    settings += ["reward.action_weight=0.5", "decoder.num_steps=2"]
    run_two("preset", tmp_path / "run", *settings)
    made = sorted(path.name.partition("-")[0] for path in tmp_path.glob("[!.]*"))
    assert made == ["base", "codec", "data", "decoder", "judge", "run"]
    assert len(metrics_of(tmp_path / "run")) == 4
    assert (tmp_path / "run" / "report.html").is_file()
