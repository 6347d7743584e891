"""EulerHybridSampler against diffusers' schedulers, the operators' reference and hand-written loops."""

import dataclasses
import itertools
import math

import pytest
import torch
from diffusers import EulerDiscreteScheduler

from vampo_core.diffusion import EulerHybridSampler, make_sigmas
from vampo_core.diffusion.solvers import SOLVERS, euler
from vampo_core.diffusion.streams import INITIAL_NOISE, STEP, STREAMS, Stream, check_distinct, stream_seed
from vampo_core.ops import philox_normal, reference

B, G, FRAMES = 3, 4, (2, 4, 3, 5)


def make_denoise(guided: bool = False):
    """A nonlinear stand-in for a denoiser whose every clip behaves differently."""

    def denoise(sample, sigma, clip_index):
        clips = torch.arange(sample.shape[0]) if clip_index is None else clip_index
        weight = (0.3 + 0.2 * clips).view(-1, 1, 1, 1, 1).to(sample)
        scaled = sample / math.sqrt(sigma * sigma + 1)
        output = torch.tanh(scaled * weight + 0.1 * math.log(sigma))
        return output, (0.5 * output - 0.1 * scaled if guided else None)

    return denoise


def noise_for(sampler, **arguments):
    return sampler.initial_noise((B, *FRAMES), seed=11, **arguments)


@pytest.mark.parametrize("schedule", ["karras", "exponential"])
@pytest.mark.parametrize("num_steps", [1, 2, 7])
def test_sigmas_are_those_of_diffusers(schedule, num_steps):
    scheduler = EulerDiscreteScheduler(
        sigma_min=0.02,
        sigma_max=700.0,
        use_karras_sigmas=schedule == "karras",
        use_exponential_sigmas=schedule == "exponential",
    )
    scheduler.set_timesteps(num_steps)
    sigmas = make_sigmas(num_steps, sigma_min=0.02, sigma_max=700.0, schedule=schedule)
    torch.testing.assert_close(torch.tensor(sigmas), scheduler.sigmas, rtol=1e-6, atol=0)


def test_linear_sigmas_and_rho():
    assert make_sigmas(3, sigma_min=1, sigma_max=5, schedule="linear") == (5.0, 3.0, 1.0, 0.0)
    assert make_sigmas(3, sigma_min=1, sigma_max=5, rho=1) == (5.0, 3.0, 1.0, 0.0)
    steep = make_sigmas(4, sigma_min=0.1, sigma_max=10, rho=9)
    assert all(a > b for a, b in itertools.pairwise(steep))
    assert steep[1] < make_sigmas(4, sigma_min=0.1, sigma_max=10, rho=3)[1]


@pytest.mark.parametrize("prediction_type", ["v_prediction", "epsilon", "sample"])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_sampling_is_that_of_euler_discrete(prediction_type, spacing):
    scheduler = EulerDiscreteScheduler(
        prediction_type=prediction_type,
        timestep_type="continuous" if prediction_type == "v_prediction" else "discrete",
        timestep_spacing=spacing,
        use_karras_sigmas=True,
        sigma_min=0.002,
        sigma_max=700.0,
    )
    scheduler.set_timesteps(6)
    scheduler.set_begin_index(0)  # sigma_max lies outside the training table, whose timesteps then repeat
    sampler = EulerHybridSampler(
        num_inference_steps=6,
        sigma_max=700.0,
        prediction_type=prediction_type,
        unit_variance_start=spacing == "leading",
    )
    assert sampler.init_noise_sigma == pytest.approx(float(scheduler.init_noise_sigma), rel=1e-6)
    denoise = make_denoise()
    noise = noise_for(sampler)
    latents = noise
    for sigma, timestep in zip(scheduler.sigmas[:-1], scheduler.timesteps, strict=True):
        scheduler.scale_model_input(latents, timestep)
        latents = scheduler.step(denoise(latents, float(sigma), None)[0], timestep, latents).prev_sample
    torch.testing.assert_close(sampler.sample(noise, denoise), latents, rtol=1e-4, atol=1e-4)


