"""Training of a policy: updates, resume, held-out error, and the command that does it all."""

import itertools

import numpy as np
import pytest
import tiny_run
import torch
from policy_runs import HORIZON, TINY_POLICY, make_policy_trainer, policy_config
from svd_folder import make_svd_pipeline
from training_runs import assert_same_run, metrics_of, trained_weights

import vampo_core
from vampo_core import Policy
from vampo_core.cli import parser as cli
from vampo_core.config import ConfigError, load_config
from vampo_core.data.clips import collate
from vampo_core.models import VideoPredictor
from vampo_core.policy.evaluation import PolicyEvalResult, evaluate_policy
from vampo_core.policy.vpp.feature_cache import FeatureCache
from vampo_core.training.checkpoint import find_checkpoint
from vampo_core.training.signals import GracefulStop


def test_the_predictor_is_frozen_and_its_cache_serves(tmp_path):
    trainer = make_policy_trainer(policy_config(tmp_path / "run"))
    before = {name: x.clone() for name, x in trainer.model.predictor.state_dict().items()}
    ours = trained_weights(trainer)
    assert not any(name.startswith("predictor.") for name in ours)
    trainer.model.predictor.unet.forward = None  # every feature comes from the cache
    trainer.model._extractor = None
    result = trainer.train()
    after = trainer.model.predictor.state_dict()
    assert all(torch.equal(after[name], x) for name, x in before.items())
    assert any(not torch.equal(trained_weights(trainer)[name], x) for name, x in ours.items())
    rows = metrics_of(tmp_path / "run")
    measured = ["eval_action_l1", "eval_action_mse", "grad_norm", "iteration", "loss", "lr"]
    assert sorted(key for key in rows[1] if not key.startswith("eval_change/")) == measured
    assert result.after.score == -result.after.action_l1.mean == pytest.approx(-rows[-1]["eval_action_l1"])
    assert PolicyEvalResult.from_dict(result.after.to_dict()) == result.after
    saved, means = Policy.from_pretrained(tmp_path / "run").state_dict(), trainer.optimizer.ema.shadow_params
    assert all(torch.equal(saved[name], x) for name, x in zip(trainer.optimizer.names, means, strict=True))


def test_the_predictor_can_be_trained(tmp_path):
    config = policy_config(tmp_path / "run", "policy.train_predictor=true", "policy.predictor_lr_scale=0.5")
    trainer = make_policy_trainer(config)
    assert not (tmp_path / "features").exists()
    before = trained_weights(trainer)
    trainer.train()
    after = trained_weights(trainer)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert "predictor.unet.conv_in.weight" in moved
    assert not any(word in name for name in before for word in ("text_encoder", "conv_out", "conv_norm_out"))
    unet = [name for name in before if name.startswith("predictor.")]
    assert moved.issuperset(name for name in unet if "weight" in name and "resnets" in name)
    ours, theirs = (group["lr"] for group in trainer.optimizer.adamw.param_groups)
    assert sorted((ours, theirs)) == pytest.approx([0.5 * max(ours, theirs), max(ours, theirs)])


def test_on_an_svd_folder_whose_condition_is_an_image(tmp_path):
    """Recorded latents are decoded for CLIP; the policy saves the whole folder and acts on pixels."""
    make_svd_pipeline().save_pretrained(tmp_path / "svd")
    predictor = VideoPredictor.from_pretrained(tmp_path / "svd")
    config = policy_config(tmp_path / "run", "policy.num_steps=1", "policy.feature_layers=[0]")
    trainer = make_policy_trainer(config, predictor=predictor)
    trainer.train()
    policy = Policy.from_pretrained(tmp_path / "run")
    assert policy.settings.feature_size == (3, 64, 4, 4) and policy.settings.image_size == (8, 8)
    observation = {"pixels": np.zeros((8, 8, 3), np.uint8), "state": np.zeros(3, np.float32)}
    assert np.isfinite(policy.act(observation, "push the block")).all()


