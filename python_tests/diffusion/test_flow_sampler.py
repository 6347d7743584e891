"""The sampler on a rectified flow: whole trajectories of diffusers' schedulers, and EDM's in other units."""

import math

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

from vampo_core.diffusion import EulerHybridSampler
from vampo_core.diffusion.process import EDM, Flow
from vampo_core.diffusion.sigmas import make_sigmas

ROWS, G, FRAMES = 3, 4, (2, 4, 3, 5)
SHIFT = 5.0
FLOW = {
    "process": Flow(), "prediction_type": "flow_prediction", "schedule": "flow", "flow_shift": SHIFT,
    "sigma_max": 1 - 1e-6,  # as UniPC has it
    "sigma_min": SHIFT * 1e-3 / (1 + (SHIFT - 1) * 1e-3),
}  # fmt: skip


def denoise(sample, sigma, clip_index):
    """A smooth, nonlinear stand-in for a denoiser."""
    return torch.tanh(0.7 * sample + 0.3 * sigma), None


def diffusers_scheduler(solver):
    options = {"use_flow_sigmas": True, "flow_shift": SHIFT, "prediction_type": "flow_prediction"}
    if solver == "unipc":
        return UniPCMultistepScheduler(solver_type="bh2", final_sigmas_type="zero", **options)
    return DPMSolverMultistepScheduler(solver_type="midpoint", final_sigmas_type="zero", **options)


def run(scheduler, sigmas, sample):
    """A diffusers scheduler at given noise levels."""
    scheduler.set_timesteps(len(sigmas) - 1)
    scheduler.sigmas = torch.tensor(sigmas, dtype=torch.float64)
    scheduler.set_begin_index(0)
    for timestep, sigma in zip(scheduler.timesteps, sigmas[:-1], strict=True):
        sample = scheduler.step(denoise(sample, sigma, None)[0], timestep, sample).prev_sample
    return sample


