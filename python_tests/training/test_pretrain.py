"""Likelihood training: EDM's loss in its own words, and a run that learns."""

import copy

import pytest
import torch
from training_runs import make_clips, make_config, make_model, make_pretrainer, relative_distance, trained_weights

from vampo_core.data.clips import collate
from vampo_core.models.predictor import VideoPredictor
from vampo_core.ops.coefficients import denoiser_scalings
from vampo_core.training.checkpoint import find_checkpoint
from vampo_core.training.pretrain import edm_loss


def some_clips():
    return collate([make_clips(0, 1, 2)[i] for i in (0, 7, 14)])


@pytest.mark.parametrize("prediction_type", ["v_prediction", "epsilon"])
def test_loss_is_edms(tmp_path, prediction_type):
    """Karras et al. 2022: lambda(sigma) |D(x + n; sigma) - x|^2, lambda = 1 / c_out^2, in float64.

    For ``v_prediction`` this is equation 8 with sigma_data = 1, whose lambda is (sigma^2 + 1) / sigma^2.
    """
    model, batch = make_model(make_config(tmp_path)), some_clips()
    latents, generator = batch["latents"], torch.Generator().manual_seed(0)
    sigma, noise = torch.tensor([0.05, 1.0, 30.0]), torch.randn(latents.shape, generator=generator)
    condition = model.condition(instructions=batch["instruction"], first_latents=latents[:, 0])
    loss = edm_loss(model, latents, condition, sigma=sigma, noise=noise, prediction_type=prediction_type)
    errors = []
    for i, s in enumerate(sigma.double()):
        noisy = latents[i].double() + s * noise[i].double()
        rows = condition.index_select(torch.tensor([i]))
        output = model(noisy.float().unsqueeze(0), float(s), rows)[0].double()
        if prediction_type == "v_prediction":
            denoised, weight = noisy / (s**2 + 1) - s / (s**2 + 1).sqrt() * output, (s**2 + 1) / s**2
        else:
            denoised, weight = noisy - s * output, 1 / s**2
        errors.append(weight * (denoised - latents[i]).square().mean())
    assert loss.item() == pytest.approx(torch.stack(errors).mean().item(), rel=1e-4)
    assert denoiser_scalings(2.0, "v_prediction") == pytest.approx((1 / 5, -2 / 5**0.5))


def test_noise_follows_from_seed_and_step_alone(tmp_path):
    pretrainer = make_pretrainer(make_config(tmp_path, "pretrain.batch_size=3"))
    batch = some_clips()
    losses = [pretrainer.loss(step, batch).item() for step in (1, 2, 1)]
    assert losses[0] == losses[2] != losses[1]
    other = make_pretrainer(make_config(tmp_path, "pretrain.batch_size=3", "run.seed=1"))
    other.model.load_state_dict(pretrainer.model.state_dict())
    assert other.loss(1, batch).item() != losses[0]


def test_conditions_are_dropped_at_random_as_often_as_asked(tmp_path, monkeypatch):
    """What classifier-free guidance needs: the first frame and the instruction are zeros for a random few clips."""
    seen = []

    def loss(model, latents, condition, *, sigma, **rest):
        seen.append(
            (condition.image_latents == 0).flatten(1).all(1) & (condition.encoder_hidden_states == 0).all(2)[:, 0]
        )
        return sigma.sum()

    monkeypatch.setattr("vampo_core.training.pretrain.edm_loss", loss)
    pretrainer = make_pretrainer(make_config(tmp_path, "pretrain.condition_dropout=0.3"))
    batch = some_clips()
    for step in range(400):
        pretrainer.loss(step, batch)
    dropped = torch.stack(seen)
    assert dropped.float().mean().item() == pytest.approx(0.3, abs=4 * (0.3 * 0.7 / dropped.numel()) ** 0.5)
    assert len(set(map(tuple, dropped.tolist()))) == 8  # clips independently
    pretrainer.loss(7, batch)
    assert torch.equal(seen[-1], seen[7])
    without = make_pretrainer(make_config(tmp_path))
    without.loss(1, batch)
    assert not seen[-1].any()


def test_noise_levels_are_log_normal(tmp_path, monkeypatch):
    pretrainer, levels = make_pretrainer(make_config(tmp_path, "pretrain.p_mean=0.3", "pretrain.p_std=0.8")), []
    monkeypatch.setattr(
        "vampo_core.training.pretrain.edm_loss", lambda *args, sigma, **rest: levels.append(sigma) or sigma.sum()
    )
    batch = some_clips()
    for step in range(300):
        pretrainer.loss(step, batch)
    logs = torch.cat(levels).log()
    assert logs.mean().item() == pytest.approx(0.3, abs=0.1) and logs.std().item() == pytest.approx(0.8, abs=0.08)


def test_it_learns_and_saves_the_mean(tmp_path):
    """On twenty clips the loss goes down, and so does the held-out error; text encoder and UNet both move."""
    config = make_config(
        tmp_path, "pretrain.num_steps=100", "pretrain.batch_size=4", "pretrain.lr=3e-3", "pretrain.eval_every=100",
        "pretrain.save_every=100", "pretrain.p_mean=0.0",
    )  # fmt: skip
    pretrainer = make_pretrainer(config)
    before = trained_weights(pretrainer)
    result = pretrainer.train()
    losses = [row["loss"] for row in result.history]
    assert sum(losses[-15:]) < 0.8 * sum(losses[:15])
    assert result.after.l1.mean < 0.95 * result.before.l1.mean
    after = trained_weights(pretrainer)
    for part in ("unet.", "text_encoder."):
        names = [name for name in before if name.startswith(part)]
        assert names and any(not torch.equal(before[name], after[name]) for name in names)
    saved = VideoPredictor.from_pretrained(find_checkpoint(tmp_path))
    mean = dict(zip(pretrainer.optimizer.names, pretrainer.optimizer.ema.shadow_params, strict=True))
    named = dict(saved.named_parameters())
    assert all(torch.equal(named[name], value) for name, value in mean.items())


def test_evaluation_is_of_the_mean(tmp_path):
    pretrainer = make_pretrainer(make_config(tmp_path))
    with torch.no_grad():
        for mean in pretrainer.optimizer.ema.shadow_params:
            mean.mul_(1.1)
    before = trained_weights(pretrainer)
    ours = pretrainer.evaluate()
    assert relative_distance(trained_weights(pretrainer), before) == 0
    scaled = make_pretrainer(make_config(tmp_path, "pretrain.ema_decay=0.0"))
    weights = copy.deepcopy(before)
    named = dict(scaled.model.named_parameters())
    with torch.no_grad():
        for name, value in weights.items():
            named[name].copy_(1.1 * value)
    assert scaled.evaluate().l1.mean == pytest.approx(ours.l1.mean, rel=1e-5)
    assert scaled.optimizer.ema is None