@pytest.mark.parametrize("overrides", [[], ["policy.features=latents"], ["policy.train_predictor=true"]])
def test_exact_resume(tmp_path, monkeypatch, overrides):
    expected = tmp_path / "whole" / "run"
    make_policy_trainer(policy_config(expected, *overrides)).train()
    folder = tmp_path / "parts" / "run"
    trainer = make_policy_trainer(policy_config(folder, *overrides))
    iterate = trainer.iterate

    def stop_after_two(iteration, batches):
        record = iterate(iteration, batches)
        if iteration == 2:
            monkeypatch.setattr(GracefulStop, "requested", True)
        return record

    trainer.iterate = stop_after_two
    assert trainer.train().interrupted
    monkeypatch.undo()
    result = make_policy_trainer(policy_config(folder, *overrides)).train(folder)
    assert not result.interrupted and len(result.history) == 4
    assert_same_run(folder, expected)


def test_error_is_the_mean_over_valid_actions(tmp_path):
    trainer = make_policy_trainer(policy_config(tmp_path / "run"))
    policy, dataset = trainer.model, trainer.train_dataset
    batch = collate([dataset[i] for i in (0, 5)])
    ramp = torch.linspace(100, 400, HORIZON).view(1, HORIZON, 1).expand(2, HORIZON, 2)
    policy.sample_actions = lambda *args: ramp
    result = evaluate_policy(policy, batch, num_samples=2)
    low, high = policy.action_range
    errors = (2 * (batch["actions"] - ramp) / (high - low)).abs().mean(2)
    expected = [errors[0].mean().item(), errors[1, 0].item()]  # frame 5 of 7 is the last that something is done at
    assert result.per_clip["action_l1"] == pytest.approx(expected, rel=1e-5)
    assert result.action_l1.mean == pytest.approx(np.mean(expected), rel=1e-5)
    assert result.per_step["action_l1"][3] == pytest.approx(errors[0, 3].item(), rel=1e-5)


def test_it_overfits_five_episodes(tmp_path):
    """Chunks sampled at every frame it was trained on are the expert's, within 4 % of the actions' range."""
    config = policy_config(
        tmp_path / "run", "policy.num_steps=350", "policy.lr=6e-3", "policy.decay_steps=250", "policy.width=64",
        "policy.num_attention_heads=4", "policy.beta2=0.95", "policy.max_grad_norm=10.0", "policy.ema_decay=0.95",
        "policy.warmup_steps=20", "policy.num_sampling_steps=8",
    )  # fmt: skip
    trainer = make_policy_trainer(config, episodes=(0, 1, 2, 3, 4))
    frames = [trainer.train_dataset[i] for i in range(30)]
    batches = itertools.repeat(collate(frames * 2))
    for iteration in range(1, 351):
        trainer.iterate(iteration, batches)
    with trainer.optimizer.ema_weights():
        result = evaluate_policy(trainer.model, collate(frames), batch_size=30)
    assert len(trainer.train_dataset) == 30 and result.action_l1.mean < 0.08, result.action_l1


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("policy.num_executed_steps=17", "expected at most policy.action_horizon = 16"),
        ("policy.num_attention_heads=5", "expected a divisor of policy.width"),
        ("policy.feature_layers=[1, 0]", r"policy.feature_layers is \[1, 0\], expected ascending indices"),
        ("policy.feature_layers=[]", r"policy.feature_layers is \[\], expected ascending indices"),
        ("policy.feature_layers=[0, 2]", r"policy.feature_layers is \[0, 2\], expected indices below 2"),
        ("policy.features=pixels", "expected one of predictive, latents"),
        ("policy.temporal_ensemble=-1.0", "policy.temporal_ensemble is -1.0, expected a number at least 0"),
    ],
)
def test_wrong_settings(override, message):
    with pytest.raises(ConfigError, match=message):
        load_config("pusht", override)


def test_the_command(tmp_path, capsys):
    """From recorded video to a policy that acts, with report and cache, and the control beside it."""
    tiny_run.write_dataset(tmp_path / "data")
    settings = tiny_run.settings(
        tmp_path, "policy.num_steps=2", "policy.width=16", "policy.num_attention_heads=2", "policy.batch_size=4",
    )  # fmt: skip
    settings.save(tmp_path / "tiny.yaml")
    assert cli.main(["policy", "train", "--config", str(tmp_path / "tiny.yaml")]) == 0
    out = capsys.readouterr().out
    assert "action_l1" in out and "base model" in out
    page = (tmp_path / "runs" / "tiny" / "report.html").read_text()
    assert "Held-out action error" in page and "Policy training" in page
    assert len(list((tmp_path / "data" / "features").glob("*/*.safetensors"))) == 6
    policy = Policy.from_pretrained(tmp_path / "runs" / "tiny")
    size = tiny_run.SIZE
    observation = {"pixels": np.zeros((size, size, 3), np.uint8), "state": np.zeros(2, np.float32)}
    assert policy.act(observation, "cross").shape == (2,)
    source = str(find_checkpoint(settings.run.dir) / "predictor")
    control = vampo_core.train_policy(
        settings, "policy.features=latents", f"policy.predictor={source}", f"run.dir={tmp_path}/runs/control"
    )
    assert Policy.from_pretrained(control.checkpoint).settings.feature_size[0] == 1


