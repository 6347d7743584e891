"""The whole chain on a tiny simulator, found again stage by stage."""

from html import unescape

import pytest
import simulators
import torch
from tiny_chain import TINY, kill
from tiny_run import settings

from vampo_core import api
from vampo_core.cli.parser import main
from vampo_core.config import ConfigError, load_config
from vampo_core.envs import SimulatorError
from vampo_core.grpo.trainer import VampoTrainer
from vampo_core.models.predictor import VideoPredictor
from vampo_core.pipeline import chain, closed_loop
from vampo_core.policy.base import Policy
from vampo_core.policy.train import PolicyTrainer
from vampo_core.policy.vpp.settings import VPPSettings
from vampo_core.report.headline import headline


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    config = settings(tmp_path_factory.mktemp("chain"), *TINY)
    return config, api.run_chain(config)


def test_every_stage_has_its_result(finished):
    config, result = finished
    policies = {"policy-base", "policy-vampo", "policy-latents"}
    assert set(result.folders) == {"data", "base", "vampo", *policies, "closed_loop"}
    assert len(set(result.folders.values())) == 7 and all(folder.is_dir() for folder in result.folders.values())
    assert list(result.closed_loop) == ["base", "vampo", "latents", "expert"]
    seeds = {tuple(episode.seed for episode in loop.episodes) for loop in result.closed_loop.values()}
    assert len(seeds) == 1 and len(seeds.pop()) == 2
    assert result.closed_loop["expert"].success.mean == 1
    saw = {name: load_config(result.folders[f"policy-{name}"]).policy for name in config.chain.controllers}
    assert saw["vampo"].predictor != saw["base"].predictor == saw["latents"].predictor
    assert saw["latents"].features == "latents" != saw["vampo"].features


def test_what_is_done_is_not_done_again(finished, monkeypatch):
    config, before = finished
    for name in ("train", "train_policy"):
        monkeypatch.setattr(api, name, lambda *_, **__: pytest.fail("a stage was run again"))
    again = api.run_chain(config)
    assert again.folders == before.folders
    assert again.closed_loop["vampo"].episodes == before.closed_loop["vampo"].episodes


def test_a_policy_acts_with_one_thread_by_default(finished, monkeypatch, set_num_threads):
    config, result = finished
    monkeypatch.setattr(closed_loop, "evaluate_closed_loop", lambda *_, **__: torch.get_num_threads())
    set_num_threads(2)
    assert api.evaluate_policy(result.folders["policy-base"], config) == 1
    assert torch.get_num_threads() == 2
    assert api.evaluate_policy(result.folders["policy-base"], config, "run.num_threads=2") == 2


def test_how_a_policy_acts_can_be_changed_after_its_training(finished, monkeypatch):
    config, result = finished
    monkeypatch.setattr(closed_loop, "evaluate_closed_loop", lambda controller, *_, **options: (controller, options))
    calls = {}
    for change in ("num_executed_steps=null", "num_executed_steps=3", "num_executed_steps=1", "temporal_ensemble=0.5"):
        calls[change] = api.evaluate_policy(result.folders["policy-base"], config, f"closed_loop.{change}")
    assert [controller.num_executed_steps for controller, _ in calls.values()] == [2, 3, 1, 2]
    assert [options["begin_every"] for _, options in calls.values()] == [2, 3, 1, 2]
    assert [controller.temporal_ensemble for controller, _ in calls.values()] == [None, None, None, 0.5]
    names = [options["controller_id"] for _, options in calls.values()]
    assert names[0] == Policy.from_pretrained(result.folders["policy-base"]).fingerprint()
    assert len(set(names)) == 4, "episodes acted in another way are kept apart"
    same = api.evaluate_policy(result.folders["policy-base"], config, "closed_loop.num_executed_steps=2")
    assert same[1]["controller_id"] == names[0], "the policy's own setting, given once more"
    with pytest.raises(ValueError, match="num_executed_steps is 5, expected 1 to 4, the policy's action horizon"):
        api.evaluate_policy(result.folders["policy-base"], config, "closed_loop.num_executed_steps=5")


def test_a_change_makes_its_stage_and_what_follows_again(finished, monkeypatch):
    config, before = finished
    made = []

    def called(name):
        real = getattr(api, name)
        return lambda config, **options: made.append(config.run.dir) or real(config, **options)

    for name in ("train", "train_policy"):
        monkeypatch.setattr(api, name, called(name))
    after = api.run_chain(load_config(config, "policy.lr=1e-5"))
    assert len(made) == 3 and after.folders["vampo"] == before.folders["vampo"]
    made.clear()
    after = api.run_chain(load_config(config, "grpo.clip_range=1e-2"))
    assert made == [str(after.folders["vampo"])], "no ratio has been clipped: the policy would see the same weights"
    made.clear()
    after = api.run_chain(load_config(config, "optim.lr=1e-3"))
    assert made == [str(after.folders["vampo"]), str(after.folders["policy-vampo"])]


