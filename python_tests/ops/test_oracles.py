"""The operators against formulas we did not write: diffusers' schedulers, torch.distributions, NumPy, torch.nn."""

import math

import numpy as np
import pytest
import torch
from cases import PREDICTION_TYPES, relative_error
from diffusers import EulerAncestralDiscreteScheduler, EulerDiscreteScheduler

from vampo_core import ops
from vampo_core.ops import reference
from vampo_core.ops.coefficients import ancestral_split, denoiser_scalings, euler_coefficients

SVD_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
SVD_SIGMAS = {
    "interpolation_type": "linear",
    "timestep_spacing": "leading",
    "timestep_type": "continuous",
    "use_karras_sigmas": True,
    "sigma_min": 0.002,
    "sigma_max": 700.0,
    "steps_offset": 1,
}
SHAPE = (2, 3, 4, 5, 7)  # B, F, C, H, W

implementations = pytest.mark.parametrize("implementation", [ops, reference], ids=["ops", "reference"])


def euler_discrete(prediction_type, num_inference_steps):
    scheduler = EulerDiscreteScheduler(**SVD_BETAS, **SVD_SIGMAS, prediction_type=prediction_type)
    scheduler.set_timesteps(num_inference_steps)
    scheduler.set_begin_index(0)  # with duplicate timesteps diffusers would look up the second one
    return scheduler


def euler_ancestral(prediction_type, num_inference_steps):
    scheduler = EulerAncestralDiscreteScheduler(
        **SVD_BETAS, prediction_type=prediction_type, timestep_spacing="leading", steps_offset=1
    )
    scheduler.set_timesteps(num_inference_steps)
    scheduler.set_begin_index(0)
    return scheduler


def denoiser(scaled_sample, sigma):
    """Smooth, mixes pixels and frames, and differs with the noise level."""
    neighbours = scaled_sample.roll(1, -1) - 0.5 * scaled_sample.roll(1, 1)
    return torch.tanh(0.7 * scaled_sample + 0.4 * neighbours + 0.1 * math.log(sigma)) + 0.2 * torch.sin(3 * neighbours)


def trajectories(scheduler, stochastic, implementation, device):
    """Yield diffusers' sample and ours after every step; each feeds the denoiser its own."""
    theirs = scheduler.init_noise_sigma * torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    ours = theirs.to(device)
    prediction_type = scheduler.config.prediction_type
    for index, timestep in enumerate(scheduler.timesteps):
        sigma, sigma_next = (float(s) for s in scheduler.sigmas[index : index + 2])
        model_output = denoiser(scheduler.scale_model_input(theirs, timestep), sigma)
        options = {"generator": torch.Generator().manual_seed(index)} if stochastic else {}
        theirs = scheduler.step(model_output, timestep, theirs, **options).prev_sample
        model_output = denoiser(ours / math.sqrt(sigma**2 + 1), sigma)
        schedule = {"sigma": sigma, "sigma_next": sigma_next, "prediction_type": prediction_type}
        if stochastic and sigma_next > 0:
            noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(index)).unsqueeze(1).to(device)
            step = implementation.hybrid_euler_step(ours, model_output, **schedule, eta=1.0, noise=noise)
            ours = step.prev_sample.squeeze(1)  # [B, 1, F, C, H, W] to [B, F, C, H, W]
        else:
            ours = implementation.hybrid_euler_step(ours, model_output, **schedule).prev_sample
        yield theirs, ours


@implementations
@pytest.mark.parametrize("num_inference_steps", [5, 25])
def test_svd_trajectory(device, implementation, num_inference_steps):
    scheduler = euler_discrete("v_prediction", num_inference_steps)
    assert scheduler.sigmas[0] == pytest.approx(700) and scheduler.sigmas[-1] == 0
    for theirs, ours in trajectories(scheduler, False, implementation, device):
        assert relative_error(ours, theirs) <= 2e-5


@implementations
@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_deterministic_trajectory(device, implementation, prediction_type):
    for theirs, ours in trajectories(euler_discrete(prediction_type, 8), False, implementation, device):
        assert relative_error(ours, theirs) <= 2e-5


@implementations
@pytest.mark.parametrize("prediction_type", ["v_prediction", "epsilon"])
def test_ancestral_trajectory(device, implementation, prediction_type):
    for theirs, ours in trajectories(euler_ancestral(prediction_type, 20), True, implementation, device):
        assert relative_error(ours, theirs) <= 2e-5


