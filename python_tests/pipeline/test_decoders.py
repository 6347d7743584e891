"""Decoders that a configuration asks for: trained once and found again, for rewards, judges and policies."""

import json
import warnings

import numpy as np
import pytest
import tiny_run
import torch
from safetensors.torch import load_file

import vampo_core
from vampo_core import Policy, api
from vampo_core.config import ConfigError, load_config
from vampo_core.evaluation.judge import Judge
from vampo_core.models import VideoPredictor
from vampo_core.pipeline import base
from vampo_core.pipeline.policy import imagined_policy
from vampo_core.policy.inverse_dynamics.decoder import ActionDecoder
from vampo_core.policy.inverse_dynamics.policy import InverseDynamicsPolicy
from vampo_core.policy.train import labelled
from vampo_core.training.checkpoint import find_checkpoint, step_of

SHORT = ("grpo.num_iterations=1", "run.eval_every=1", "pretrain.num_steps=1", "policy.num_steps=2")


def settings(folder, *overrides):
    return tiny_run.settings(folder, *SHORT, *overrides)


@pytest.fixture(autouse=True)
def quiet():
    """Decoders of two updates know nothing, and say so."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="the (judge|action decoder) of dataset")
        yield


@pytest.fixture(scope="module")
def acted(tmp_path_factory):
    """Configuration and result of a run with an action reward, whose folder tests only add to."""
    folder = tmp_path_factory.mktemp("acted")
    tiny_run.write_dataset(folder / "data", action_dim=2)
    config = settings(folder, "reward.action_weight=0.5")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="the (judge|action decoder) of dataset")
        return config, vampo_core.train(config)


def made(folder, name):
    return sorted((folder / "runs").glob(f"{name}-*"))


def test_reward_and_judge_share_nothing(tmp_path):
    """Neither folder, seed, architecture nor weights; and the judge is the same for every seed of the run."""
    folder = tmp_path
    tiny_run.write_dataset(folder / "data", action_dim=2)
    for seed in (0, 1):
        run = settings(folder, "reward.action_weight=0.5", f"run.seed={seed}", f"run.dir={folder}/runs/seed{seed}")
        vampo_core.train(run)
    decoders, (judge,) = made(folder, "decoder"), made(folder, "judge")
    assert len(decoders) == 2
    seeds = [load_config(run).run.seed for run in (*decoders, judge)]
    assert sorted(seeds[:2]) == [0, 1] and seeds[2] not in (0, 1)
    loaded = [ActionDecoder.from_pretrained(run) for run in (*decoders, judge)]
    assert [decoder.settings.network for decoder in loaded] == ["difference", "difference", "judge"]
    weights = [{name: x for name, x in d.state_dict().items() if name != "action_range"} for d in loaded]
    assert not any(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    for reward in weights[:2]:
        assert not any(x.shape == y.shape and torch.equal(x, y) for x in reward.values() for y in weights[2].values())


def test_the_run_measures_both_and_trains_on_one(acted):
    config, result = acted
    (row,) = result.history
    assert row["reward_mean"] == pytest.approx(row["latent"] + 0.5 * row["action_l1"], rel=1e-4)
    for name in ("action_error", "decoder_error", "action_ratio", "motion_ratio"):
        assert row[f"eval_{name}"] == pytest.approx(getattr(result.after, name).mean)
    assert result.after.action_error.mean != pytest.approx(result.after.decoder_error.mean)
    measured = vampo_core.evaluate(config.run.dir, config)
    assert measured.action_error.mean == pytest.approx(result.after.action_error.mean, rel=1e-3)
    assert measured.action_error_still == pytest.approx(result.after.action_error_still, rel=1e-5)
    assert measured.decoder_error is None
    unjudged = vampo_core.evaluate(config.run.dir, config, "evaluation.action_error=false")
    assert unjudged.action_error is None and unjudged.motion_ratio is not None


@pytest.fixture
def parts(acted):
    """Codec and clips of the configuration, to ask for decoders as ``train`` does."""
    config, result = acted
    codec = VideoPredictor.from_pretrained(result.checkpoint).codec
    return codec, lambda *overrides: api.prepare_clips(load_config(config, *overrides), codec)


def ask(acted, parts, *overrides):
    config, (codec, clips) = load_config(acted[0], *overrides), parts
    return api.reward_decoders(config, codec, clips(*overrides))


def test_a_given_decoder_is_the_one_that_is_used(acted, parts, tmp_path):
    (found,) = ask(acted, parts).values()
    changed = ActionDecoder(found.settings, found.action_range)
    changed.save_pretrained(tmp_path / "mine")
    (used,) = ask(acted, parts, f"reward.action_decoder={tmp_path}/mine", f"run.dir={tmp_path}/runs/x").values()
    assert used.fingerprint() == changed.fingerprint() != found.fingerprint()
    assert not made(tmp_path, "decoder")
    assert not any(p.requires_grad for p in used.parameters()) and not used.training
    (again,) = ask(acted, parts, f"reward.action_decoder=[{tmp_path}/mine]").values()
    assert again.fingerprint() == changed.fingerprint()


def test_decoders_that_do_not_fit_are_refused(acted, parts, tmp_path):
    (found,) = ask(acted, parts).values()
    kept = found.settings
    for changes, message in (
        ({"codec": "feed"}, r"reads latents of codec feed, expected \w+, the predictor's codec"),
        ({"num_actions": kept.num_actions + 1}, r"reads \d+ actions between two frames, expected data.stride = \d+"),
        ({"action_dim": 7}, "reads actions of 7 numbers, expected the data's 2"),
    ):
        values = type(kept).from_dict(kept.to_dict() | changes)
        ActionDecoder(values, torch.zeros(2, values.action_dim)).save_pretrained(tmp_path / "other")
        with pytest.raises(ConfigError, match=rf"reward.action_decoder = '{tmp_path}/other' {message}"):
            ask(acted, parts, f"reward.action_decoder={tmp_path}/other")
    with pytest.raises(
        ConfigError, match=r"reward.action_decoder is \['a', 'b'\], expected one folder for each of dat"
    ):
        ask(acted, parts, "reward.action_decoder=[a,b]")
    with pytest.raises(ValueError, match="nowhere"):
        ask(acted, parts, f"reward.action_decoder={tmp_path}/nowhere")
    with pytest.raises(ValueError, match=r"neither decoder\.json nor policy\.json, expected an action decoder"):
        ask(acted, parts, f"reward.action_decoder={acted[0].run.dir}")
    with pytest.raises(
        ConfigError, match=r"clips of whole episodes \(data.sampling\), expected actions between frames"
    ):
        ask(acted, parts, "data.sampling=episode")


def test_data_without_actions_has_neither_reward_nor_judge(tmp_path):
    tiny_run.write_latent_dataset(tmp_path / "data")
    config = settings(
        tmp_path, "data.format=vpp", "model.latent_channels=4", "model.patch_size=4", "evaluation.best_by=action_error"
    )
    result = vampo_core.pretrain(config, f"run.dir={tmp_path}/runs/base")
    assert result.after.action_error is None and not made(tmp_path, "judge")
    with pytest.raises(ConfigError, match=r"dataset 'data' has no actions, expected actions between frames"):
        vampo_core.train(config, f"model.pretrained={tmp_path}/runs/base", "reward.action_weight=1")


def test_two_robots_with_actions_of_different_widths(tmp_path):
    """A batch has clips of both; each robot has its own reward decoder and judge."""
    for name, action_dim in (("one", 2), ("two", 3)):
        tiny_run.write_dataset(tmp_path / name, action_dim=action_dim)
    roots = f"data.root=[{tmp_path}/one,{tmp_path}/two]"
    config = settings(tmp_path, roots, "grpo.batch_size=4", "reward.action_weight=0.5")
    (row,) = vampo_core.train(config).history
    assert row["action_l1"] < 0 and row["eval_action_error"] > 0
    for name in ("decoder", "judge"):
        widths = [ActionDecoder.from_pretrained(folder).settings.action_dim for folder in made(tmp_path, name)]
        assert sorted(widths) == [2, 3]
    given = [str(folder) for folder in made(tmp_path, "decoder")]
    given.sort(key=lambda folder: ActionDecoder.from_pretrained(folder).settings.action_dim)
    listed = f"reward.action_decoder=[{','.join(given)}]"
    vampo_core.train(config, listed, f"run.dir={tmp_path}/runs/given")
    listed = f"reward.action_decoder=[{','.join(given[::-1])}]"
    with pytest.raises(ConfigError, match="reads actions of 3 numbers, expected the data's 2"):
        vampo_core.train(config, listed, f"run.dir={tmp_path}/runs/wrong")


def test_a_policy_on_its_imagined_video(acted, tmp_path):
    """Trained by the one call, with a report; its folder is found by its kind, and is a decoder too."""
    config, trained = acted
    folder = tmp_path / "runs" / "policy"
    result = vampo_core.train_policy(
        config, "policy.kind=inverse_dynamics", f"policy.predictor={trained.checkpoint}", f"run.dir={folder}"
    )
    assert np.isfinite(result.after.action_l1.mean) and len(result.history) == 2
    assert "Policy training" in vampo_core.write_report(folder).read_text()
    policy = Policy.from_pretrained(folder)
    assert isinstance(policy, InverseDynamicsPolicy)
    assert policy.predictor.fingerprint() == VideoPredictor.from_pretrained(trained.checkpoint).fingerprint()
    size = tiny_run.SIZE
    observation = {"pixels": np.zeros((size, size, 3), np.uint8), "state": np.zeros(2, np.float32)}
    action = policy.act(observation, "cross")
    low, high = policy.action_range.numpy()
    assert action.shape == (2,) and (action >= low - 1e-4).all() and (action <= high + 1e-4).all()
    vampo_core.train(config, f"reward.action_decoder={folder}", f"run.dir={tmp_path}/runs/more")
    assert not made(tmp_path, "decoder")


def test_a_policy_resumes(acted, tmp_path, monkeypatch):
    config = load_config(
        acted[0], "policy.kind=inverse_dynamics", f"policy.predictor={acted[0].run.dir}", "policy.num_steps=4",
        "policy.save_every=1", "policy.decay_steps=0",
    )  # fmt: skip
    whole = vampo_core.train_policy(config, f"run.dir={tmp_path}/runs/whole")
    original = ActionDecoder.training_loss

    def dies(self, batch, *, iteration, **given):
        if iteration == 3:
            raise RuntimeError("out of power")
        return original(self, batch, iteration=iteration, **given)

    monkeypatch.setattr(ActionDecoder, "training_loss", dies)
    with pytest.raises(RuntimeError, match="out of power"):
        vampo_core.train_policy(config, f"run.dir={tmp_path}/runs/parts")
    monkeypatch.undo()
    parts = vampo_core.train_policy(config, f"run.dir={tmp_path}/runs/parts", resume_from=tmp_path / "runs" / "parts")
    weights = [load_file(run.checkpoint / "policy.safetensors") for run in (whole, parts)]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_policy_made_of_a_predictor_and_the_rewards_decoder(acted, parts, tmp_path):
    """Nothing is trained for it; another predictor has the same decoder."""
    config, trained = acted
    before = [path.name for path in made(tmp_path.parent, "decoder")]
    folder = imagined_policy(config, trained.checkpoint, tmp_path / "policy", action_scale=1.25)
    policy = Policy.from_pretrained(folder)
    (decoder,) = ask(acted, parts).values()
    assert policy.decoder.fingerprint() == decoder.fingerprint() and policy.settings.action_scale == 1.25
    assert policy.predictor.fingerprint() == VideoPredictor.from_pretrained(trained.checkpoint).fingerprint()
    assert [path.name for path in made(tmp_path.parent, "decoder")] == before
    states = policy.state_range
    assert states.shape == (2, 2) and (states[0] <= states[1]).all()


class Counted:
    """An episode with an instruction and a number."""

    def __init__(self, number, instruction):
        self.number, self.instruction, self.length = number, instruction, 5


def test_labelled_episodes_are_spread_over_the_instructions():
    episodes = [Counted(n, text) for n, text in enumerate("aaaaaabbbc")]
    assert [e.number for e in labelled(episodes, 5)] == [0, 6, 9, 1, 7]
    assert sorted(e.number for e in labelled(episodes, 8)) == [0, 1, 2, 3, 6, 7, 8, 9]
    assert labelled(episodes, None) == episodes
    assert sorted(e.number for e in labelled(episodes, 99)) == list(range(10))


@pytest.mark.parametrize("kind", ["vpp", "inverse_dynamics"])
def test_a_policy_sees_few_labels_and_its_predictor_all_videos(tmp_path, monkeypatch, kind):
    tiny_run.write_dataset(tmp_path / "data", 9, action_dim=2, instructions=("left", "right", "stop"))
    seen = {}
    original = api.new_policy
    monkeypatch.setattr(api, "new_policy", lambda c, p, data: seen.update(data=data) or original(c, p, data))
    config = settings(
        tmp_path, f"policy.kind={kind}", "policy.num_episodes=3", "policy.width=16", "policy.num_attention_heads=2",
        "policy.batch_size=4",
    )  # fmt: skip
    prepare = base.prepare_clips
    monkeypatch.setattr(base, "prepare_clips", lambda *given: seen.update(clips=prepare(*given)) or seen["clips"])
    vampo_core.train_policy(config)
    labelled_episodes = seen["data"].episodes
    assert sorted(e.instruction for e in labelled_episodes) == ["left", "right", "stop"]
    (videos,) = seen["clips"].train
    names = [{e.episode_id for e in episodes} for episodes in (labelled_episodes, videos.episodes)]
    assert len(names[1]) == 6 and names[0] < names[1]


def test_few_labels_are_another_reward_and_the_same_judge(acted, tmp_path):
    tiny_run.write_dataset(tmp_path / "data", action_dim=2)
    for number in (2, 3):
        config = settings(
            tmp_path, "reward.action_weight=0.5", f"policy.num_episodes={number}", f"run.dir={tmp_path}/runs/{number}"
        )
        vampo_core.train(config, f"model.pretrained={acted[0].run.dir}", "model.lora=0")
    assert len(made(tmp_path, "decoder")) == 2 and len(made(tmp_path, "judge")) == 1
    trained = [json.loads((find_checkpoint(x) / "decoder.json").read_text()) for x in made(tmp_path, "decoder")]
    assert trained[0] == trained[1]


def test_the_best_checkpoint_is_chosen_by_the_judge(acted, tmp_path, monkeypatch):
    """What `evaluation.best_by` names decides, whatever the reward says."""
    config = load_config(
        acted[0], f"run.dir={tmp_path}/runs/best", "grpo.num_iterations=3", "evaluation.best_by=action_error",
        f"model.pretrained={acted[0].run.dir}",
    )  # fmt: skip
    errors = iter([0.9, 0.5, 0.2, 0.7])  # before the first iteration and after each
    original = Judge.__call__

    def says(self, videos, batch):
        measured = original(self, videos, batch)
        return measured | {"action_error": torch.full_like(measured["action_error"], next(errors))}

    monkeypatch.setattr(Judge, "__call__", says)
    result = vampo_core.train(config)
    assert step_of(result.best_checkpoint) == 2
