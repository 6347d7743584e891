"""Wan's backbone: stock diffusers' videos, the first frame given and never noised, folders in and out."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest
import tiny_run
import torch
from diffusers import AutoencoderKLWan, WanImageToVideoPipeline, WanTransformer3DModel
from diffusers.pipelines.wan import pipeline_wan_i2v
from transformers import UMT5EncoderModel
from wan_folder import CHANNELS, RATIO

import vampo_core
from vampo_core.cli import commands
from vampo_core.diffusion.flow_scheduler import EulerHybridFlowScheduler
from vampo_core.models import VideoPredictor
from vampo_core.models.codecs.latent import LatentCodec
from vampo_core.models.codecs.wan_vae import WanVAECodec
from vampo_core.models.wan.predictor import WanPredictor

TEXT = "push the block"
SIDE, FRAMES = 64, 9  # pixels and frames of a video: 4 x 4 latents, 3 latent frames


@pytest.fixture
def small():
    torch.manual_seed(0)
    codec = LatentCodec(latent_channels=CHANNELS)
    return VideoPredictor.create(codec, backbone="wan", num_frames=3, num_layers=2)


def image():
    return PIL.Image.fromarray(np.random.default_rng(0).integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8))


def first_frames():
    return torch.from_numpy(np.array(image())).permute(2, 0, 1).unsqueeze(0)


def noise():
    return torch.randn(1, CHANNELS, 3, 4, 4, generator=torch.Generator().manual_seed(1))  # [B, C, F, h, w]


def open_pipeline(folder):
    pipe = WanImageToVideoPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = EulerHybridFlowScheduler.from_config(pipe.scheduler.config, eta=0.0)
    return pipe


def stock_video(pipe, model, guidance_scale, output_type="latent"):
    return pipe(
        image=image(), prompt_embeds=model.text_encoder([TEXT]), negative_prompt_embeds=model.text_encoder([""]),
        height=SIDE, width=SIDE, num_frames=FRAMES, num_inference_steps=5, guidance_scale=guidance_scale,
        latents=noise(), output_type=output_type,
    ).frames  # fmt: skip


@torch.no_grad()
def our_video(model, guidance_scale):
    condition = model.condition(instructions=[TEXT], first_frames=first_frames())
    sampler = model.sampler(num_inference_steps=5, guidance_scale=guidance_scale, solver="euler", stochastic_steps=())
    start = model.predicted(noise().transpose(1, 2)).contiguous()
    predicted = sampler.sample(start, model.denoiser(condition, guidance=sampler.guides))
    return model.whole(condition, predicted)  # [B, F, C, h, w]


@pytest.mark.parametrize("guidance_scale", [1.0, 5.0])
def test_videos_are_those_of_the_stock_pipeline(wan_folder, guidance_scale):
    model = VideoPredictor.from_pretrained(wan_folder)
    theirs = stock_video(open_pipeline(wan_folder), model, guidance_scale).transpose(1, 2)
    ours = our_video(model, guidance_scale)
    assert (ours - theirs).norm() < 1e-5 * theirs.norm()


def test_frames_are_those_of_the_stock_pipeline(wan_folder):
    model = VideoPredictor.from_pretrained(wan_folder)
    theirs = stock_video(open_pipeline(wan_folder), model, 1.0, "pt")
    ours = model.codec.decode(our_video(model, 1.0))
    assert ours.shape == (1, FRAMES, 3, SIDE, SIDE)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("adapters", [False, True])
def test_what_is_saved_opens_in_the_stock_pipeline(wan_folder, tmp_path, adapters):
    model = VideoPredictor.from_pretrained(wan_folder)
    if adapters:
        model.add_lora(rank=2)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.2)
    model.set_sampler(model.sampler(num_inference_steps=4, guidance_scale=2.0, flow_shift=3.0, solver="dpm++2m"))
    model.save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved" / "adapter").is_dir() == adapters
    pipe = open_pipeline(tmp_path / "saved")
    assert pipe.config.expand_timesteps and pipe.scheduler.shift == 3.0
    theirs = stock_video(pipe, model, 5.0).transpose(1, 2)
    assert (our_video(model, 5.0) - theirs).norm() < 1e-5 * theirs.norm()
    again = VideoPredictor.from_pretrained(tmp_path / "saved")
    assert again.sampler() == model.sampler() and again.sampler().sigmas == model.sampler().sigmas
    assert again.text_encoder.fingerprint() == model.text_encoder.fingerprint()
    torch.testing.assert_close(our_video(again, 5.0), our_video(model, 5.0), rtol=1e-5, atol=1e-5)
    if not adapters:
        assert again.fingerprint() == model.fingerprint()
    model.save_pretrained(tmp_path / "saved")  # over itself


def test_text_tokens_are_those_of_the_stock_pipeline(wan_folder, monkeypatch):
    monkeypatch.setattr(pipeline_wan_i2v, "ftfy", SimpleNamespace(fix_text=lambda text: text), raising=False)
    texts = [TEXT, "  open   the drawer &amp; push ", ""]
    ours = VideoPredictor.from_pretrained(wan_folder).text_encoder(texts)
    torch.testing.assert_close(ours, open_pipeline(wan_folder)._get_t5_prompt_embeds(texts))


def test_the_text_encoder_is_loaded_only_for_new_texts(wan_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    loaded = []
    original = UMT5EncoderModel.from_pretrained
    monkeypatch.setattr(UMT5EncoderModel, "from_pretrained", lambda *a, **b: loaded.append(1) or original(*a, **b))
    encoder = VideoPredictor.from_pretrained(wan_folder).text_encoder
    expected = encoder([TEXT, "open the drawer"])
    assert torch.equal(encoder(["open the drawer", TEXT]), expected.flip(0)) and len(loaded) == 1
    again = VideoPredictor.from_pretrained(wan_folder).text_encoder  # as in another process, another day
    assert torch.equal(again([TEXT, "open the drawer"]), expected) and len(loaded) == 1
    again.prepare(["slowly", TEXT, "push the drawer"])
    again(["slowly", "push  the drawer"])
    assert len(loaded) == 2
    changed = edited(wan_folder, tmp_path, "text_encoder/config.json", num_layers=0)
    other = VideoPredictor.from_pretrained(changed).text_encoder
    assert other.fingerprint() != encoder.fingerprint()
    assert not torch.equal(other([TEXT]), expected[:1]) and len(loaded) == 3


def test_the_codec_compresses_time(wan_folder):
    codec = VideoPredictor.from_pretrained(wan_folder).codec
    assert isinstance(codec, WanVAECodec) and (codec.temporal_ratio, codec.spatial_ratio) == (4, RATIO)
    video = torch.rand(2, FRAMES, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    latents = codec.encode(video)
    assert latents.shape == (2, 3, CHANNELS, 2, 3)
    torch.testing.assert_close(codec.encode(video[:, 0]), latents[:, 0], rtol=1e-5, atol=1e-5)  # causal
    assert codec.decode(latents).shape == video.shape
    with pytest.raises(ValueError, match=r"expected \[B, T, 3, H, W\] with T = 4 n \+ 1: 1, 5, 9"):
        codec.encode(video[:, :8])
    with pytest.raises(ValueError, match="multiples of 16"):
        codec.encode(video[..., :40])


@torch.no_grad()
def test_time_is_per_token(small):
    """0 on the first frame's tokens, 1000 sigma on all others, as the stock pipeline has it."""
    latents = torch.randn(2, 3, CHANNELS, 4, 6)
    condition = small.condition(instructions=[TEXT] * 2, first_latents=latents[:, 0])
    inputs = small.transformer_inputs(small.predicted(latents), torch.tensor([0.25, 1.0]), condition)
    time = inputs["timestep"].view(2, 3, 6)
    assert torch.equal(time[:, 0], torch.zeros(2, 6))
    assert torch.equal(time[:, 1:], torch.tensor([250.0, 1000.0]).view(2, 1, 1).expand(2, 2, 6))
    assert torch.equal(inputs["hidden_states"][:, :, 0], latents[:, 0])
    one = small.transformer_inputs(small.predicted(latents), 0.25, condition)
    assert torch.equal(one["timestep"][0], inputs["timestep"][0])