@implementations
def test_a_group_is_several_ancestral_steps_from_one_sample(device, implementation):
    generator = torch.Generator().manual_seed(1)
    sample, model_output = 10 * torch.randn(SHAPE, generator=generator), torch.randn(SHAPE, generator=generator)
    noise = torch.stack([torch.randn(SHAPE, generator=torch.Generator().manual_seed(g)) for g in range(3)], 1)
    for g in range(3):
        scheduler = euler_ancestral("v_prediction", 10)
        scheduler.scale_model_input(sample, scheduler.timesteps[0])
        theirs = scheduler.step(
            model_output, scheduler.timesteps[0], sample, generator=torch.Generator().manual_seed(g)
        ).prev_sample
        sigma, sigma_next = (float(s) for s in scheduler.sigmas[:2])
        ours = implementation.hybrid_euler_step(
            sample.to(device), model_output.to(device), sigma=sigma, sigma_next=sigma_next, eta=1.0,
            noise=noise.to(device),
        ).prev_sample  # fmt: skip
        assert relative_error(ours[:, g], theirs) <= 2e-6


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("index", range(6))
def test_coefficients_of_the_deterministic_step(prediction_type, index):
    """What diffusers makes of a sample of one and of a model output of one."""
    columns = []
    for sample, model_output in torch.eye(2).unsqueeze(-1):
        scheduler = euler_discrete(prediction_type, 6)
        scheduler.set_begin_index(index)
        timestep = scheduler.timesteps[index]
        scheduler.scale_model_input(torch.zeros(1), timestep)
        columns.append(float(scheduler.step(model_output, timestep, sample).prev_sample))
    sigma, sigma_next = (float(s) for s in scheduler.sigmas[index : index + 2])
    a, b, sigma_up = euler_coefficients(sigma, sigma_next, 0.0, prediction_type)
    assert sigma_up == 0
    # diffusers adds a difference of order one to the sample in float32
    assert a == pytest.approx(columns[0], rel=1e-6, abs=3e-7)
    assert b == pytest.approx(columns[1], rel=1e-6, abs=3e-7)


@pytest.mark.parametrize("prediction_type", ["v_prediction", "epsilon"])
@pytest.mark.parametrize("index", range(5))
def test_coefficients_of_the_ancestral_step(prediction_type, index):
    values = []
    for sample, model_output in ((1.0, 0.0), (0.0, 1.0), (0.0, 0.0)):
        scheduler = euler_ancestral(prediction_type, 6)
        scheduler.set_begin_index(index)
        timestep = scheduler.timesteps[index]
        scheduler.scale_model_input(torch.zeros(1), timestep)
        model_output, sample = torch.tensor([model_output]), torch.tensor([sample])
        generator = torch.Generator().manual_seed(0)
        values.append(float(scheduler.step(model_output, timestep, sample, generator=generator).prev_sample))
    sigma, sigma_next = (float(s) for s in scheduler.sigmas[index : index + 2])
    a, b, sigma_up = euler_coefficients(sigma, sigma_next, 1.0, prediction_type)
    z = float(torch.randn(1, generator=torch.Generator().manual_seed(0)))
    assert sigma_up * z == pytest.approx(values[2], rel=1e-5)
    assert a == pytest.approx(values[0] - values[2], rel=2e-6, abs=1e-5)
    assert b == pytest.approx(values[1] - values[2], rel=2e-6, abs=1e-5)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0, 1.2, 50.0])
@pytest.mark.parametrize(("sigma", "sigma_next"), [(700.0, 480.0), (1.0, 0.999999), (0.01, 1e-6), (3.0, 0.0)])
def test_the_split_keeps_the_variance(eta, sigma, sigma_next):
    sigma_down, sigma_up = ancestral_split(sigma, sigma_next, eta)
    assert 0 <= sigma_up <= sigma_next
    assert math.hypot(sigma_up, sigma_down) == pytest.approx(sigma_next, rel=1e-12, abs=0)
    if eta <= 1:
        assert sigma_up == pytest.approx(
            eta * sigma_next * math.sqrt(max(1 - (sigma_next / sigma) ** 2, 0)), rel=1e-9, abs=0
        )


def independent_mean(case_sample, model_output, sigma, sigma_next, eta, prediction_type):
    """The mean as k-diffusion writes it: interpolate between the sample and what the denoiser makes of it."""
    if prediction_type == "v_prediction":
        angle = math.atan(sigma)
        denoised = math.cos(angle) ** 2 * case_sample - math.sin(angle) * model_output
    elif prediction_type == "epsilon":
        denoised = case_sample - sigma * model_output
    else:
        denoised = model_output
    sigma_up = min(sigma_next, eta * math.sqrt(sigma_next**2 - sigma_next**4 / sigma**2))
    sigma_down = math.sqrt(sigma_next**2 - sigma_up**2)
    return denoised + sigma_down / sigma * (case_sample - denoised), sigma_up


