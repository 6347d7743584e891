"""VideoPredictor against the stock pipeline, and what its checkpoint folders hold."""

import dataclasses
import json
import shutil

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import EulerDiscreteScheduler, StableVideoDiffusionPipeline
from torch import nn

from vampo_core.models import PatchCodec, PredictorSettings, VideoPredictor
from vampo_core.models.codecs.latent import LatentCodec
from vampo_core.models.svd.condition import SVDCondition
from vampo_core.models.svd.default import default_scheduler
from vampo_core.models.svd.predictor import SVDPredictor

TEXTS = ["open the drawer", "close the drawer"]
SMALL = {"block_out_channels": (32, 32), "num_attention_heads": 2, "cross_attention_dim": 16}


@pytest.fixture
def small(codec):
    torch.manual_seed(0)
    return VideoPredictor.create(codec, num_frames=3, **SMALL)


def load(kind, svd_folder, clip_folder, small):
    if kind == "small":
        return small
    return VideoPredictor.from_pretrained(svd_folder, text_encoder=clip_folder if kind == "vpp" else None)


def inputs_for(predictor, num_clips=2):
    size = 32 // predictor.codec.spatial_ratio
    generator = torch.Generator().manual_seed(1)
    sample = 5 * torch.randn(num_clips, 3, predictor.codec.latent_channels, size, size, generator=generator)
    condition = predictor.condition(
        instructions=(TEXTS * num_clips)[:num_clips],
        first_frames=torch.rand(num_clips, 3, 32, 32, generator=generator),
    )
    return sample, condition


def perturb(module):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.01 * torch.randn_like(parameter)


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_sampling_is_that_of_the_stock_pipeline(svd_folder, guidance_scale):
    pipe = StableVideoDiffusionPipeline.from_pretrained(svd_folder)
    pipe.set_progress_bar_config(disable=True)
    images = [
        PIL.Image.fromarray(np.random.default_rng(i).integers(0, 255, (32, 32, 3), dtype=np.uint8)) for i in range(2)
    ]
    unit_noise = torch.randn(2, 3, 4, 16, 16, generator=torch.Generator().manual_seed(3))
    expected = pipe(
        images,
        num_frames=3,
        height=32,
        width=32,
        num_inference_steps=4,
        max_guidance_scale=guidance_scale,
        noise_aug_strength=0.0,
        latents=unit_noise,
        output_type="latent",
    ).frames

    predictor = VideoPredictor.from_pretrained(svd_folder)
    frames = torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2)
    condition = predictor.condition(first_frames=frames / 255)
    sampler = predictor.sampler(num_inference_steps=4, guidance_scale=guidance_scale)
    denoise = predictor.denoiser(condition, guidance=sampler.uses_guidance)
    latents = sampler.sample(unit_noise * sampler.init_noise_sigma, denoise)
    torch.testing.assert_close(latents, expected, rtol=1e-3, atol=1e-3)
    assert expected.std() > 0.1


def test_forward_is_the_preconditioned_unet(small):
    small.settings = dataclasses.replace(small.settings, predict_change=False)
    sample, condition = inputs_for(small)
    sigma = torch.tensor([0.5, 20.0])
    output = small(sample, sigma, condition)
    for n in range(2):
        scaled = sample[n] / (sigma[n] ** 2 + 1) ** 0.5
        first = condition.image_latents[n].expand(3, -1, -1, -1)
        expected = small.unet(
            torch.cat([scaled, first], dim=1).unsqueeze(0),
            0.25 * sigma[n].log(),
            condition.encoder_hidden_states[n : n + 1],
            torch.tensor([[7.0, 127.0, 0.0]]),
        ).sample[0]
        torch.testing.assert_close(output[n], expected, rtol=1e-4, atol=1e-5)
    rows = SVDCondition.cat([condition.index_select(torch.tensor([1]))] * 2)
    torch.testing.assert_close(small(sample[1:].repeat(2, 1, 1, 1, 1), 20.0, rows)[0], output[1], rtol=1e-4, atol=1e-5)
    texts = small.condition(instructions=TEXTS[::-1], first_latents=small.codec.encode(torch.rand(2, 3, 32, 32)))
    assert not torch.allclose(texts.encoder_hidden_states, condition.encoder_hidden_states)


