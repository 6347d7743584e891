"""Arms and kinds of policies in a chain: how each is made from the base, found again, continued, left out."""

import shutil
from dataclasses import replace

import pytest
import torch
from tiny_chain import TINY, kill
from tiny_run import settings

from vampo_core import api
from vampo_core.config import ConfigError, RewardConfig, load_config
from vampo_core.config.chain_section import ArmName
from vampo_core.diffusion.sampler import EulerHybridSampler
from vampo_core.grpo.cost import forwards_per_iteration
from vampo_core.grpo.trainer import VampoTrainer
from vampo_core.pipeline import chain
from vampo_core.pipeline.arms import ARMS, paper, same_compute
from vampo_core.pipeline.pages import write_chain_page
from vampo_core.pipeline.policy import imagined_policy
from vampo_core.policy.base import Policy
from vampo_core.policy.train import PolicyTrainer
from vampo_core.report.headline import headline
from vampo_core.training.pretrain import Pretrainer

ALL = [
    *TINY,
    "chain.arms=[base, likelihood, vampo_latent, vampo]", "chain.policies=[predictive]",
    "reward.motion_weight=1", "grpo.num_iterations=2", "run.eval_every=1", "pretrain.batch_size=1",
]  # fmt: skip
NUM_UPDATES = 9
"""Two iterations of two clips: a forward with gradient and four without each, 28 in all, at three an update."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    config = settings(tmp_path_factory.mktemp("arms"), *ALL)
    return config, api.run_chain(config)


def test_every_arm_has_its_results(finished):
    config, result = finished
    names = ["base", "likelihood", "vampo_latent", "vampo"]
    assert list(result.arms) == list(result.policies) == names
    assert list(result.closed_loop) == [*names, "expert"]
    stages = {"data", "closed_loop", *names, *(f"policy-{name}" for name in names)}
    assert set(result.folders) == stages and len(set(result.folders.values())) == len(stages)
    assert result.base is result.arms["base"].evaluation and result.vampo is result.arms["vampo"].evaluation
    for name in names[1:]:
        run = load_config(result.folders[name])
        assert run.model.pretrained == str(result.folders["base"])
        arm = result.arms[name]
        assert arm.predictor.parent.parent == result.folders[name]
        assert load_config(result.folders[f"policy-{name}"]).policy.predictor == str(arm.predictor)
        assert arm.evaluation.episode_ids == result.base.episode_ids, "paired"
    assert load_config(result.folders["vampo_latent"]).reward == RewardConfig()
    assert load_config(result.folders["vampo"]).reward == config.reward != RewardConfig()


def test_likelihood_training_takes_the_compute_of_vampo_and_is_evaluated_as_often(finished):
    config, result = finished
    run = load_config(result.folders["likelihood"]).pretrain
    assert run.num_steps == run.decay_steps == run.warmup_steps == NUM_UPDATES
    assert run.lr == pytest.approx(config.pretrain.lr / 5)
    rows = (result.folders["likelihood"] / "metrics.jsonl").read_text().splitlines()
    assert len(rows) == NUM_UPDATES
    assert sum('"eval_l1"' in row for row in rows) == 2 == config.grpo.num_iterations // config.run.eval_every


def test_same_compute_at_the_size_of_the_preset():
    config = load_config("pusht", "run.eval_every=20")
    made = same_compute(config, EulerHybridSampler(**config.sampler.overrides())).pretrain
    assert made.num_steps == 50 * 8 * (3 + 16) // (3 * 8) == 316
    assert (made.warmup_steps, made.eval_every, made.lr) == (20, 106, pytest.approx(8e-4))


def test_the_papers_reward_has_no_other_part():
    config = load_config("pusht", "reward.l1_weight=0", "reward.pixel_weight=2", "reward.motion_weight=3")
    made = paper(config, EulerHybridSampler())
    weights = {name: x for name, x in vars(made.reward).items() if name.endswith("_weight") and x}
    assert weights == {"l1_weight": 1, "cosine_weight": 1}
    assert replace(made, reward=config.reward) == config


def test_the_paper_compares_within_larger_groups_for_the_same_compute():
    config, sampler = load_config("metaworld"), EulerHybridSampler(num_inference_steps=2)
    assert config.grpo.credit == "pathwise"
    made = paper(config, sampler)
    assert (made.grpo.credit, made.grpo.num_generations, made.grpo.batch_size) == ("frame", 16, 16)
    spent, meant = (c.grpo.num_iterations * forwards_per_iteration(c.grpo, sampler) for c in (made, config))
    assert meant == 200 * 16 * (3 + 2 * 2)
    assert spent == pytest.approx(meant, rel=0.01)
    assert made.optim.decay_steps == round(config.optim.decay_steps * made.grpo.num_iterations / 200)
    assert made.run.eval_every == round(50 * made.grpo.num_iterations / 200)


def test_the_registry_has_every_arm():
    assert list(ARMS) == list(ArmName.__args__)


def test_arms_that_are_there_are_found(finished, monkeypatch):
    config, before = finished
    for name in ("train", "pretrain", "train_policy", "evaluate"):
        monkeypatch.setattr(api, name, lambda *_, **__: pytest.fail("a stage was run again"))
    assert api.run_chain(config).folders == before.folders
    two = load_config(config, "chain.arms=[vampo_latent, base]")
    fewer = api.run_chain(two)
    assert list(fewer.arms) == ["base", "vampo_latent"]
    assert fewer.folders.items() <= before.folders.items()
    assert fewer.base == before.base
    with pytest.raises(KeyError, match="vampo"):
        _ = fewer.vampo
    assert "VAMPO with the paper's reward" in headline(two, fewer).sentence


@pytest.mark.parametrize(
    ("arm", "trainer", "dies", "rest"),
    [
        ("likelihood", Pretrainer, 7, [6, 7, 8, 9]),
        ("vampo_latent", VampoTrainer, 2, [2]),
        ("vampo", VampoTrainer, 2, [2]),
    ],
)
def test_an_arm_goes_on_where_it_was_stopped(finished, tmp_path, monkeypatch, arm, trainer, dies, rest):
    config, before = finished
    single = load_config(
        config, f"chain.arms=[base, {arm}]", f"run.dir={tmp_path / 'run'}", "run.save_every=1",
        f"model.pretrained={before.folders['base']}",
    )  # fmt: skip
    steps = kill(monkeypatch, trainer, dies, lambda: api.run_stages(single, until="vampo"))
    after = api.run_stages(load_config(single, "policy.lr=1e-5"), until="vampo")
    assert steps == rest, "what was saved is not done again"
    assert after[arm].parent == tmp_path and after[arm].name == before.folders[arm].name


def test_a_policy_on_a_new_arm_goes_on_where_it_was_stopped(finished, monkeypatch):
    config, _ = finished
    longer = load_config(config, "policy.num_steps=3", "policy.save_every=1", "chain.arms=[base, likelihood]")
    api.run_chain(load_config(longer, "chain.arms=[base]"))
    steps = kill(monkeypatch, PolicyTrainer, 3, lambda: api.run_chain(longer))
    api.run_chain(longer)
    assert steps == [3]


def test_a_change_of_the_pretraining_makes_only_the_likelihood_arm_again_under_a_given_base(finished, monkeypatch):
    config, before = finished
    noted = {}

    def note(name, kind, train, config, decided_by):
        noted.setdefault(name, []).append(repr(decided_by))
        return before.folders[name]

    monkeypatch.setattr(chain, "_stage", note)
    given = load_config(config, f"model.pretrained={before.folders['base']}")
    changes = ("pretrain.lr=1e-5", "optim.lr=1e-5", "grpo.num_iterations=3", "reward.cosine_weight=2")
    for change in ((), *((change,) for change in changes)):
        api.run_stages(load_config(given, *change), until="vampo")
    again = {name: [x != values[0] for x in values[1:]] for name, values in noted.items()}
    assert again == {
        "likelihood": [True, False, True, True],  # its best checkpoint is chosen by the reward
        "vampo_latent": [False, True, True, False],
        "vampo": [False, True, True, True],
    }


def test_rewards_that_are_the_papers_make_one_run(finished):
    config, _ = finished
    same = load_config(config, "reward.motion_weight=0", "chain.arms=[base, vampo_latent, vampo]")
    folders = api.run_stages(same, until="vampo")
    assert folders["vampo"] == folders["vampo_latent"]


def test_a_chain_of_the_base_only(finished):
    config, before = finished
    only = load_config(config, "chain.arms=[base]", "chain.policies=[predictive, latents]")
    result = api.run_chain(only)
    assert list(result.closed_loop) == ["base", "latents", "expert"]
    assert result.base.l1.mean == pytest.approx(before.base.l1.mean)
    found = headline(only, result)
    assert found.sentence.startswith("The robot that acts on predictive features succeeds in ")
    assert found.comparison is None and found.sentence in write_chain_page(only, result).read_text()


@pytest.fixture(scope="module")
def imagining(finished):
    config, _ = finished
    config = load_config(
        config, "chain.policies=[imagined, predictive]", "chain.arms=[base, base_scaled, vampo]", "decoder.num_steps=3"
    )
    return config, api.run_chain(config)


def test_policies_that_imagine_are_put_together_for_every_arm(imagining):
    config, result = imagining
    names = ["imagined-base", "imagined-base_scaled", "imagined-vampo", "base", "vampo"]
    assert list(result.closed_loop) == [*names, "expert"]
    assert list(result.policies) == ["base", "vampo"], "nothing is trained for those that imagine"
    made = {name: Policy.from_pretrained(result.folders[f"policy-{name}"]) for name in names}
    ratio = result.base.action_ratio.mean
    assert [made[name].settings.action_scale for name in names[:3]] == [1, pytest.approx(1 / ratio), 1]
    decoders = [made[name].decoder.state_dict() for name in names[:3]]
    assert all(torch.equal(x[key], decoders[0][key]) for x in decoders for key in x), "one decoder for all"
    for name, other in (("imagined-base_scaled", "base"), ("imagined-vampo", "vampo")):
        assert made[name].predictor.fingerprint() == made[other].predictor.fingerprint()
    assert "the robot that acts on its imagined video succeeds in" in headline(config, result).sentence
    page = write_chain_page(config, result).read_text()
    assert "Base with scaled actions" in page and page.count("<figcaption><b class=") % 3 == 0, "three videos a clip"
    assert "Action error (judge)" in page


def test_policies_that_imagine_are_found_and_made_again_where_they_are_missing(imagining, monkeypatch):
    config, before = imagining
    made = []

    def counted(config, predictor, folder, **options):
        made.append(folder)
        return imagined_policy(config, predictor, folder, **options)

    monkeypatch.setattr(chain, "imagined_policy", counted)
    assert api.run_chain(config).folders == before.folders and not made
    shutil.rmtree(before.folders["policy-imagined-vampo"])
    again = api.run_chain(config)
    assert made == [before.folders["policy-imagined-vampo"]]
    assert again.closed_loop == before.closed_loop, "episodes belong to weights, not to folders"


def test_what_policies_that_imagine_cannot_use_is_refused_before_anything_is_done(tmp_path):
    imagined = "chain.policies=[imagined]"
    for changes, message in (
        ([imagined, "data.sampling=episode"], r"data.sampling is 'episode' with imagined in chain.policies"),
        ([imagined, "closed_loop.num_executed_steps=4"], r"at most data.stride x \(data.num_frames - 1\) = 3"),
        (["policy.kind=inverse_dynamics"], r"policy.kind is 'inverse_dynamics' with chain.policies = "),
    ):
        with pytest.raises(ConfigError, match=message):
            api.run_chain(settings(tmp_path, *TINY, *changes))
    assert not list(tmp_path.iterdir())


def test_scaled_actions_need_a_measured_length(finished):
    config, _ = finished
    unmeasured = load_config(
        config, "chain.policies=[imagined]", "chain.arms=[base, base_scaled]", "evaluation.action_error=false"
    )
    with pytest.raises(ConfigError, match=r"chain\.arms has base_scaled, but held-out action_ratio was not measured"):
        api.run_chain(unmeasured)


def test_features_are_only_those_of_policies_on_features(imagining):
    config, _ = imagining
    folders = api.run_stages(config, until="features")
    assert [name for name in folders if name.startswith("features")] == ["features-base", "features-vampo"]
    with pytest.raises(ConfigError, match=r"chain\.policies is \['imagined'\], expected predictive among them"):
        api.run_stages(load_config(config, "chain.policies=[imagined]"), until="features")