@torch.no_grad()
def test_a_change_is_denoised_as_the_latents_are(small):
    """The velocity of latents and that of their change from the first frame differ by the first frame."""
    latents = torch.randn(2, 3, CHANNELS, 4, 4)
    first, noisy, sigma = latents[:, 0], latents[:, 1:], torch.tensor([0.3, 0.9])
    assert small.settings.predict_change
    condition = small.condition(instructions=[TEXT] * 2, first_latents=first)
    change = noisy - (1 - sigma.view(-1, 1, 1, 1, 1)) * first.unsqueeze(1)
    inputs = small.transformer_inputs(noisy, sigma, condition)
    torch.testing.assert_close(inputs["hidden_states"][:, :, 1:], change.transpose(1, 2))
    velocity = small.transformer(**inputs).sample.transpose(1, 2)[:, 1:]
    torch.testing.assert_close(small(noisy, sigma, condition), velocity - first.unsqueeze(1))


def test_the_unconditional_half_keeps_the_first_frame(small):
    latents = torch.randn(2, CHANNELS, 4, 4)
    condition = small.condition(instructions=[TEXT, "open the drawer"], first_latents=latents)
    without = condition.unconditional()
    assert torch.equal(without.image_latents, latents)
    torch.testing.assert_close(without.encoder_hidden_states, small.text_encoder(["", ""]))
    half = condition.drop(torch.tensor([False, True]))
    assert torch.equal(half.encoder_hidden_states[0], condition.encoder_hidden_states[0])
    assert torch.equal(half.encoder_hidden_states[1], without.encoder_hidden_states[1])