@pytest.mark.parametrize("prediction_type", ["v_prediction", "epsilon"])
def test_predicting_the_change_from_the_first_frame(prediction_type):
    """Denoised latents are the first frame's plus the denoised change, by diffusers' own step."""
    torch.manual_seed(0)
    predictor = VideoPredictor.create(LatentCodec(latent_channels=4, scaling_factor=0.2), num_frames=3, **SMALL)
    predictor.scheduler = default_scheduler(prediction_type=prediction_type)
    first, sample = torch.randn(2, 1, 4, 8, 8), 5 * torch.randn(2, 3, 4, 8, 8)
    condition = predictor.condition(instructions=TEXTS, first_latents=first[:, 0])

    def output(sample, sigma):
        output = predictor(sample, sigma, condition)
        per_clip = predictor(sample, torch.full((2,), sigma), condition)
        torch.testing.assert_close(per_clip, output, rtol=1e-4, atol=1e-4)
        return output

    def denoised(output, sample, sigma):
        step = EulerDiscreteScheduler(prediction_type=prediction_type, timestep_type="continuous")
        step.set_timesteps(1)
        step.sigmas[0], step._step_index = sigma, 0
        return step.step(output, step.timesteps[0], sample).pred_original_sample

    for sigma in (0.3, 40.0):
        latents = denoised(output(sample, sigma), sample, sigma)
        predictor.settings = dataclasses.replace(predictor.settings, predict_change=False)
        quiet = (sample - first) / (1 + (sigma / 3) ** 2) ** 0.5  # what the UNet sees of large noise
        change = denoised(output(quiet, sigma), sample - first, sigma)
        predictor.settings = dataclasses.replace(predictor.settings, predict_change=True)
        torch.testing.assert_close(latents, first + change, rtol=1e-3, atol=1e-3)


def test_condition_latents_are_not_scaled(svd_folder):
    predictor = VideoPredictor.from_pretrained(svd_folder)
    frames = torch.rand(2, 3, 32, 32)
    condition = predictor.condition(first_frames=frames)
    torch.testing.assert_close(condition.image_latents * 0.18215, predictor.codec.encode(frames))
    with_latents = predictor.condition(first_frames=frames, first_latents=predictor.codec.encode(frames))
    torch.testing.assert_close(with_latents.image_latents, condition.image_latents)


def test_condition_rows():
    condition = SVDCondition(torch.rand(3, 4, 2, 2) + 1, torch.rand(3, 5, 6) + 1, torch.rand(3, 3) + 1)
    repeated = condition.repeat(2)
    picked = condition.index_select(torch.tensor([0, 0, 1, 1, 2, 2]))
    dropped = condition.drop(torch.tensor([False, True, False]))
    unconditional = condition.unconditional()
    for field in dataclasses.fields(SVDCondition):
        assert torch.equal(getattr(repeated, field.name), getattr(picked, field.name))
        assert torch.equal(getattr(dropped, field.name)[[0, 2]], getattr(condition, field.name)[[0, 2]])
        is_zero = field.name != "added_time_ids"
        assert bool((getattr(dropped, field.name)[1] == 0).all()) == is_zero
        assert bool((getattr(unconditional, field.name) == 0).all()) == is_zero
    with pytest.raises(ValueError, match="expected as many in each part"):
        SVDCondition(torch.rand(2, 4, 2, 2), torch.rand(3, 5, 6), torch.rand(3, 3))


@pytest.mark.parametrize("kind", ["small", "svd", "vpp"])
def test_round_trip_is_bit_exact(kind, svd_folder, clip_folder, small, tmp_path):
    predictor = load(kind, svd_folder, clip_folder, small)
    perturb(predictor.unet)
    predictor.save_pretrained(tmp_path / "first")
    loaded = VideoPredictor.from_pretrained(tmp_path / "first")
    ours, theirs = predictor.state_dict(), loaded.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert loaded.settings == predictor.settings
    assert loaded.sampler() == predictor.sampler()
    sample, condition = inputs_for(predictor)
    assert torch.equal(loaded(sample, 3.0, inputs_for(loaded)[1]), predictor(sample, 3.0, condition))
    loaded.save_pretrained(tmp_path / "second")
    for path in (tmp_path / "first").rglob("*.safetensors"):
        assert path.read_bytes() == (tmp_path / "second" / path.relative_to(tmp_path / "first")).read_bytes()


@pytest.mark.parametrize("kind", ["svd", "vpp"])
def test_stock_pipeline_opens_what_we_save(kind, svd_folder, clip_folder, tmp_path):
    predictor = load(kind, svd_folder, clip_folder, None)
    perturb(predictor.unet)
    predictor.save_pretrained(tmp_path)
    pipe = StableVideoDiffusionPipeline.from_pretrained(tmp_path)
    ours = predictor.unet.state_dict()
    assert all(torch.equal(ours[name], value) for name, value in pipe.unet.state_dict().items())
    assert pipe.scheduler.config.sigma_max == 700.0
    pipe.set_progress_bar_config(disable=True)
    image = PIL.Image.new("RGB", (32, 32), "red")
    frames = pipe(image, num_frames=3, height=32, width=32, num_inference_steps=1, output_type="pt").frames
    assert frames.isfinite().all()


