"""Training of a policy: its data, cache, updates, resume, and the command that does it all."""

import itertools

import numpy as np
import pytest
import tiny_run
import torch
from policy_runs import HORIZON, ActingEpisode, make_policy_trainer, policy_config
from safetensors import safe_open
from safetensors.torch import save_file
from svd_folder import make_svd_pipeline
from training_runs import MadeUpEpisode, assert_same_run, make_model, metrics_of, trained_weights

import vampo_core
from vampo_core import Policy
from vampo_core.cli import parser as cli
from vampo_core.config import ConfigError, load_config
from vampo_core.data.clips import ClipDataset, Clips, collate
from vampo_core.data.episode import EpisodeError
from vampo_core.data.formats.recorded import episode_folder
from vampo_core.models import VideoPredictor
from vampo_core.policy.data import ActionDataset
from vampo_core.policy.evaluation import PolicyEvalResult, evaluate_policy
from vampo_core.policy.train import action_datasets
from vampo_core.policy.vpp.feature_cache import FeatureCache
from vampo_core.training.checkpoint import find_checkpoint
from vampo_core.training.signals import GracefulStop


def test_items_are_chunks_padded_with_the_last_action():
    episodes = [ActingEpisode(0, 5), ActingEpisode(1, 9)]
    dataset = ActionDataset(episodes, horizon=HORIZON)
    assert len(dataset) == 4 + 8
    item, actions = dataset[2], episodes[0].actions
    assert torch.equal(item["actions"], actions[[2, 3, 3, 3, 3, 3]])
    assert item["valid"].tolist() == [True, True, False, False, False, False]
    assert torch.equal(item["state"], episodes[0].states[2]) and item["clip_id"] == "made-up/000@2"
    assert torch.equal(item["latents"], episodes[0].latents([2])[0])
    assert dataset[4]["clip_id"] == "made-up/001@0" and dataset[4]["valid"].all()
    ranges = dataset.ranges()
    rows = torch.cat([episode.actions[:-1] for episode in episodes])
    assert torch.equal(ranges.action, torch.stack([rows.min(0).values, rows.max(0).values]))


def test_chunks_end_with_the_first_push_as_no_frame_foretells_what_follows():
    class Pushed(ActingEpisode):
        @property
        def is_pushed(self):
            return torch.tensor([False, False, True, True, False, False, False])

    episode = Pushed(0)
    dataset = ActionDataset([episode], horizon=HORIZON)
    last = [2, 2, 2, 3, 5, 5]  # of the chunk at each frame; 5 is the episode's last action
    assert len(dataset) == len(last) and episode.length == 7
    for t, end in enumerate(last):
        places = torch.arange(t, t + HORIZON)
        assert dataset[t]["valid"].tolist() == (places <= end).tolist()
        assert torch.equal(dataset[t]["actions"], episode.actions[places.clamp(max=end)])


def test_cached_features_are_the_predictors(tmp_path):
    model, episodes = make_model(policy_config(tmp_path)).eval(), [ActingEpisode(0), ActingEpisode(1)]
    cache = FeatureCache(tmp_path, model, (0, 1))
    assert cache.fill(episodes) == 2 and cache.fill(episodes) == 0
    features = cache.read(episodes[1], 3)
    expected = model.features(instructions=["push the block"], first_latents=episodes[1].latents([3]))[0]
    torch.testing.assert_close(features.float(), expected, rtol=2e-3, atol=2e-3)
    path = cache.folder / "001.safetensors"
    path.write_bytes(path.read_bytes()[:-8])  # cut short
    assert cache.fill(episodes) == 1
    assert FeatureCache(tmp_path, model, (1,)).folder != cache.folder
    with torch.no_grad():
        model.unet.conv_in.bias[0] += 1
    assert FeatureCache(tmp_path, model, (0, 1)).folder != cache.folder
    assert cache.fill([ActingEpisode(0, 8)]) == 1  # another episode under the same name


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
    assert [sorted(row) for row in rows[1:2]] == [
        ["eval_action_l1", "eval_action_mse", "grad_norm", "iteration", "loss", "lr"]
    ]
    assert result.after.score == -result.after.action_l1.mean == pytest.approx(-rows[-1]["eval_action_l1"])
    assert PolicyEvalResult.from_dict(result.after.to_dict()) == result.after
    saved, means = Policy.from_pretrained(tmp_path / "run").state_dict(), trainer.optimizer.ema.shadow_params
    assert all(torch.equal(saved[name], x) for name, x in zip(trainer.optimizer.names, means, strict=True))