@torch.no_grad()
@pytest.mark.parametrize("layers", [(0,), (1,), (0, 1)])
def test_features_are_the_transformers_own(small, layers):
    latents = torch.randn(2, CHANNELS, 4, 6)
    condition = small.condition(instructions=[TEXT] * 2, first_latents=latents)
    outputs = []
    hooks = [b.register_forward_hook(lambda m, i, output: outputs.append(output)) for b in small.transformer.blocks]
    start = small.sampler().initial_noise((1, 2, CHANNELS, 4, 6), seed=3).expand(2, -1, -1, -1, -1)
    small(start, small.sampler().sigmas[0], condition)
    for hook in hooks:
        hook.remove()
    features = small.feature_extractor(layers, seed=3)(condition)
    expected = torch.cat([outputs[i] for i in layers], dim=-1)  # [B, F h w, D]
    assert features.shape == (2, 3, 128 * len(layers), 2, 3)
    assert torch.equal(features.permute(0, 1, 3, 4, 2).flatten(1, 3), expected)
    parameters = {id(p) for p in small.feature_parameters(layers)}
    for number, block in enumerate(small.transformer.blocks):
        assert all((id(p) in parameters) == (number <= layers[-1]) for p in block.parameters())
    with pytest.raises(ValueError, match="ascending indices of the transformer's 2 blocks"):
        small.feature_extractor((2,))


def test_a_small_one_is_saved_and_loaded(small, tmp_path):
    small.save_pretrained(tmp_path)
    assert not (tmp_path / "model_index.json").exists()  # its codec is no part of a pipeline
    again = VideoPredictor.from_pretrained(tmp_path)
    assert isinstance(again, WanPredictor) and again.fingerprint() == small.fingerprint()
    assert again.num_parameters < 3e6


def edited(folder, tmp_path, file, **changes):
    copy = shutil.copytree(folder, tmp_path / "edited")
    config = json.loads((copy / file).read_text())
    (copy / file).write_text(json.dumps({k: v for k, v in (config | changes).items() if v is not None}))
    return copy