@implementations
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize(("sigma", "sigma_next", "eta"), [(700.0, 480.0, 1.0), (2.0, 1.3, 0.6), (0.5, 0.1, 1.0)])
def test_log_prob_of_torch_distributions(device, implementation, reduction, prediction_type, sigma, sigma_next, eta):
    generator = torch.Generator().manual_seed(2)
    sample, cond, uncond = (torch.randn(SHAPE, generator=generator, dtype=torch.float64) for _ in range(3))
    sample = math.hypot(sigma, 1) * sample
    scale = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)[:, None, None, None]  # [F, 1, 1, 1]
    schedule = {"sigma": sigma, "sigma_next": sigma_next, "eta": eta, "prediction_type": prediction_type}
    cond, uncond = cond.requires_grad_(), uncond.requires_grad_()
    mean, sigma_up = independent_mean(sample, (1 - scale) * uncond + scale * cond, **schedule)
    noise = torch.randn((2, 4, *SHAPE[1:]), generator=generator, dtype=torch.float64)  # [B, G, F, C, H, W]
    actions = (mean.unsqueeze(1) + 1.3 * sigma_up * noise).detach().float()
    density = torch.distributions.Normal(mean.unsqueeze(1), sigma_up).log_prob(actions.double())
    expected = density.mean((-3, -2, -1)) if reduction == "mean" else density.sum((-3, -2, -1))
    inputs = [t.detach().float().to(device).requires_grad_() for t in (cond, uncond)]
    log_prob = implementation.gaussian_log_prob(
        actions.to(device), sample.float().to(device), inputs[0], **schedule, model_output_uncond=inputs[1],
        guidance_scale=scale.flatten().float().to(device), reduction=reduction,
    )  # fmt: skip
    assert relative_error(log_prob, expected) <= 1e-5
    weights = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
    gradients = torch.autograd.grad(log_prob, inputs, weights.float().to(device))
    wanted = torch.autograd.grad(expected, (cond, uncond), weights)
    for gradient, other in zip(gradients, wanted, strict=True):
        assert relative_error(gradient[:, 1:], other[:, 1:]) <= 1e-5
    assert float(gradients[1][:, 0].abs().max()) == 0  # guidance of one ignores the unconditional output


@implementations
def test_step_log_prob_of_torch_distributions(device, implementation):
    generator = torch.Generator().manual_seed(3)
    sample, model_output = (torch.randn(SHAPE, generator=generator) for _ in range(2))
    noise = torch.randn((2, 4, *SHAPE[1:]), generator=generator)
    schedule = {"sigma": 3.0, "sigma_next": 2.0, "eta": 0.8, "prediction_type": "v_prediction"}
    step = implementation.hybrid_euler_step(
        sample.to(device), model_output.to(device), **schedule, noise=noise.to(device)
    )
    mean, sigma_up = independent_mean(sample.double(), model_output.double(), **schedule)
    density = torch.distributions.Normal(mean.unsqueeze(1), sigma_up).log_prob(step.prev_sample.double().cpu())
    assert relative_error(step.log_prob, density.mean((-3, -2, -1))) <= 1e-5


@implementations
@pytest.mark.parametrize("normalize_std", [True, False])
@pytest.mark.parametrize("clip", [None, 0.8])
@pytest.mark.parametrize("shape", [(3, 5), (3, 5, 4)])
def test_advantages_of_a_numpy_loop(device, implementation, normalize_std, clip, shape):
    rewards = np.random.default_rng(0).normal(-0.5, 0.3, shape)
    by_frame = rewards.reshape(*shape[:2], -1)  # [B, G, F]
    expected = np.empty_like(by_frame)
    for clip_index in range(shape[0]):
        for frame in range(by_frame.shape[2]):
            group = by_frame[clip_index, :, frame]
            advantage = group - np.mean(group)
            if normalize_std:
                advantage = advantage / (np.std(group, ddof=1) + 1e-8)
            expected[clip_index, :, frame] = advantage if clip is None else np.clip(advantage, -clip, clip)
    actual = implementation.group_advantages(
        torch.tensor(rewards, dtype=torch.float32, device=device), clip=clip, normalize_std=normalize_std
    )
    assert relative_error(actual, torch.from_numpy(expected.reshape(shape))) <= 1e-5


@implementations
def test_reward_of_torch_functions(device, implementation):
    generator = torch.Generator().manual_seed(4)
    target = torch.randn(SHAPE, generator=generator)
    pred = target.unsqueeze(1) + 0.5 * torch.randn((2, 4, *SHAPE[1:]), generator=generator)
    result = implementation.latent_reward(pred.to(device), target.to(device), l1_weight=0.7, cosine_weight=1.3)
    for clip in range(2):
        for generation in range(4):
            for frame in range(3):
                one, other = pred[clip, generation, frame].flatten(), target[clip, frame].flatten()
                l1 = torch.nn.functional.l1_loss(one, other)
                cosine = torch.nn.functional.cosine_similarity(one, other, dim=0)
                at = (clip, generation, frame)
                assert float(result.l1[at]) == pytest.approx(float(l1), rel=1e-5)
                assert float(result.cosine[at]) == pytest.approx(float(cosine), rel=1e-5)
                assert float(result.reward[at]) == pytest.approx(float(1.3 * cosine - 0.7 * l1), abs=1e-5)


def test_scalings_keep_unit_variance():
    """Table 1 of EDM with a data deviation of one: v-prediction is what keeps the scale of its target."""
    for sigma in (0.002, 0.5, 80.0, 700.0):
        c_skip, c_out = denoiser_scalings(sigma, "v_prediction")
        assert c_skip**2 * (sigma**2 + 1) + c_out**2 == pytest.approx(1, rel=1e-12)