@pytest.mark.parametrize("solver", ["dpm++2m", "unipc"])
@pytest.mark.parametrize("num_steps", [2, 3, 8, 14])
def test_multistep_sampling_is_that_of_diffusers(solver, num_steps):
    sampler = EulerHybridSampler(num_inference_steps=num_steps, solver=solver, stochastic_steps=(), **FLOW)
    noise = sampler.initial_noise((ROWS, *FRAMES), seed=1, dtype=torch.float64)
    theirs = run(diffusers_scheduler(solver), sampler.sigmas, noise)
    torch.testing.assert_close(sampler.sample(noise, denoise), theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("num_steps", [1, 2, 8, 30])
def test_noise_levels_are_those_of_unipc(num_steps):
    scheduler = diffusers_scheduler("unipc")
    scheduler.set_timesteps(num_steps)
    sigmas = EulerHybridSampler(num_inference_steps=num_steps, stochastic_steps=(), **FLOW | {"sigma_max": 1.0}).sigmas
    assert sigmas == pytest.approx(scheduler.sigmas.tolist(), abs=2e-6)  # it moves the first one by 1e-6


@pytest.mark.parametrize("num_steps", [1, 4, 10])
def test_euler_sampling_is_that_of_diffusers(num_steps):
    sampler = EulerHybridSampler(num_inference_steps=num_steps, stochastic_steps=(), **FLOW | {"sigma_max": 1.0})
    scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0)
    noise = sampler.initial_noise((ROWS, *FRAMES), seed=1)
    assert float(noise.std()) == pytest.approx(1, abs=0.1)  # pure noise, whatever the schedule
    scheduler.set_timesteps(sigmas=list(sampler.sigmas[:-1]))
    theirs = noise
    for timestep, sigma in zip(scheduler.timesteps, sampler.sigmas[:-1], strict=True):
        theirs = scheduler.step(denoise(theirs, sigma, None)[0], timestep, theirs).prev_sample
    torch.testing.assert_close(sampler.sample(noise, denoise), theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("solver", ["dpm++2m", "unipc"])
def test_multistep_solvers_begin_at_pure_noise(solver):
    """Its log-SNR is infinite: nothing can be extrapolated from there."""
    exact, near = (
        EulerHybridSampler(num_inference_steps=8, solver=solver, stochastic_steps=(), **FLOW | {"sigma_max": sigma})
        for sigma in (1.0, 1 - 1e-12)
    )
    noise = exact.initial_noise((ROWS, *FRAMES), seed=1, dtype=torch.float64)
    assert exact.sample(noise, denoise).isfinite().all()
    torch.testing.assert_close(exact.sample(noise, denoise), near.sample(noise, denoise), rtol=0, atol=2e-2)


@pytest.mark.parametrize("solver", ["euler", "dpm++2m", "unipc"])
@pytest.mark.parametrize("eta", [0.6, 1.0])
def test_a_rollout_is_edms_in_other_units(solver, eta):
    """Under sigma = s / (1 - s), with samples divided by 1 - s, whatever the noise of the stochastic step."""
    steps = {"num_inference_steps": 6, "solver": solver, "stochastic_steps": (1,), "eta": eta}
    flow = EulerHybridSampler(**steps, **FLOW | {"sigma_max": 0.99})
    levels = [s / (1 - s) for s in flow.sigmas]
    edm = EulerHybridSampler(**steps, prediction_type="epsilon", sigma_max=levels[0], unit_variance_start=False)
    edm.__dict__["sigmas"] = tuple(levels)  # the cached property
    assert isinstance(edm.process, EDM)

    def epsilon(sample, sigma, clip_index):
        s = sigma / (1 + sigma)
        x = sample * (1 - s)
        return x + (1 - s) * denoise(x, s, None)[0], None

    noise = torch.randn((ROWS, *FRAMES), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    here = flow.rollout(noise, denoise, num_generations=G, seed=3)
    there = edm.rollout(noise / (1 - flow.sigmas[0]), epsilon, num_generations=G, seed=3)
    torch.testing.assert_close(here.latents, there.latents, rtol=1e-9, atol=1e-9)
    scale = math.log(1 - flow.sigmas[2])  # a density of scaled samples is larger by the scale
    torch.testing.assert_close(here.steps[0].log_prob, there.steps[0].log_prob - scale, rtol=1e-9, atol=1e-9)


def test_a_shorter_tail_keeps_the_schedules_spacing():
    sampler = EulerHybridSampler(num_inference_steps=8, tail_steps=3, **FLOW)
    full = EulerHybridSampler(num_inference_steps=8, **FLOW)
    assert sampler.sigmas[:2] == full.sigmas[:2] and len(sampler.sigmas) == 5 and sampler.sigmas[-1] == 0
    u = [s / (SHIFT - (SHIFT - 1) * s) for s in (*sampler.sigmas[1:4], FLOW["sigma_min"])]
    assert u[0] - u[1] == pytest.approx(u[1] - u[2]) and u[2] - u[3] == pytest.approx(u[1] - u[2])


def test_training_levels_are_logit_normal_and_shifted():
    draws = torch.tensor([-1.0, 0.0, 2.0])
    u = torch.sigmoid(0.3 + 0.8 * draws)
    shifted = SHIFT * u / (1 + (SHIFT - 1) * u)
    torch.testing.assert_close(Flow().training_sigmas(draws, 0.3 + math.log(SHIFT), 0.8), shifted)
    assert Flow().model_time(0.25) == 250


def test_noise_and_data_are_interpolated():
    data, noise, sigma = torch.randn(3, 2, 4), torch.randn(3, 2, 4), torch.tensor([0.0, 0.4, 1.0])
    expected = torch.stack([(1 - s) * x + s * z for s, x, z in zip(sigma, data, noise, strict=True)])
    torch.testing.assert_close(Flow().noisy(data, noise, sigma), expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prediction_type": "v_prediction"}, r"prediction_type is 'v_prediction' with process=Flow\(\)"),
        ({"process": EDM()}, r"prediction_type is 'flow_prediction', expected process=Flow\(\)"),
        ({"sigma_max": 80.0}, "sigma is 80.0 with process=Flow"),
        ({"flow_shift": 0.0}, "flow_shift is 0.0, expected a number above 0"),
    ],
)
def test_what_does_not_belong_together_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        EulerHybridSampler(**FLOW | changes)


def test_a_flow_schedule_ends_at_one():
    with pytest.raises(ValueError, match=r"sigma_max is 2.0 with schedule = 'flow', expected at most 1"):
        make_sigmas(4, sigma_min=0.1, sigma_max=2.0, schedule="flow")