def test_folders_of_another_kind_are_refused_by_name(wan_folder, tmp_path):
    def refused(message, folder):
        with pytest.raises(ValueError, match=message):
            VideoPredictor.from_pretrained(folder)

    refused(
        "takes 36 channels and returns 4: its first frame is given on channels, as in Wan2.1-I2V",
        edited(wan_folder, tmp_path / "a", "transformer/config.json", in_channels=36),
    )
    copy = shutil.copytree(wan_folder, tmp_path / "two")
    shutil.copytree(copy / "transformer", copy / "transformer_2")
    refused("two transformers, transformer/ and transformer_2/, as Wan2.2-A14B does", copy)
    for part, message in {"vae": "neither vae/ nor codec/", "text_encoder": "no text_encoder/config.json"}.items():
        copy = shutil.copytree(wan_folder, tmp_path / f"without-{part}")
        shutil.rmtree(copy / part)
        refused(message, copy)
    copy = shutil.copytree(wan_folder, tmp_path / "tokens")
    shutil.rmtree(copy / "tokenizer")
    refused("neither tokenizer.json nor spiece.model", copy)
    scheduler = edited(wan_folder, tmp_path / "b", "scheduler/scheduler_config.json", flow_shift=None)
    refused("has neither flow_shift nor shift", scheduler)
    refused(
        "is 8 wide, expected the transformer's text_dim 16",
        edited(wan_folder, tmp_path / "c", "text_encoder/config.json", d_model=8),
    )


def test_wrong_inputs_are_one_clear_line(small):
    latents = torch.randn(1, 3, CHANNELS, 4, 4)
    condition = small.condition(instructions=[TEXT], first_latents=latents[:, 0])
    with pytest.raises(ValueError, match=r"expected \[N, F - 1, C, h, w\] and \[N, C, h, w\]"):
        small(latents[:, 1:, :, :2], 0.5, condition)
    odd = small.condition(instructions=[TEXT], first_latents=latents[:, 0, :, :3])
    with pytest.raises(ValueError, match="expected sides that divide into patches of 2 x 2"):
        small(latents[:, 1:, :, :3], 0.5, odd)
    with pytest.raises(ValueError, match="instructions holds None texts, expected 1"):
        small.condition(first_latents=latents[:, 0])
    for name in ("sigma_max", "sigma_min", "rho"):
        with pytest.raises(ValueError, match=f"{name} is 0.5, expected null: a flow goes from pure noise to none"):
            small.sampler(**{name: 0.5})
    with pytest.raises(ValueError, match=r"scaling_factor 0.5, expected 1"):
        VideoPredictor.create(LatentCodec(latent_channels=4, scaling_factor=0.5), backbone="wan")
    svd = VideoPredictor.create(LatentCodec(latent_channels=4), num_frames=3)
    with pytest.raises(ValueError, match=r"flow_shift is 5.0, expected null: this model is no flow"):
        svd.sampler(flow_shift=5.0)