def test_runs_of_another_kind_are_refused_before_anything_is_deleted(tmp_path, capsys):
    tiny_run.write_dataset(tmp_path / "data")
    settings = tiny_run.settings(tmp_path, "policy.num_steps=1", "policy.width=16", "policy.num_attention_heads=2")
    settings.save(tmp_path / "tiny.yaml")
    predictor = tmp_path / "runs" / "predictor"
    vampo_core.pretrain(settings, f"run.dir={predictor}")
    run = settings.run.dir
    source = vampo_core.train_policy(settings, f"policy.predictor={predictor}").checkpoint / "predictor"
    for call in (vampo_core.train, vampo_core.pretrain):
        with pytest.raises(ConfigError, match="holds the run of a policy: choose another folder"):
            call(settings, "run.overwrite=true")
    with pytest.raises(ConfigError, match="holds the run of a predictor: choose another folder"):
        vampo_core.train_policy(settings, f"run.dir={predictor}", "run.overwrite=true")
    named = f"policy.predictor={source}"
    with pytest.raises(ConfigError, match=r"run.overwrite is True with policy.predictor = .* in run.dir"):
        vampo_core.train_policy(settings, named, "run.overwrite=true")
    with pytest.raises(ConfigError, match=r"policy.width is 32, expected 16 .* start a new one in another run.dir"):
        vampo_core.train_policy(settings, f"policy.predictor={predictor}", "policy.width=32", resume_from=run)
    config = ["--config", str(tmp_path / "tiny.yaml"), "data.env=pusht"]
    capsys.readouterr()
    assert cli.main(["evaluate", *config, "--checkpoint", str(predictor), "--against", run]) != 0
    assert "holds a policy, expected a predictor, such as" in capsys.readouterr().err
    assert cli.main(["policy", "eval", *config, "--checkpoint", run, "--against", str(predictor)]) != 0
    assert "has no policy.json, expected a policy" in capsys.readouterr().err
    assert source.is_dir() and find_checkpoint(predictor).is_dir()


@pytest.mark.parametrize("train_predictor", ["false", "true"])
def test_a_resumed_run_keeps_its_predictor_whatever_lies_in_its_place_by_then(tmp_path, monkeypatch, train_predictor):
    tiny_run.write_dataset(tmp_path / "data")
    settings = tiny_run.settings(tmp_path, *TINY_POLICY, f"policy.train_predictor={train_predictor}")
    base = VideoPredictor.from_pretrained(vampo_core.pretrain(settings, f"run.dir={tmp_path}/runs/base").checkpoint)
    base.save_pretrained(tmp_path / "named")
    named = f"policy.predictor={tmp_path / 'named'}"
    first = vampo_core.train_policy(settings, named).checkpoint
    before = Policy.from_pretrained(first).predictor
    with torch.no_grad():
        base.unet.conv_in.weight.mul_(2)
        base.unet.conv_out.weight.mul_(2)  # a part that no policy trains
    base.save_pretrained(tmp_path / "named")
    written = find_checkpoint(settings.run.dir) / "policy.json"
    text = written.read_text()
    written.write_text(text.replace('"architecture": 2', '"architecture": 1'))
    with (
        monkeypatch.context() as patch,
        pytest.raises(ValueError, match=r"policy.json says architecture 1, expected 2"),
    ):
        patch.setattr(FeatureCache, "fill", lambda *_: pytest.fail("work was begun"))
        vampo_core.train_policy(settings, named, "policy.num_steps=2", resume_from=settings.run.dir)
    written.write_text(text)
    second = vampo_core.train_policy(settings, named, "policy.num_steps=2", resume_from=settings.run.dir).checkpoint
    assert second != first
    after = Policy.from_pretrained(second).predictor
    assert torch.equal(after.unet.conv_out.weight, before.unet.conv_out.weight)
    assert (after.fingerprint() == before.fingerprint()) == (train_predictor == "false")