def test_two_phases_are_the_hand_written_loop():
    sampler = EulerHybridSampler(num_inference_steps=5)
    denoise, noise = make_denoise(), noise_for(sampler)
    output, _ = denoise(noise, sampler.first_sigma, None)
    step = sampler.first_step(noise, output, num_generations=G, seed=3)
    kept = step.prev_sample.clone()
    latents = sampler.tail(step.prev_sample, denoise, chunk_size=5).latents
    assert torch.equal(step.prev_sample, kept)

    draws = philox_normal((B, G, *FRAMES), seed=stream_seed(3, STEP, 0))
    first = reference.hybrid_euler_step(
        noise, output, sigma=sampler.sigmas[0], sigma_next=sampler.sigmas[1], eta=1.0, noise=draws
    )
    torch.testing.assert_close(step.prev_sample, first.prev_sample, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(step.log_prob, first.log_prob, rtol=1e-5, atol=1e-5)
    for b in range(B):
        for g in range(G):
            x = step.prev_sample[b, g].unsqueeze(0)
            for sigma, sigma_next in zip(sampler.sigmas[1:-1], sampler.sigmas[2:], strict=True):
                model_output = denoise(x, sigma, torch.tensor([b]))[0]
                x = reference.hybrid_euler_step(x, model_output, sigma=sigma, sigma_next=sigma_next).prev_sample
            torch.testing.assert_close(latents[b, g], x[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("stochastic_steps", [(0,), (2,), (0, 1, 2, 3), (1, 3)])
def test_rollout_is_prefix_first_step_and_tail(stochastic_steps):
    sampler = EulerHybridSampler(num_inference_steps=5, stochastic_steps=stochastic_steps)
    denoise, noise = make_denoise(), noise_for(sampler)
    assert noise.shape == (B, *FRAMES)
    rollout = sampler.rollout(noise, denoise, num_generations=G, seed=7, chunk_size=5)
    assert [step.step_index for step in rollout.steps] == list(stochastic_steps)

    sample = sampler.prefix(noise, denoise)
    output = denoise(sample, sampler.first_sigma, None)[0]
    first = sampler.first_step(sample, output, num_generations=G, seed=7)
    tail = sampler.tail(first.prev_sample, denoise, seed=7)
    assert torch.equal(rollout.steps[0].sample, sample)
    assert torch.equal(rollout.steps[0].prev_sample, first.prev_sample)
    assert torch.equal(rollout.steps[0].log_prob, first.log_prob)
    assert torch.equal(rollout.latents, tail.latents)
    for ours, theirs in zip(rollout.steps[1:], tail.steps, strict=True):
        assert torch.equal(ours.prev_sample, theirs.prev_sample)


@pytest.mark.parametrize("stochastic_steps", [(0,), (0, 1, 2), (1, 3)])
def test_recorded_log_probs_are_those_recomputed_from_the_record(stochastic_steps):
    sampler = EulerHybridSampler(
        num_inference_steps=5,
        stochastic_steps=stochastic_steps,
        guidance_scale=3.0,
    )
    denoise = make_denoise(guided=True)
    rollout = sampler.rollout(noise_for(sampler), denoise, num_generations=G, seed=7)
    for step in rollout.steps:
        rows, clips = step.sample, None
        if step.sample.ndim == 6:
            rows, clips = step.sample.flatten(0, 1), torch.arange(B).repeat_interleave(G)
        output, uncond = denoise(rows, step.sigma, clips)
        if step.sample.ndim == 6:
            output, uncond = output.unflatten(0, (B, G)), uncond.unflatten(0, (B, G))
        log_prob = sampler.log_prob(
            step.prev_sample, step.sample, output, step_index=step.step_index, model_output_uncond=uncond
        )
        assert log_prob.shape == (B, G, FRAMES[0])
        torch.testing.assert_close(log_prob, step.log_prob, rtol=1e-4, atol=1e-4)
    # each stochastic step starts where the one before it, or the ODE between them, ended
    if stochastic_steps[:2] == (0, 1):
        assert torch.equal(rollout.steps[1].sample, rollout.steps[0].prev_sample)


@pytest.mark.parametrize("stochastic_steps", [(0,), (1, 2)])
def test_parts_of_a_batch_give_what_the_whole_gives(stochastic_steps):
    sampler = EulerHybridSampler(num_inference_steps=4, stochastic_steps=stochastic_steps)
    denoise = make_denoise()
    whole = sampler.rollout(noise_for(sampler), denoise, num_generations=G, seed=7)
    for clip in range(B):
        noise = sampler.initial_noise((1, *FRAMES), seed=11, first_clip=clip)

        def denoise_clip(sample, sigma, clip_index, clip=clip):
            return denoise(sample, sigma, clip_index + clip)

        part = sampler.rollout(noise, denoise_clip, num_generations=G, seed=7, first_clip=clip, chunk_size=3)
        torch.testing.assert_close(part.latents[0], whole.latents[clip], rtol=1e-6, atol=1e-6)
        for ours, theirs in zip(part.steps, whole.steps, strict=True):
            torch.testing.assert_close(ours.log_prob[0], theirs.log_prob[clip], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("chunk_size", [1, 5, 12, 100])
def test_chunks_do_not_change_the_result(chunk_size):
    sampler = EulerHybridSampler(num_inference_steps=4, stochastic_steps=(0, 1))
    denoise, noise = make_denoise(), noise_for(sampler)
    sizes = []

    def counting(sample, sigma, clip_index):
        sizes.append(sample.shape[0])
        return denoise(sample, sigma, clip_index)

    whole = sampler.rollout(noise, denoise, num_generations=G, seed=7)
    part = sampler.rollout(noise, counting, num_generations=G, seed=7, chunk_size=chunk_size)
    torch.testing.assert_close(part.latents, whole.latents, rtol=1e-6, atol=1e-6)
    assert max(sizes) <= chunk_size


def test_results_may_enter_a_loss():
    sampler = EulerHybridSampler(num_inference_steps=4, stochastic_steps=(1, 2))
    denoise = make_denoise()
    rollout = sampler.rollout(noise_for(sampler), denoise, num_generations=G, seed=7)
    weight = torch.ones((), requires_grad=True)
    tensors = [rollout.latents]
    for step in rollout.steps:
        tensors += [step.sample, step.prev_sample, step.log_prob]
    for tensor in tensors:
        assert not tensor.is_inference()
        assert not tensor.requires_grad
        (tensor * weight).sum().backward()


def test_gradient_is_that_of_the_gaussian():
    sampler = EulerHybridSampler(num_inference_steps=4)
    noise = noise_for(sampler)
    output = make_denoise()(noise, sampler.first_sigma, None)[0].requires_grad_()
    step = sampler.first_step(noise, output, num_generations=G, seed=3)
    assert not step.log_prob.requires_grad
    log_prob = sampler.log_prob(step.prev_sample, noise, output)
    log_prob.sum().backward()
    a, b, sigma_up = sampler.coefficients(0)
    mean = a * noise + b * output.detach()
    score = (step.prev_sample - mean.unsqueeze(1)).sum(1) * b / sigma_up**2 / math.prod(FRAMES[1:])
    torch.testing.assert_close(output.grad, score, rtol=1e-3, atol=1e-5)


def test_initial_noise():
    sampler = EulerHybridSampler(num_inference_steps=4, sigma_max=80.0)
    shape = (2, 2, 4, 16, 16)
    noise = sampler.initial_noise(shape, seed=5)
    assert noise.std() == pytest.approx(math.sqrt(80**2 + 1), rel=0.05)
    unit = philox_normal((2, 1, *shape[1:]), seed=stream_seed(5, INITIAL_NOISE))[:, 0]
    torch.testing.assert_close(noise, math.sqrt(80**2 + 1) * unit, rtol=1e-6, atol=0)
    assert torch.equal(noise, sampler.initial_noise(shape, seed=5))
    assert not torch.equal(noise, sampler.initial_noise(shape, seed=6))
    # the noise of the first step is another stream of the same seed
    step = sampler.first_step(noise, torch.zeros_like(noise), num_generations=1, seed=5)
    a, _, sigma_up = sampler.coefficients(0)
    drawn = (step.prev_sample[:, 0] - a * noise) / sigma_up
    correlation = torch.corrcoef(torch.stack([drawn.flatten(), noise.flatten()]))[0, 1]
    assert abs(correlation) < 0.1


def test_streams_of_a_seed_differ():
    seeds = {stream_seed(seed, STEP, index) for seed in range(50) for index in range(50)}
    assert len(seeds) == 2500
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_named_streams_share_no_number():
    check_distinct(STREAMS)
    with pytest.raises(ValueError, match="streams 'initial noise of a sampling run' and 'another' share numbers"):
        check_distinct((*STREAMS, Stream("another", INITIAL_NOISE.first)))
    with pytest.raises(ValueError, match="index is 1"):
        stream_seed(0, INITIAL_NOISE, 1)


def test_a_solver_keeps_its_history_for_each_chunk(monkeypatch):
    """A solver joins by one line in the registry; each chunk of rows gets a solver of its own, from the split on."""
    begun = []

    def noting(settings):
        indices = []
        begun.append(indices)
        step = euler(settings)

        def solve(sample, output, uncond, index, *, out):
            indices.append(index)
            return step(sample, output, uncond, index, out=out)

        return solve

    monkeypatch.setitem(SOLVERS, "noting", noting)
    sampler = EulerHybridSampler(num_inference_steps=5, stochastic_steps=(1,))
    denoise, noise = make_denoise(), noise_for(sampler)
    first = sampler.first_step(noise, torch.zeros_like(noise), num_generations=G, seed=3)
    tail = dataclasses.replace(sampler, solver="noting").tail(first.prev_sample, denoise, chunk_size=5)
    assert begun == [[2, 3, 4]] * math.ceil(B * G / 5)
    assert torch.equal(tail.latents, sampler.tail(first.prev_sample, denoise, chunk_size=5).latents)
    with pytest.raises(ValueError, match="solver is 'heun', expected one of euler"):
        EulerHybridSampler(solver="heun")


def test_guidance_is_linear_over_the_frames():
    sampler = EulerHybridSampler(num_inference_steps=4, guidance_scale=3.0)
    noise = noise_for(sampler)
    output, uncond = make_denoise(guided=True)(noise, sampler.first_sigma, None)
    scales = torch.linspace(1.0, 3.0, FRAMES[0]).view(1, -1, 1, 1, 1)
    guided = uncond + scales * (output - uncond)
    plain = dataclasses.replace(sampler, guidance_scale=1.0)
    ours = sampler.first_step(noise, output, model_output_uncond=uncond, num_generations=G, seed=3)
    theirs = plain.first_step(noise, guided, num_generations=G, seed=3)
    torch.testing.assert_close(ours.prev_sample, theirs.prev_sample, rtol=1e-5, atol=1e-4)
    constant = dataclasses.replace(sampler, min_guidance_scale=3.0)
    assert constant.guidance(noise, uncond, 1.0).tolist() == [3.0] * FRAMES[0]


def test_sample_draws_with_a_seed_alone():
    sampler = EulerHybridSampler(num_inference_steps=4)
    denoise, noise = make_denoise(), noise_for(sampler)
    ode = sampler.sample(noise, denoise, chunk_size=2)
    assert torch.equal(ode, dataclasses.replace(sampler, eta=0.0).sample(noise, denoise))
    drawn = sampler.sample(noise, denoise, seed=9)
    assert torch.equal(drawn, sampler.rollout(noise, denoise, num_generations=1, seed=9).latents[:, 0])
    assert not torch.allclose(ode, drawn)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_inference_steps": 0}, "num_inference_steps is 0"),
        ({"sigma_min": 0.0}, "sigma_min is 0.0"),
        ({"sigma_max": 0.001}, "sigma_min is 0.002, expected 0 < sigma_min < sigma_max = 0.001"),
        ({"sigma_max": math.nan}, "sigma_max is nan"),
        ({"rho": 0.0}, "rho is 0.0"),
        ({"schedule": "cosine"}, "schedule is 'cosine'"),
        ({"eta": -1.0}, "eta is -1.0"),
        ({"stochastic_steps": (7,)}, r"stochastic_steps is \(7,\), expected indices of at most .* 6: .* no density"),
        ({"stochastic_steps": (-1,)}, "stochastic_steps is -1"),
        ({"prediction_type": "flow"}, "prediction_type is 'flow'"),
        ({"guidance_scale": -1.0}, "guidance_scale is -1.0"),
    ],
)
def test_bad_settings(arguments, message):
    with pytest.raises(ValueError, match=message):
        EulerHybridSampler(**arguments)


def test_bad_calls():
    sampler = EulerHybridSampler(num_inference_steps=4, stochastic_steps=(0, 1))
    denoise, noise = make_denoise(), noise_for(sampler)
    output = denoise(noise, 1.0, None)[0]
    with pytest.raises(ValueError, match=r"seed is None, expected an integer: steps \(1,\) draw noise"):
        sampler.tail(torch.zeros(B, G, *FRAMES), denoise)
    with pytest.raises(ValueError, match=r"expected \[B, G, F, C, H, W\]"):
        sampler.tail(noise, denoise, seed=1)
    with pytest.raises(ValueError, match="no step draws noise"):
        dataclasses.replace(sampler, eta=0.0).first_step(noise, output, num_generations=G, seed=1)
    with pytest.raises(ValueError, match=r"step_index is 2, expected one of the stochastic steps \(0, 1\)"):
        sampler.log_prob(torch.zeros(B, G, *FRAMES), noise, output, step_index=2)
    with pytest.raises(ValueError, match="chunk_size is 0"):
        sampler.sample(noise, denoise, chunk_size=0)
    with pytest.raises(ValueError, match=r"shape is \(3, 4\), expected \(B, F, C, H, W\)"):
        sampler.initial_noise((3, 4), seed=1)
    with pytest.raises(ValueError, match="seed is -1"):
        sampler.initial_noise((B, *FRAMES), seed=-1)
    with pytest.raises(ValueError, match=r"an unconditional output at noise level 80 with guidance_scale = 1.0"):
        sampler.sample(noise, make_denoise(guided=True))
    with pytest.raises(ValueError, match=r"no unconditional output at noise level 80 with guidance_scale = 3.0"):
        dataclasses.replace(sampler, guidance_scale=3.0).sample(noise, denoise)
    with pytest.raises(ValueError, match=r"expected \[B, F, C, H, W\]"):
        sampler.first_step(torch.zeros(B, G, *FRAMES), torch.zeros(B, G, *FRAMES), num_generations=3, seed=1)