def test_cached_features_give_the_loss_of_fresh_ones(tmp_path):
    trainer = make_policy_trainer(policy_config(tmp_path / "run"))
    batch = next(trainer.batches(0))
    assert "features" in batch
    cached = trainer.loss(1, batch).item()
    fresh = trainer.loss(1, {key: value for key, value in batch.items() if key != "features"}).item()
    assert cached == pytest.approx(fresh, rel=1e-3) and trainer.loss(2, batch).item() != cached


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


TINY_POLICY = (
    *("policy.num_steps=1", "policy.width=16", "policy.num_attention_heads=2", "policy.batch_size=4"),
    "policy.decay_steps=0",
)


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


def test_an_episode_with_damaged_latents_is_left_out(tmp_path):
    class Damaged(ActingEpisode):
        def latents(self, indices):
            raise EpisodeError(f"episode {self.episode_id!r} of {self.dataset!r}: cut short")

    model, config = make_model(policy_config(tmp_path)).eval(), policy_config(tmp_path)
    episodes = [ActingEpisode(0), Damaged(1), ActingEpisode(2)]
    clips = Clips((ClipDataset(episodes, num_frames=3),), ClipDataset([ActingEpisode(3)], num_frames=3))
    with pytest.warns(RuntimeWarning, match=r"1 of 3 episodes of .* cannot be read: 001 \(cut short\); skipped"):
        train, _ = action_datasets(config, model, clips, tmp_path)
    assert {item["episode_id"] for item in train} == {"000", "002"}
    with pytest.raises(EpisodeError, match="1 of 3 episodes"):
        action_datasets(load_config(config, "data.strict=true"), model, clips, tmp_path)


def test_an_episode_with_a_nan_among_its_actions_is_left_out(tmp_path):
    root = tmp_path / "data"
    tiny_run.write_dataset(root)
    file = episode_folder(root, 1) / "episode.safetensors"
    with safe_open(file, "pt") as opened:
        arrays, header = {name: opened.get_tensor(name) for name in opened.keys()}, opened.metadata()  # noqa: SIM118
    arrays["actions"][4, 1] = float("nan")
    save_file(arrays, file, metadata=header)
    with pytest.warns(RuntimeWarning, match=r"000001 \(actions at frame 4 are \[0.0, nan\], expected finite .*\)"):
        vampo_core.train_policy(tiny_run.settings(tmp_path, *TINY_POLICY))


def test_episodes_without_actions():
    with pytest.raises(EpisodeError, match=r"000 \(its length is 7 and its actions have width 0, expected at least"):
        ActionDataset([MadeUpEpisode(0)], horizon=4)


def test_odd_episodes_are_named_and_left_out():
    """One frame, no actions, or actions of another width than most: none of them refuses a whole training."""
    wide = WideEpisode(3)
    odd = [ActingEpisode(1, length=1), MadeUpEpisode(2), wide]
    usual = [ActingEpisode(number) for number in (0, 4)]
    with pytest.warns(RuntimeWarning) as caught:
        dataset = ActionDataset([*odd, *usual], horizon=4)
    message = str(caught[0].message)
    assert message.startswith("3 of 5 episodes of 'made-up' cannot be read: 001 (its length is 1 ")
    assert "002 (its length is 7 and its actions have width 0" in message
    assert "003 (its actions and states have widths (3, 3), expected (2, 3), as in most episodes)" in message
    assert [episode.episode_id for episode in dataset.episodes] == ["000", "004"]
    assert len(dataset) == 12 and dataset.action_dim == 2
    with pytest.raises(EpisodeError, match="003"):
        ActionDataset([wide, *usual], horizon=4, strict=True)


class WideEpisode(ActingEpisode):
    """One number more in each action."""

    @property
    def actions(self):
        return torch.cat([super().actions, super().states[:, :1]], dim=1)