def test_settings_of_published_folders(svd_folder, clip_folder, small):
    assert load("svd", svd_folder, clip_folder, small).settings.fps == 6
    assert load("vpp", svd_folder, clip_folder, small).settings.fps == 7
    assert load("vpp", svd_folder, clip_folder, small).sampler().sigma_max == 700.0
    own = VideoPredictor.from_pretrained(svd_folder, settings=PredictorSettings(num_frames=3, fps=4))
    assert inputs_for(own)[1].added_time_ids[0].tolist() == [4.0, 127.0, 0.0]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_autocast(small, dtype):
    sample, condition = inputs_for(small)
    small.dtype = getattr(torch, dtype)
    assert small(sample, 3.0, condition).dtype == torch.float32  # the first frame is added without rounding
    small.settings, small.dtype = dataclasses.replace(small.settings, predict_change=False), torch.float32
    expected = small(sample, 3.0, condition)
    small.dtype = getattr(torch, dtype)
    output = small(sample, 3.0, condition)
    assert output.dtype == getattr(torch, dtype)
    assert all(parameter.dtype == torch.float32 for parameter in small.unet.parameters())
    torch.testing.assert_close(output.float(), expected, rtol=0.1, atol=0.05)
    output.float().square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in small.unet.parameters())


def test_gradient_checkpointing_changes_no_gradient(small):
    sample, condition = inputs_for(small)

    def gradients():
        small.zero_grad()
        small(sample, 3.0, condition.detach()).square().mean().backward()
        return [parameter.grad.clone() for parameter in small.unet.parameters()]

    expected = gradients()
    small.enable_gradient_checkpointing()
    assert any(getattr(module, "gradient_checkpointing", False) for module in small.unet.modules())
    for ours, theirs in zip(gradients(), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


def test_dropout_is_inactive(small):
    small.add_lora(rank=2, dropout=0.5)
    with torch.no_grad():
        for name, parameter in small.unet.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    sample, condition = inputs_for(small)
    small.eval()
    expected = small(sample, 3.0, condition)
    nn.ModuleList([small]).train()  # as a wrapper's train() does
    assert small.training
    assert torch.equal(small(sample, 3.0, condition), expected)
    for module in small.unet.modules():
        if isinstance(module, nn.Dropout):
            module.train()
    assert not torch.allclose(small(sample, 3.0, condition), expected)  # there is dropout to be active


@pytest.mark.parametrize("variant", ["float32", "bfloat16", "checkpointing", "lora"])
def test_one_forward_serves_rollout_and_gradient(small, variant):
    if variant == "bfloat16":
        small.dtype = torch.bfloat16
    elif variant == "checkpointing":
        small.enable_gradient_checkpointing()
    elif variant == "lora":
        small.add_lora(rank=2, dropout=0.5)
    small.train()
    _, condition = inputs_for(small)
    sampler = small.sampler(num_inference_steps=4)
    noise = sampler.initial_noise((2, 3, 4, 8, 8), seed=1)
    denoise = small.denoiser(condition.detach())
    output = small(noise, sampler.first_sigma, condition.detach())
    step = sampler.first_step(noise, output, num_generations=4, seed=1)
    latents = sampler.tail(step.prev_sample, denoise, chunk_size=3).latents
    log_prob = sampler.log_prob(step.prev_sample, noise, output)
    torch.testing.assert_close(log_prob.detach(), step.log_prob, rtol=1e-4, atol=1e-4)
    ratio = (log_prob - log_prob.detach()).exp()
    assert (ratio == 1).all()
    advantages = latents.mean((3, 4, 5)) - latents.mean((1, 3, 4, 5)).unsqueeze(1)
    (-advantages * ratio).mean().backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in small.unet.parameters())
    again = sampler.log_prob(step.prev_sample, noise, small(noise, sampler.first_sigma, condition.detach()))
    torch.testing.assert_close((again - log_prob).exp(), torch.ones_like(ratio), rtol=0, atol=1e-6)


def test_rollout_picks_each_row_its_own_condition(small):
    sample, condition = inputs_for(small)
    sampler = small.sampler(num_inference_steps=3)
    seen = []

    class Wrapped(nn.Module):
        def forward(self, sample, sigma, condition):
            seen.append(condition.image_latents)
            return small(sample, sigma, condition)

    denoise = small.denoiser(condition, model=Wrapped())
    sampler.rollout(sample, denoise, num_generations=2, seed=1, chunk_size=3)
    tail_rows = torch.cat(seen[1:])  # three chunks of rows at two steps: rows 0-2 twice, then row 3 twice
    assert torch.equal(tail_rows, condition.repeat(2).image_latents[[0, 1, 2, 0, 1, 2, 3, 3]])


def test_the_text_encoder_trains_with_the_predictor(small):
    sample, condition = inputs_for(small)
    small(sample, 3.0, condition).square().mean().backward()
    assert small.text_encoder.word_embedding.weight.grad.abs().sum() > 0
    assert not any(parameter.requires_grad for parameter in small.codec.parameters())