def test_an_unfinished_stage_goes_on_although_other_settings_have_changed(finished, monkeypatch):
    config, _ = finished
    unfinished = load_config(config, "policy.lr=1e-4", "policy.num_steps=3", "policy.save_every=1")
    steps = kill(monkeypatch, PolicyTrainer, 3, lambda: api.run_chain(unfinished))
    after = api.run_chain(load_config(unfinished, "optim.lr=2e-3", "pretrain.eval_every=7", "data.num_workers=1"))
    assert after.best_iteration == 1
    assert steps == [3, 1, 2, 3, 1, 2, 3], "the base's policy goes on, the others begin"
    own = load_config(after.folders["policy-base"])
    assert own.optim.lr == config.optim.lr and own.data.num_workers == 1


def test_an_unfinished_stage_goes_on_where_its_predictor_has_been_moved(finished, tmp_path, monkeypatch):
    config, before = finished
    given = VideoPredictor.from_pretrained(before.folders["base"])
    given.save_pretrained(tmp_path / "here")
    chained = load_config(config, f"run.dir={tmp_path / 'run'}", "grpo.num_iterations=2", "run.save_every=1")

    def run_from(name):
        return api.run_stages(chained, f"model.pretrained={tmp_path / name}", until="vampo")

    steps = kill(monkeypatch, VampoTrainer, 2, lambda: run_from("here"))
    (tmp_path / "here").rename(tmp_path / "there")
    folders = run_from("there")
    assert steps == [2] and load_config(folders["vampo"]).model.pretrained == str(tmp_path / "there")


def test_a_predictor_that_is_trained_with_its_policy(finished):
    config, _ = finished
    result = api.run_chain(load_config(config, "policy.train_predictor=true"))
    trained = {
        name: load_config(result.folders[f"policy-{name}"]).policy.train_predictor for name in config.chain.controllers
    }
    assert trained == {"base": True, "vampo": True, "latents": False}


def test_features_are_of_one_noise_level(finished, tmp_path):
    config, before = finished
    given = VideoPredictor.from_pretrained(before.folders["base"])
    given.set_sampler(given.sampler(sigma_max=20.0, num_inference_steps=7))
    given.save_pretrained(tmp_path / "given")
    config = load_config(config, f"model.pretrained={tmp_path / 'given'}", f"run.dir={tmp_path / 'run'}")
    result = api.run_chain(config)
    policies = [Policy.from_pretrained(result.folders[f"policy-{name}"]) for name in config.chain.controllers]
    samplers = [policy.predictor.sampler() for policy in policies]
    assert [sampler.sigmas[0] for sampler in samplers] == [config.sampler.sigma_max] * 3 == [80] * 3
    assert [sampler.num_inference_steps for sampler in samplers] == [3] * 3


def test_only_the_first_stages(finished, capsys):
    config, before = finished
    folders = api.run_stages(config, until="features")
    assert list(folders) == ["data", "base", "vampo", "features-base", "features-vampo"]
    assert folders["vampo"] == before.folders["vampo"]
    assert all(len(list(folders[f"features-{name}"].glob("*.safetensors"))) == 4 for name in ("base", "vampo"))
    assert folders["features-base"] != folders["features-vampo"]
    config.save(before.folders["vampo"].parent / "part.yaml")
    assert main(["chain", "--config", str(before.folders["vampo"].parent / "part.yaml"), "--until", "vampo"]) == 0
    assert f"vampo: {before.folders['vampo']} (found)" in capsys.readouterr().out
    assert list(api.run_stages(config, until="policies")) == list(before.folders)[:-1]
    with pytest.raises(ConfigError, match="until is 'feature', expected one of data, base, vampo, features"):
        api.run_stages(config, until="feature")
    with pytest.raises(ConfigError, match="train_predictor is true, expected false: features change"):
        api.run_stages(load_config(config, "policy.train_predictor=true", "run.seed=5"), until="features")


@pytest.fixture
def stages(finished, monkeypatch):
    """What the stages of chains depend on, four a chain; none is run, each is taken for that of the finished one."""
    _, before = finished
    noted = []

    def note(name, kind, train, config, decided_by):
        noted.append(repr(decided_by))
        return before.folders[name]

    monkeypatch.setattr(chain, "_stage", note)
    monkeypatch.setattr(api, "evaluate_policy", lambda *_, **__: before.closed_loop["base"])
    return noted


