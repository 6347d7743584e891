"""EulerHybridScheduler against diffusers' EulerDiscreteScheduler and inside the stock pipeline."""

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import EulerDiscreteScheduler, StableVideoDiffusionPipeline
from svd_folder import make_svd_pipeline

from vampo_core.diffusion.scheduler import EulerHybridScheduler
from vampo_core.ops import reference

SVD_SCHEDULE = {
    "prediction_type": "v_prediction",
    "timestep_type": "continuous",
    "timestep_spacing": "leading",
    "use_karras_sigmas": True,
    "sigma_min": 0.002,
    "sigma_max": 700.0,
}


def trajectory(scheduler, num_steps, model_outputs, sample, **step_arguments):
    scheduler.set_timesteps(num_steps)
    outputs = []
    for timestep, model_output in zip(scheduler.timesteps, model_outputs, strict=True):
        scheduler.scale_model_input(sample, timestep)
        output = scheduler.step(model_output, timestep, sample, **step_arguments)
        sample = output.prev_sample
        outputs.append(output)
    return outputs


@pytest.mark.parametrize("prediction_type", ["v_prediction", "epsilon", "sample"])
@pytest.mark.parametrize("shape", [(2, 3, 4, 5, 6), (2, 4, 5, 6)])
def test_eta_zero_is_euler_discrete(prediction_type, shape):
    config = SVD_SCHEDULE | {"prediction_type": prediction_type}
    generator = torch.Generator().manual_seed(0)
    model_outputs = torch.randn(5, *shape, generator=generator)
    sample = 700 * torch.randn(shape, generator=generator)
    ours = trajectory(EulerHybridScheduler(**config, eta=0.0), 5, model_outputs, sample)
    theirs = trajectory(EulerDiscreteScheduler(**config), 5, model_outputs, sample)
    for our, their in zip(ours, theirs, strict=True):
        assert torch.equal(our.prev_sample, their.prev_sample)
        assert torch.equal(our.pred_original_sample, their.pred_original_sample)
        assert our.log_prob is None


@pytest.mark.parametrize("prediction_type", ["v_prediction", "epsilon", "sample"])
@pytest.mark.parametrize("shape", [(2, 3, 4, 5, 6), (2, 4, 5, 6)])
def test_stochastic_step(prediction_type, shape):
    scheduler = EulerHybridScheduler(**SVD_SCHEDULE | {"prediction_type": prediction_type}, stochastic_steps=[1])
    generator = torch.Generator().manual_seed(0)
    model_outputs, noise = torch.randn(5, *shape, generator=generator), torch.randn(shape, generator=generator)
    outputs = trajectory(scheduler, 5, model_outputs, 700 * torch.randn(shape, generator=generator), noise=noise)
    assert [output.log_prob is None for output in outputs] == [True, False, True, True, True]
    video = (shape[0], *shape[1:]) if len(shape) == 5 else (shape[0], 1, *shape[1:])
    expected = reference.hybrid_euler_step(
        outputs[0].prev_sample.view(video),
        model_outputs[1].view(video),
        sigma=float(scheduler.sigmas[1]),
        sigma_next=float(scheduler.sigmas[2]),
        eta=1.0,
        prediction_type=prediction_type,
        noise=noise.view(video).unsqueeze(1),
    )
    torch.testing.assert_close(outputs[1].prev_sample, expected.prev_sample.view(shape), rtol=1e-5, atol=1e-4)
    assert outputs[1].log_prob.shape == shape[:-3]
    torch.testing.assert_close(outputs[1].log_prob, expected.log_prob.view(shape[:-3]))
    # the ODE step's denoised estimate does not depend on how the step continues
    twin = EulerDiscreteScheduler(**SVD_SCHEDULE | {"prediction_type": prediction_type})
    twin.set_timesteps(5)
    twin.set_begin_index(1)
    denoised = twin.step(model_outputs[1], twin.timesteps[1], outputs[0].prev_sample).pred_original_sample
    torch.testing.assert_close(outputs[1].pred_original_sample, denoised)