def edited(folder, tmp_path, edit):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    edit(copy)
    return copy


def set_key(path, key, value):
    content = json.loads(path.read_text())
    content[key] = value
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda f: shutil.rmtree(f / "unet"), r"has no unet/config.json"),
        (lambda f: shutil.rmtree(f / "vae"), r"has neither vae/ nor codec/"),
        (lambda f: shutil.rmtree(f / "scheduler"), r"has no scheduler/scheduler_config.json"),
        (lambda f: shutil.rmtree(f / "feature_extractor"), r"has no feature_extractor/preprocessor_config.json"),
        (lambda f: shutil.rmtree(f / "image_encoder"), r"image_encoder has no config.json"),
        (
            lambda f: set_key(f / "unet" / "config.json", "_class_name", "UNet2DConditionModel"),
            "unet holds a UNet2DConditionModel, expected a UNetSpatioTemporalConditionModel",
        ),
        (
            lambda f: set_key(f / "vae" / "config.json", "_class_name", "AutoencoderKL"),
            "vae holds a AutoencoderKL, expected a AutoencoderKLTemporalDecoder",
        ),
        (
            lambda f: set_key(f / "scheduler" / "scheduler_config.json", "timestep_type", "discrete"),
            "scheduler has timestep_type 'discrete', expected 'continuous'",
        ),
        (lambda f: (f / "unet" / "diffusion_pytorch_model.safetensors").unlink(), r"holds no \*.safetensors"),
        (
            lambda f: (f / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"\x00" * 100),
            "unet cannot be loaded as a UNetSpatioTemporalConditionModel",
        ),
        (lambda f: (f / "vampo.json").write_text('{"frames": 3}'), r"vampo.json cannot be read: .*'frames'"),
        (lambda f: (f / "adapter_config.json").write_text("{}"), "holds a LoRA adapter"),
    ],
)
def test_wrong_folders(svd_folder, tmp_path, edit, message):
    with pytest.raises(ValueError, match=message):
        VideoPredictor.from_pretrained(edited(svd_folder, tmp_path, edit))


def test_bad_arguments(svd_folder, clip_folder, small, codec, tmp_path):
    with pytest.raises(ValueError, match="expected an existing folder"):
        VideoPredictor.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"text_encoder is .* expected an existing folder"):
        VideoPredictor.from_pretrained(svd_folder, text_encoder=tmp_path / "nowhere")
    with pytest.raises(ValueError, match="dtype is 'int8', expected one of float32, bfloat16, float16"):
        VideoPredictor.from_pretrained(svd_folder, dtype="int8")
    with pytest.raises(ValueError, match=r"holds no adapter_config.json"):
        small.load_adapter(tmp_path)
    with pytest.raises(ValueError, match="unet maps 8 to 4 channels, expected 6 to 3"):
        three = PatchCodec(patch_size=4, latent_channels=3)
        SVDPredictor(small.unet, three, text_encoder=small.text_encoder)
    with pytest.raises(ValueError, match="exactly one of text_encoder and image_encoder"):
        SVDPredictor(small.unet, codec)
    with pytest.raises(ValueError, match="instructions holds 1 texts, expected 2, one per clip"):
        small.condition(instructions=["push"], first_frames=torch.rand(2, 3, 32, 32))
    with pytest.raises(ValueError, match="both first_frames and first_latents are None"):
        small.condition(instructions=["push"])
    svd = load("svd", svd_folder, clip_folder, small)
    with pytest.raises(ValueError, match="first_frames is None"):
        svd.condition(first_latents=torch.rand(1, 4, 16, 16))
    sample, condition = inputs_for(small)
    with pytest.raises(ValueError, match=r"sample has shape \(1, 3, 4, 8, 8\)"):
        small(sample[:1], 1.0, condition)
    with pytest.raises(ValueError, match=r"sigma has shape \(3,\), expected a float or \[2\]"):
        small(sample, torch.ones(3), condition)
    discrete = EulerDiscreteScheduler(timestep_type="continuous", prediction_type="v_prediction")
    plain = SVDPredictor(small.unet, codec, text_encoder=small.text_encoder, scheduler=discrete)
    with pytest.raises(ValueError, match="neither Karras nor exponential"):
        plain.sampler()


def test_a_source_folder_that_is_gone(svd_folder, clip_folder, tmp_path):
    copy = edited(svd_folder, tmp_path, lambda f: None)
    predictor = VideoPredictor.from_pretrained(copy, text_encoder=clip_folder)
    shutil.rmtree(copy)
    with pytest.raises(ValueError, match=r"image_encoder/ of the checkpoint .* is gone"):
        predictor.save_pretrained(tmp_path / "saved")
