"""EulerHybridFlowScheduler against diffusers' FlowMatchEulerDiscreteScheduler and UniPC's noise levels."""

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

from vampo_core.diffusion.flow_scheduler import EulerHybridFlowScheduler
from vampo_core.ops import reference

WAN = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 5.0}
VIDEO, IMAGE = (2, 4, 3, 5, 6), (2, 4, 5, 6)  # [N, C, F, H, W] and [N, C, H, W]


def trajectory(scheduler, num_steps, model_outputs, sample, **arguments):
    scheduler.set_timesteps(num_steps)
    outputs = []
    for timestep, model_output in zip(scheduler.timesteps, model_outputs, strict=True):
        outputs.append(scheduler.step(model_output, timestep, sample, **arguments))
        sample = outputs[-1].prev_sample
    return outputs


def test_it_takes_the_configuration_of_wans_folders():
    unipc = UniPCMultistepScheduler(**WAN)
    ours = EulerHybridFlowScheduler.from_config(unipc.config, eta=0.5)
    for scheduler in (unipc, ours):
        scheduler.set_timesteps(6)
    torch.testing.assert_close(ours.sigmas, unipc.sigmas, rtol=0, atol=2e-6)
    assert ours.config.eta == 0.5


@pytest.mark.parametrize("shape", [VIDEO, IMAGE])
def test_eta_zero_is_flow_match_euler(shape):
    generator = torch.Generator().manual_seed(0)
    model_outputs, noise = torch.randn(5, *shape, generator=generator), torch.randn(shape, generator=generator)
    ours = trajectory(EulerHybridFlowScheduler(shift=3.0, eta=0.0), 5, model_outputs, noise)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(sigmas=torch.linspace(1, 0.001, 6)[:-1].tolist())
    sample = noise
    for timestep, model_output, our in zip(scheduler.timesteps, model_outputs, ours, strict=True):
        sample = scheduler.step(model_output, timestep, sample).prev_sample
        torch.testing.assert_close(our.prev_sample, sample)
        assert our.log_prob is None
    torch.testing.assert_close(ours[-1].pred_original_sample, ours[-1].prev_sample)


@pytest.mark.parametrize("shape", [VIDEO, IMAGE])
def test_stochastic_step(shape):
    generator = torch.Generator().manual_seed(0)
    model_outputs, noise = torch.randn(4, *shape, generator=generator), torch.randn(shape, generator=generator)
    scheduler = EulerHybridFlowScheduler(flow_shift=5.0, eta=0.7, stochastic_steps=[1])
    outputs = trajectory(scheduler, 4, model_outputs, torch.randn(shape, generator=generator), noise=noise)
    assert [output.log_prob is None for output in outputs] == [True, False, True, True]

    def video(value):
        return value.transpose(1, 2) if value.ndim == 5 else value.unsqueeze(1)

    expected = reference.hybrid_euler_step(
        video(outputs[0].prev_sample), video(model_outputs[1]), sigma=float(scheduler.sigmas[1]),
        sigma_next=float(scheduler.sigmas[2]), eta=0.7, prediction_type="flow_prediction",
        noise=video(noise).unsqueeze(1),
    )  # fmt: skip
    torch.testing.assert_close(video(outputs[1].prev_sample), expected.prev_sample[:, 0])
    log_prob = expected.log_prob[:, 0] if len(shape) == 5 else expected.log_prob[:, 0, 0]
    torch.testing.assert_close(outputs[1].log_prob, log_prob)


def test_noise_comes_from_the_generator_and_precision_stays():
    sample = torch.randn(VIDEO).to(torch.bfloat16)

    def draw(seed):
        scheduler = EulerHybridFlowScheduler()
        scheduler.set_timesteps(4)
        return scheduler.step(sample, scheduler.timesteps[0], sample, generator=torch.Generator().manual_seed(seed))

    assert torch.equal(draw(1).prev_sample, draw(1).prev_sample)
    assert not torch.equal(draw(1).prev_sample, draw(2).prev_sample)
    assert draw(1).prev_sample.dtype == torch.bfloat16 and draw(1).log_prob.dtype == torch.float32


def test_config_round_trip(tmp_path):
    EulerHybridFlowScheduler(flow_shift=5.0, eta=0.5, stochastic_steps=(0, 2)).save_pretrained(tmp_path)
    loaded = EulerHybridFlowScheduler.from_pretrained(tmp_path)
    assert (loaded.config.eta, tuple(loaded.config.stochastic_steps), loaded.shift) == (0.5, (0, 2), 5.0)


def test_bad_input_is_one_clear_error():
    with pytest.raises(ValueError, match="eta is -1"):
        EulerHybridFlowScheduler(eta=-1)
    with pytest.raises(ValueError, match="prediction_type is 'epsilon', expected 'flow_prediction'"):
        EulerHybridFlowScheduler(prediction_type="epsilon")
    scheduler = EulerHybridFlowScheduler(stochastic_steps=(0, 3))
    scheduler.set_timesteps(4)
    sample = torch.randn(VIDEO)
    with pytest.raises(ValueError, match=r"expected \[N, C, F, H, W\]"):
        scheduler.step(sample[0, 0], scheduler.timesteps[0], sample[0, 0])
    with pytest.raises(ValueError, match="per_token_timesteps is given, expected None on the stochastic step 0"):
        scheduler.step(sample, scheduler.timesteps[0], sample, per_token_timesteps=torch.ones(2, 3))
    scheduler.set_begin_index(3)
    scheduler._step_index = None
    with pytest.raises(ValueError, match="has no density"):
        scheduler.step(sample, scheduler.timesteps[3], sample)
