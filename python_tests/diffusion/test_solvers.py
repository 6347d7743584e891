"""Multistep solvers against diffusers' schedulers, and their order of convergence."""

import dataclasses
import math

import pytest
import torch
from diffusers import EDMDPMSolverMultistepScheduler, UniPCMultistepScheduler

from vampo_core.diffusion import EulerHybridSampler
from vampo_core.diffusion.solvers import SOLVERS

ROWS, G, FRAMES = 3, 4, (2, 4, 3, 5)
MULTISTEP = ["dpm++2m", "unipc"]


def denoise(sample, sigma, clip_index):
    """A smooth, nonlinear stand-in for a denoiser."""
    return torch.tanh(0.4 * sample / math.sqrt(sigma * sigma + 1) + 0.1 * math.log(sigma)), None


def guided_denoise(sample, sigma, clip_index):
    output, _ = denoise(sample, sigma, clip_index)
    return output, 0.5 * output - 0.1 * sample / math.sqrt(sigma * sigma + 1)


def run_scheduler(scheduler, sigmas, sample, *, variance_preserving):
    """A diffusers scheduler at given noise levels, on samples of ``x0 + sigma * noise``."""
    scheduler.set_timesteps(len(sigmas) - 1)
    scheduler.sigmas = torch.tensor(sigmas, dtype=torch.float64)
    scheduler.timesteps = torch.arange(len(sigmas) - 1)
    scheduler.set_begin_index(0)
    for index, sigma in enumerate(sigmas[:-1]):
        scale = [1 / math.sqrt(s * s + 1) if variance_preserving else 1.0 for s in sigmas[index : index + 2]]
        output = denoise(sample, sigma, None)[0]
        sample = scheduler.step(output, scheduler.timesteps[index], sample * scale[0]).prev_sample / scale[1]
    return sample


def scheduler_for(solver, prediction_type, sampler):
    if solver == "unipc":
        return UniPCMultistepScheduler(
            solver_type="bh2", prediction_type=prediction_type, use_karras_sigmas=True, final_sigmas_type="zero"
        )
    return EDMDPMSolverMultistepScheduler(
        sigma_min=sampler.sigma_min, sigma_max=sampler.sigma_max, sigma_data=1.0, prediction_type=prediction_type
    )


