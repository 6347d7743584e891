"""Illnesses are planted in a run and have to be noticed; the same run without them says nothing."""

import time
from dataclasses import replace

import pytest
import torch
from training_runs import WAN, make_config, make_trainer, metrics_of

from vampo_core.data import ClipDataset
from vampo_core.evaluation.predictor import EvalResult
from vampo_core.evaluation.statistics import bootstrap
from vampo_core.grpo import trainer as trainer_module
from vampo_core.training.health import findings
from vampo_core.training.metrics import read_metrics

HEALTHY = ("optim.lr=1e-5", "grpo.num_generations=4", "run.eval_every=3", "run.save_every=50")


def run(folder, *overrides, **options):
    """The names of the checks that a run of a dozen iterations crosses, on disk."""
    config = make_config(folder, "grpo.num_iterations=12", *HEALTHY, *overrides)
    make_trainer(config, **options).train()
    return [finding.check for finding in findings(read_metrics(folder / "metrics.jsonl"), config)]


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("grpo.credit=pathwise",),
        ("grpo.credit=clip", "sampler.tail_dtype=bfloat16", "optim.gradient_accumulation_steps=2"),
        ("sampler.stochastic_steps=[0,1,2]", "grpo.reuse_first_step=false", "optim.lr=1e-6"),
        ("grpo.num_inner_epochs=2", "optim.lr=1e-6", "grpo.kl_coef=0.01", "grpo.num_generations=6"),
        (*WAN, "sampler.guidance_scale=2", "sampler.tail_chunk_size=3"),
    ],
)
def test_a_healthy_run_says_nothing(tmp_path, capsys, overrides):
    assert run(tmp_path, *overrides) == []
    assert "health" not in capsys.readouterr().err


@pytest.mark.parametrize("credit", ["frame", "pathwise"])
@pytest.mark.parametrize(("name", "factor"), [("sigma_next", 1.05), ("sigma", 1.05), ("sigma_next", 0.9)])
def test_a_wrong_sigma_at_replay(tmp_path, monkeypatch, capsys, credit, name, factor):
    """Draws are made at one noise level and their log-probabilities taken at another: a ratio of 1 hides it."""
    module = __import__("vampo_core.diffusion.sampler", fromlist=["gaussian_log_prob"])
    original = module.gaussian_log_prob
    monkeypatch.setattr(
        module,
        "gaussian_log_prob",
        lambda *args, **options: original(*args, **{**options, name: factor * options[name]}),
    )
    assert "ratios off 1" in run(tmp_path, f"grpo.credit={credit}", "grpo.num_iterations=1")
    assert "ratios are off 1" in capsys.readouterr().err
    assert metrics_of(tmp_path)[0]["ratio_max_dev"] == 0


@pytest.mark.parametrize(
    ("num_generations", "order"),
    [
        *((2, [1, 0]), (4, [1, 2, 3, 0]), (4, [3, 2, 1, 0]), (4, [1, 0, 2, 3])),
        *((6, [1, 2, 3, 4, 5, 0]), (6, [0, 2, 1, 3, 4, 5])),
    ],
)
@pytest.mark.parametrize("where", ["rewards", "advantages", "videos"])
def test_a_leaking_order_of_the_group(tmp_path, monkeypatch, where, num_generations, order):
    """Advantages belong to other rollouts of the group, by a mistake in one of three places."""

    def wrong(original, change):
        return lambda *args, **options: change(original(*args, **options))

    if where == "rewards":
        changed = wrong(trainer_module.evaluate_rewards, lambda found: replace(found, total=found.total[:, order]))
        monkeypatch.setattr(trainer_module, "evaluate_rewards", changed)
        monkeypatch.setattr("vampo_core.grpo.replay.evaluate_rewards", changed)
    elif where == "advantages":
        original = trainer_module.credited_advantages
        monkeypatch.setattr(trainer_module, "credited_advantages", wrong(original, lambda found: found[:, order]))
    config = make_config(tmp_path, *HEALTHY, f"grpo.num_generations={num_generations}", "grpo.num_iterations=1")
    trainer = make_trainer(config)
    if where == "videos":
        tail = trainer.engine.sampler.tail
        change = wrong(tail, lambda found: replace(found, latents=_reordered(found.latents, order)))
        object.__setattr__(trainer.engine.sampler, "tail", change)
    trainer.train()
    assert [f.check for f in findings(read_metrics(tmp_path / "metrics.jsonl"), config)] == ["order of the group"]


def _reordered(latents, order):
    return latents[:, order] if latents.shape[1] == len(order) else latents


def test_a_reward_that_mixes_clips_and_generations(tmp_path):
    """Rows of a folded batch are unfolded the wrong way round."""

    def mixed(pred, target, batch):
        error = (pred - target.unsqueeze(1)).abs().flatten(3).mean(-1)
        return -error.flatten(0, 1).view(pred.shape[1], pred.shape[0], -1).transpose(0, 1)

    assert run(tmp_path, "grpo.num_iterations=1", reward_funcs=[mixed]) == ["order of the group"]


def test_a_flat_reward(tmp_path, capsys):
    assert run(tmp_path, reward_funcs=[lambda pred, target, batch: pred.new_ones(pred.shape[:3])]) == ["no spread"]
    log = capsys.readouterr().err
    assert log.count("health, iteration 5: 100% of the groups have equal rewards") == 1, "said once, in iteration 5"
    assert log.count("health") == 1


def test_a_reward_whose_differences_are_rounding(tmp_path):
    def far_off(pred, target, batch):
        return 300 - 0.01 * (pred - target.unsqueeze(1)).abs().flatten(3).mean(-1)

    assert "rounding" in run(tmp_path, reward_funcs=[far_off])


def test_an_exploding_learning_rate(tmp_path, capsys):
    assert "held-out worse" in run(tmp_path, "optim.lr=0.3")
    assert "Lower optim.lr" in capsys.readouterr().err


def test_later_epochs_that_are_clipped(tmp_path):
    assert "clipped ratios" in run(tmp_path, "optim.lr=0.01", "grpo.num_inner_epochs=4")


@pytest.mark.parametrize(("judged", "found"), [(1.0, ["fooled decoder"]), (1.1, ["fooled decoder"]), (0.5, [])])
def test_a_fooled_decoder(tmp_path, monkeypatch, judged, found):
    """The reward's decoder sees the error halved, the judge sees another share of it."""
    trainer = make_trainer(make_config(tmp_path, *HEALTHY, "evaluation.num_clips=8"))
    evaluate, results = trainer.evaluate, []

    def measured() -> EvalResult:
        result = evaluate()
        noise = torch.Generator().manual_seed(0)
        base = 0.2 + 0.01 * torch.rand(len(result.episode_ids), generator=noise)
        shares = {"decoder_error": 0.5, "action_error": judged}
        values = {name: ((share if results else 1.0) * base).tolist() for name, share in shares.items()}
        results.append(result)
        metrics = {name: bootstrap(x, result.episode_ids) for name, x in values.items()}
        return replace(result, **metrics, per_clip={**result.per_clip, **values})

    monkeypatch.setattr(trainer, "evaluate", measured)
    trainer.train()
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [finding.check for finding in findings(rows, trainer.config)] == found


def test_a_starved_loader(tmp_path, monkeypatch):
    read = ClipDataset.__getitem__

    def slow(dataset, index):
        time.sleep(0.5)
        return read(dataset, index)

    monkeypatch.setattr(ClipDataset, "__getitem__", slow)
    assert run(tmp_path) == ["starved loader"]
    assert all(row["data_s"] > 0.9 for row in read_metrics(tmp_path / "metrics.jsonl"))