def test_encoding_needs_no_denoiser(wan_folder, tmp_path, monkeypatch, capsys):
    tiny_run.write_dataset(tmp_path / "data")
    monkeypatch.setattr(WanTransformer3DModel, "from_pretrained", lambda *a, **b: pytest.fail("it was loaded"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    levels = ["sampler.sigma_min=null", "sampler.sigma_max=null", "sampler.rho=null"]
    config = tiny_run.settings(tmp_path, f"model.pretrained={wan_folder}", "data.num_frames=5", *levels)
    commands.encode(config)
    assert "1 instruction" in capsys.readouterr().out
    assert len(list((tmp_path / "cache").rglob("text-*/*.safetensors"))) == 1
    assert len(list((tmp_path / "data" / "latents").rglob("*.safetensors"))) == 6


def test_the_vae_is_loaded_only_for_frames(wan_folder, tmp_path, monkeypatch):
    loaded, original = [], AutoencoderKLWan.from_pretrained
    monkeypatch.setattr(AutoencoderKLWan, "from_pretrained", lambda *a, **b: loaded.append(1) or original(*a, **b))
    model = VideoPredictor.from_pretrained(wan_folder)
    condition = model.condition(instructions=[TEXT], first_latents=torch.zeros(1, CHANNELS, 4, 4))
    model(torch.zeros(1, 2, CHANNELS, 4, 4), 0.5, condition)
    model.save_pretrained(tmp_path / "saved")
    again = VideoPredictor.from_pretrained(tmp_path / "saved")
    assert again.codec.fingerprint() == model.codec.fingerprint() and not loaded
    latents = model.codec.encode(first_frames())
    torch.testing.assert_close(again.codec.encode(first_frames()), latents)
    assert len(loaded) == 2
    model.codec.release()
    model.codec.decode(latents.unsqueeze(1))
    assert len(loaded) == 3
    changed = edited(wan_folder, tmp_path, "vae/config.json", latents_std=[2.0] * CHANNELS)
    assert VideoPredictor.from_pretrained(changed).codec.fingerprint() != model.codec.fingerprint()
    in_memory = WanVAECodec(original(wan_folder / "vae"))
    torch.testing.assert_close(in_memory.encode(first_frames()), latents)
    in_memory.release()  # it could not be loaded again
    in_memory.save_pretrained(tmp_path / "vae")
    torch.testing.assert_close(WanVAECodec(tmp_path / "vae").encode(first_frames()), latents)
    with pytest.raises(ValueError, match="holds a WanTransformer3DModel, expected a AutoencoderKLWan"):
        WanVAECodec(wan_folder / "transformer")


def test_small_updates_of_adapters_survive_saving_on_a_half_precision_base(wan_folder, tmp_path):
    """A bfloat16 weight keeps 8 bits, and most updates are smaller than its last one."""
    model = VideoPredictor.from_pretrained(wan_folder, dtype="bfloat16")
    model.add_lora(rank=2, base_dtype="bfloat16")
    base = {name: p.float() for name, p in model.transformer.named_parameters() if "base_layer.weight" in name}
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=1e-3)
    model.save_pretrained(tmp_path)
    saved = VideoPredictor.from_pretrained(tmp_path).transformer.state_dict()
    layers = dict(model.transformer.named_modules())
    for name, weight in base.items():
        layer = layers[name.removesuffix(".base_layer.weight")]
        delta = layer.get_delta_weight("default")
        found = saved[name.replace(".base_layer", "")] - weight
        assert (found - delta).norm() < 1e-2 * delta.norm()


def test_a_folder_is_sampled_with_the_frames_it_was_trained_on(wan_folder, tmp_path):
    tiny_run.write_dataset(tmp_path / "data")
    levels = ["sampler.sigma_min=null", "sampler.sigma_max=null", "sampler.rho=null"]
    config = tiny_run.settings(
        tmp_path, f"model.pretrained={wan_folder}", "data.num_frames=5", "data.stride=1", *levels
    )
    result = vampo_core.train(config, "grpo.num_iterations=1", "sampler.guidance_scale=1")
    assert VideoPredictor.from_pretrained(result.checkpoint).settings.num_frames == 2  # 21 in the published folder


def test_tokens_beyond_what_fits_in_memory_are_read_again(wan_folder, monkeypatch):
    monkeypatch.setattr("vampo_core.models.text.lazy._MOST_IN_MEMORY", 1)
    encoder = VideoPredictor.from_pretrained(wan_folder).text_encoder
    expected = encoder([TEXT, "open the drawer"])
    assert set(encoder._embedded) == {TEXT, "open the drawer"}
    assert torch.equal(encoder(["open the drawer"])[0], expected[1]) and set(encoder._embedded) == {"open the drawer"}
    assert torch.equal(encoder([TEXT])[0], expected[0])