@pytest.mark.parametrize(
    ("solver", "prediction_type"),
    # diffusers' EDM schedulers know v_prediction as ours; their epsilon is EDM's F
    [("dpm++2m", "v_prediction"), *(("unipc", kind) for kind in ("v_prediction", "epsilon", "sample"))],
)
@pytest.mark.parametrize("num_steps", [1, 2, 3, 8, 20])
def test_sampling_is_that_of_diffusers(solver, prediction_type, num_steps):
    sampler = EulerHybridSampler(
        num_inference_steps=num_steps,
        prediction_type=prediction_type,
        solver=solver,
        stochastic_steps=(),
        sigma_min=0.02,
    )
    noise = sampler.initial_noise((ROWS, *FRAMES), seed=1, dtype=torch.float64)
    scheduler = scheduler_for(solver, prediction_type, sampler)
    theirs = run_scheduler(scheduler, sampler.sigmas, noise, variance_preserving=solver == "unipc")
    torch.testing.assert_close(sampler.sample(noise, denoise), theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("solver", MULTISTEP)
def test_history_begins_at_the_split(solver):
    sampler = EulerHybridSampler(num_inference_steps=7, solver=solver, stochastic_steps=(2,), sigma_min=0.02)
    noise = sampler.initial_noise((ROWS, *FRAMES), seed=1, dtype=torch.float64)
    rollout = sampler.rollout(noise, denoise, num_generations=G, seed=3, chunk_size=5)
    (drawn,) = rollout.steps
    scheduler = scheduler_for(solver, "v_prediction", sampler)
    flat = drawn.prev_sample.flatten(0, 1)
    tail = run_scheduler(scheduler, sampler.sigmas[3:], flat, variance_preserving=solver == "unipc")
    torch.testing.assert_close(rollout.latents.flatten(0, 1), tail, rtol=1e-5, atol=1e-5)
    # the shared steps before the split are a run of their own, cut off where the policy acts
    before = run_scheduler(
        scheduler_for(solver, "v_prediction", sampler),
        (*sampler.sigmas[:3], 0.0),
        noise,
        variance_preserving=solver == "unipc",
    )
    # the scheduler's last step goes to noise level 0: the estimate of the clean latents where the group splits
    c_skip, c_out = sampler.process.scalings(sampler.sigmas[2], "v_prediction")
    estimate = c_skip * drawn.sample + c_out * denoise(drawn.sample, sampler.sigmas[2], None)[0]
    torch.testing.assert_close(estimate, before, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("solver", MULTISTEP)
def test_history_ends_at_a_later_stochastic_step(solver):
    sampler = EulerHybridSampler(num_inference_steps=8, solver=solver, stochastic_steps=(0, 3), sigma_min=0.02)
    noise = sampler.initial_noise((ROWS, *FRAMES), seed=1, dtype=torch.float64)
    rollout = sampler.rollout(noise, denoise, num_generations=G, seed=3)
    later = rollout.steps[1].prev_sample.flatten(0, 1)
    tail = run_scheduler(
        scheduler_for(solver, "v_prediction", sampler),
        sampler.sigmas[4:],
        later,
        variance_preserving=solver == "unipc",
    )
    torch.testing.assert_close(rollout.latents.flatten(0, 1), tail, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("solver", SOLVERS)
def test_more_steps_converge_and_second_order_converges_faster(solver):
    def end(num_steps):
        sampler = EulerHybridSampler(
            num_inference_steps=num_steps, solver=solver, stochastic_steps=(), sigma_min=0.5, sigma_max=8.0
        )
        noise = sampler.initial_noise((ROWS, *FRAMES), seed=1, dtype=torch.float64)
        # up to sigma_min: the last step is Euler's for every solver
        return _until_sigma_min(sampler, noise)

    exact = end(2001)
    errors = [float((end(n) - exact).abs().mean()) for n in (41, 81)]
    assert errors[1] < errors[0] * (0.6 if solver == "euler" else 0.35)


def _until_sigma_min(sampler, sample):
    step = SOLVERS[sampler.solver](sampler)
    for index, sigma in enumerate(sampler.sigmas[:-2]):
        sample = step(sample, denoise(sample, sigma, None)[0], None, index, out=torch.empty_like(sample))
    return sample


@pytest.mark.parametrize("solver", SOLVERS)
def test_guided_outputs_and_buffers(solver):
    """Guidance in the solver is guidance before it; working in one buffer changes nothing."""
    sampler = EulerHybridSampler(num_inference_steps=6, solver=solver, guidance_scale=3.0, stochastic_steps=())
    noise = sampler.initial_noise((ROWS, *FRAMES), seed=1, dtype=torch.float64)

    def mixed(sample, sigma, clip_index):
        output, uncond = guided_denoise(sample, sigma, clip_index)
        scales = torch.linspace(1.0, 3.0, FRAMES[0]).view(1, -1, 1, 1, 1).to(output)
        return uncond + scales * (output - uncond), None

    plain = dataclasses.replace(sampler, guidance_scale=1.0)
    torch.testing.assert_close(sampler.sample(noise, guided_denoise), plain.sample(noise, mixed), rtol=1e-6, atol=1e-6)
    kept, sample, step = noise.clone(), noise, SOLVERS[solver](plain)
    for index, sigma in enumerate(plain.sigmas[:-1]):
        output, _ = mixed(sample, sigma, None)
        sample = step(sample, output, None, index, out=torch.empty_like(sample))
    assert torch.equal(noise, kept)
    torch.testing.assert_close(plain.sample(noise, mixed), sample, rtol=0, atol=0)


@pytest.mark.parametrize("schedule", ["karras", "exponential", "linear"])
@pytest.mark.parametrize("k", [0, 2])
def test_a_shorter_tail_keeps_the_levels_before_the_split_and_spaces_the_rest_as_the_schedule(schedule, k):
    full = EulerHybridSampler(num_inference_steps=10, schedule=schedule, stochastic_steps=(k,), sigma_min=0.02)
    left = 10 - k - 1
    assert dataclasses.replace(full, tail_steps=left).sigmas == full.sigmas
    short = dataclasses.replace(full, tail_steps=3)
    assert short.num_steps == k + 1 + 3
    assert short.sigmas[: k + 2] == full.sigmas[: k + 2], "where the policy acts nothing changes"
    assert short.sigmas[-2] == pytest.approx(0.02)
    position = {"karras": lambda s: s ** (1 / 7), "exponential": math.log, "linear": lambda s: s}[schedule]
    places = [position(sigma) for sigma in short.sigmas[k + 1 : -1]]
    assert places[1] - places[0] == pytest.approx(places[2] - places[1])
    assert dataclasses.replace(full, tail_steps=1).sigmas == (*full.sigmas[: k + 2], 0.0)


def test_the_draw_and_its_log_probability_do_not_depend_on_the_tail():
    full = EulerHybridSampler(num_inference_steps=8, stochastic_steps=(1,), solver="unipc")
    cheap = dataclasses.replace(full, tail_steps=2)
    noise = full.initial_noise((ROWS, *FRAMES), seed=1)
    ours, theirs = (s.rollout(noise, denoise, num_generations=G, seed=3) for s in (cheap, full))
    assert torch.equal(ours.steps[0].prev_sample, theirs.steps[0].prev_sample)
    assert torch.equal(ours.steps[0].log_prob, theirs.steps[0].log_prob)
    assert not torch.equal(ours.latents, theirs.latents)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tail_steps": 0}, "tail_steps is 0, expected at least 1"),
        ({"tail_steps": 8}, "tail_steps is 8, expected at most 7: what 8 steps leave behind step 0"),
        ({"tail_steps": 2, "stochastic_steps": ()}, r"tail_steps is 2 with stochastic_steps = \[\], expected None"),
        ({"tail_steps": 3, "stochastic_steps": (0, 2)}, r"tail_steps is 3 with stochastic_steps = \[0, 2\]"),
        ({"tail_steps": 1, "stochastic_steps": (9,)}, r"stochastic_steps is \(9,\), expected indices of at most"),
        ({"solver": ["euler"]}, r"solver is \['euler'\], expected one of"),
        ({"guidance_interval": (1.0,)}, r"guidance_interval is \(1.0,\), expected \[low, high\]"),
        ({"guidance_interval": (2.0, 1.0)}, r"guidance_interval is \[2.0, 1.0\], expected low <= high"),
        ({"guidance_interval": (-1.0, 1.0)}, "guidance_interval is -1.0"),
    ],
)
def test_bad_settings(arguments, message):
    with pytest.raises(ValueError, match=message):
        EulerHybridSampler(num_inference_steps=8, **arguments)


def test_guidance_acts_in_its_interval_only():
    interval = EulerHybridSampler(num_inference_steps=6, guidance_scale=3.0, guidance_interval=(0.5, 20.0))
    everywhere = dataclasses.replace(interval, guidance_interval=None)
    inside = [0.5 <= sigma <= 20.0 for sigma in interval.sigmas[:-1]]
    assert True in inside
    assert not all(inside)
    assert [interval.guides(sigma) for sigma in interval.sigmas[:-1]] == inside
    noise = interval.initial_noise((ROWS, *FRAMES), seed=1)

    def by_level(sample, sigma, clip_index):
        output, uncond = guided_denoise(sample, sigma, clip_index)
        return output, uncond if interval.guides(sigma) else None

    def by_hand(sample, sigma, clip_index):  # outside the interval both halves are alike, which guidance leaves as is
        output, uncond = guided_denoise(sample, sigma, clip_index)
        return output, uncond if 0.5 <= sigma <= 20.0 else output

    for seed in (None, 3):
        ours = interval.sample(noise, by_level, seed=seed)
        torch.testing.assert_close(ours, everywhere.sample(noise, by_hand, seed=seed), rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match=r"an unconditional output at noise level 80 with guidance_scale = 3.0"):
        interval.sample(noise, guided_denoise)
    assert not dataclasses.replace(interval, guidance_interval=(90.0, 100.0)).uses_guidance


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("guided", [False, True])
def test_the_differentiable_tail_is_the_tail_with_its_derivative(solver, guided):
    sampler = EulerHybridSampler(
        num_inference_steps=5, stochastic_steps=(1,), solver=solver, sigma_min=0.1, sigma_max=5.0,
        guidance_scale=2.0 if guided else 1.0,
    )  # fmt: skip
    denoiser = guided_denoise if guided else denoise
    generator = torch.Generator().manual_seed(0)
    draws = torch.randn(2, 3, *FRAMES, generator=generator, dtype=torch.float64)
    plain = sampler.tail(draws, denoiser).latents
    whole = sampler.differentiable_tail(draws.clone().requires_grad_(), denoiser)
    torch.testing.assert_close(whole.detach(), plain, rtol=1e-9, atol=1e-9)
    assert whole.requires_grad

    def short(sample):
        return sampler.differentiable_tail(sample, denoiser)

    small = draws[:1, :1, :, :1, :2, :2].clone().requires_grad_()
    assert torch.autograd.gradcheck(short, (small,))
    leaves = [draws.clone().requires_grad_() for _ in range(2)]
    for leaf, chunk_size in zip(leaves, (None, 2), strict=True):
        sampler.differentiable_tail(leaf, denoiser, chunk_size=chunk_size).square().sum().backward()
    torch.testing.assert_close(leaves[0].grad, leaves[1].grad, rtol=1e-9, atol=1e-9)


def test_a_differentiable_tail_draws_nothing():
    sampler = EulerHybridSampler(num_inference_steps=5, stochastic_steps=(0, 2))
    with pytest.raises(ValueError, match=r"stochastic_steps is \(0, 2\), expected one"):
        sampler.differentiable_tail(torch.zeros(1, 1, *FRAMES), denoise)