def test_another_predictor_in_the_same_place_makes_all_stages_again(finished, tmp_path, stages):
    config, before = finished
    checkpoint = before.folders["vampo"] / "checkpoints" / "latest"
    for folder, gain in (("one", 3), ("moved", 3), ("moved", 2)):
        predictor = VideoPredictor.from_pretrained(checkpoint)
        with torch.no_grad():
            predictor.unet.conv_in.weight.mul_(gain)
        predictor.save_pretrained(tmp_path / folder)
        api.run_chain(load_config(config, f"model.pretrained={tmp_path / folder}"))
    one, moved, changed = stages[:4], stages[4:8], stages[8:]
    assert one == moved, "where a predictor lies does not matter to a stage"
    # policies on VAMPO's features see the checkpoint of the finished run in each of them
    assert [a != b for a, b in zip(moved, changed, strict=True)] == [True, True, False, True]


def test_another_architecture_makes_policies_again(finished, stages, monkeypatch):
    config, _ = finished
    api.run_chain(config)
    monkeypatch.setattr(VPPSettings, "architecture", 99)
    api.run_chain(config)
    assert [a != b for a, b in zip(stages[:4], stages[4:], strict=True)] == [False, True, True, True]


def test_how_often_checkpoints_are_compared_makes_the_best_one(finished, stages):
    config, _ = finished
    api.run_chain(config)
    api.run_chain(load_config(config, "run.eval_every=1"))
    assert [a != b for a, b in zip(stages[:4], stages[4:], strict=True)] == [True, False, False, False]


def test_policies_on_the_same_predictor_are_one(finished, stages):
    config, before = finished
    best = before.folders["vampo"] / "checkpoints" / "best"
    result = api.run_chain(load_config(config, f"model.pretrained={best}"))
    assert len(stages) == 3, "VAMPO's best checkpoint, of the finished chain, is what this one begins with"
    assert result.folders["policy-vampo"] == result.folders["policy-base"] != result.folders["policy-latents"]


def test_by_command_with_its_page(finished, capsys):
    config, result = finished
    result.folders["vampo"].parent.mkdir(exist_ok=True)
    config.save(result.folders["vampo"].parent / "chain.yaml")
    assert main(["chain", "--config", str(result.folders["vampo"].parent / "chain.yaml")]) == 0
    page = unescape((result.folders["vampo"].parent / "tiny-chain.html").read_text())
    assert "VAMPO: iteration 1." in page and 'id="videos"' in page
    for text in ("VAMPO: acts on predictive features", "The simulator's expert", "McNemar"):
        assert text in page
    assert result.folders["policy-vampo"].name in page and "http" not in page.replace("http://www.w3.org", "")
    printed = capsys.readouterr().out
    assert "expert: 2 episodes" in printed
    last = printed.splitlines()[-1]
    assert last.startswith("After 1 iteration of VAMPO the robot that acts on predictive features succeeds in ")
    assert last == headline(config, result).sentence


def test_wrong_settings_are_refused_before_anything_is_done(tmp_path, monkeypatch):
    def dark(env):
        raise OSError("no lamp")

    with pytest.raises(ConfigError, match=r"closed_loop\.env and data\.env are null"):
        api.run_chain(settings(tmp_path))
    several = ["data.env=null", f"data.root=[{tmp_path}/a, {tmp_path}/b]", "closed_loop.env=simulators:line"]
    with pytest.raises(ConfigError, match=r"data\.root is .*, expected one folder: a policy learns from one dataset"):
        api.run_chain(settings(tmp_path, *TINY, *several))
    for change, message in (
        ("closed_loop.num_executed_steps=5", r"num_executed_steps is 5, expected at most policy.action_horizon = 4"),
        ("policy.features=latents", r"policy\.features is 'latents', expected predictive"),
        ("policy.predictor=runs/base", r"policy\.predictor is 'runs/base', expected null"),
    ):
        with pytest.raises(ConfigError, match=message):
            api.run_chain(settings(tmp_path, *TINY, change))
    with (
        monkeypatch.context() as patch,
        pytest.raises(SimulatorError, match="'simulators:line' cannot be reset: no lamp"),
    ):
        patch.setattr(simulators.Line, "render", dark)
        api.run_chain(settings(tmp_path, *TINY))
    assert not list(tmp_path.iterdir())


def test_layers_that_a_given_predictor_lacks_are_refused_before_it_is_trained(finished, stages):
    config, before = finished
    given = f"model.pretrained={before.folders['vampo'] / 'checkpoints' / 'latest'}"
    with pytest.raises(ConfigError, match=r"policy\.feature_layers is \[0, 7\], expected indices below 2"):
        api.run_chain(load_config(config, given, "policy.feature_layers=[0,7]"))
    assert not stages


def test_other_data_under_a_given_predictor_is_another_chain(finished, stages):
    config, before = finished
    given = load_config(config, f"model.pretrained={before.folders['base']}")
    api.run_chain(given)
    api.run_chain(load_config(given, "data.held_out_fraction=0.5"))
    assert len(stages) == 8 and not set(stages[:4]) & set(stages[4:])