def test_noise_comes_from_the_generator():
    shape = (1, 2, 4, 3, 3)
    sample, model_output = torch.randn(shape), torch.randn(shape)

    def draw(seed):
        scheduler = EulerHybridScheduler(**SVD_SCHEDULE)
        scheduler.set_timesteps(4)
        generator = torch.Generator().manual_seed(seed)
        return scheduler.step(model_output, scheduler.timesteps[0], sample, generator=generator).prev_sample

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))


def test_half_precision_keeps_its_dtype():
    scheduler = EulerHybridScheduler(**SVD_SCHEDULE)
    scheduler.set_timesteps(4)
    shape = (1, 2, 4, 3, 3)
    output = scheduler.step(
        torch.randn(shape).to(torch.bfloat16), scheduler.timesteps[0], torch.randn(shape).to(torch.bfloat16)
    )
    assert output.prev_sample.dtype == torch.bfloat16
    assert output.log_prob.dtype == torch.float32


def test_config_round_trip(tmp_path):
    scheduler = EulerHybridScheduler(**SVD_SCHEDULE, eta=0.5, stochastic_steps=(0, 2))
    scheduler.save_pretrained(tmp_path)
    loaded = EulerHybridScheduler.from_pretrained(tmp_path)
    assert loaded.config.eta == 0.5
    assert tuple(loaded.config.stochastic_steps) == (0, 2)
    assert loaded.config.sigma_max == 700.0
    base = EulerDiscreteScheduler(**SVD_SCHEDULE)
    assert EulerHybridScheduler.from_config(base.config, eta=0.25).config.sigma_max == 700.0
    assert EulerHybridScheduler.from_config(base.config, eta=0.25).config.eta == 0.25


def test_bad_input_is_one_clear_error():
    with pytest.raises(ValueError, match="eta is -1"):
        EulerHybridScheduler(eta=-1)
    with pytest.raises(TypeError, match="stochastic_steps is 'x'"):
        EulerHybridScheduler(stochastic_steps=["x"])
    scheduler = EulerHybridScheduler(**SVD_SCHEDULE, stochastic_steps=(0, 3))
    scheduler.set_timesteps(4)
    sample = torch.randn(1, 2, 4, 3, 3)
    with pytest.raises(ValueError, match=r"s_churn is 1.0, expected 0"):
        scheduler.step(sample, scheduler.timesteps[0], sample, s_churn=1.0)
    with pytest.raises(ValueError, match=r"expected \[N, F, C, H, W\]"):
        scheduler.step(sample[0, 0], scheduler.timesteps[0], sample[0, 0])
    scheduler.set_begin_index(3)
    scheduler._step_index = None
    with pytest.raises(ValueError, match="has no density"):
        scheduler.step(sample, scheduler.timesteps[3], sample)


def test_drop_in_for_the_stock_pipeline():
    pipe = make_svd_pipeline()
    arguments = {"num_frames": 3, "height": 32, "width": 32, "num_inference_steps": 3, "output_type": "latent"}
    image = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8))

    def latents():
        torch.manual_seed(0)
        return pipe(image, generator=torch.Generator().manual_seed(1), **arguments).frames

    expected = latents()
    pipe.scheduler = EulerHybridScheduler.from_config(pipe.scheduler.config, eta=0.0)
    assert torch.equal(latents(), expected)
    pipe.scheduler = EulerHybridScheduler.from_config(pipe.scheduler.config, eta=1.0)
    stochastic = latents()
    assert stochastic.shape == expected.shape
    assert stochastic.isfinite().all()
    assert not torch.allclose(stochastic, expected)


def test_a_saved_pipeline_opens_again(tmp_path):
    pipe = make_svd_pipeline()
    pipe.scheduler = EulerHybridScheduler.from_config(pipe.scheduler.config, eta=0.5)
    pipe.save_pretrained(tmp_path)
    scheduler = StableVideoDiffusionPipeline.from_pretrained(tmp_path).scheduler
    assert isinstance(scheduler, EulerHybridScheduler)
    assert scheduler.config.eta == 0.5
