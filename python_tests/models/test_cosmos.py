"""Cosmos-Predict2.5's backbone: stock diffusers' videos, the first frame given, folders in and out, post-training."""

import json
import shutil

import numpy as np
import PIL.Image
import pytest
import tiny_run as tiny
import torch
from cosmos_folder import CHANNELS, KARRAS, RATIO, TEXT_DIM, SafetyChecker, make_folder
from diffusers import Cosmos2_5_PredictBasePipeline
from diffusers.models.transformers import transformer_cosmos
from training_runs import make_config, make_trainer

import vampo_core
from vampo_core.diffusion.flow_scheduler import EulerHybridFlowScheduler
from vampo_core.models import VideoPredictor
from vampo_core.models.codecs.latent import LatentCodec
from vampo_core.models.codecs.wan_vae import WanVAECodec
from vampo_core.models.cosmos.predictor import CosmosPredictor

TEXT = "push the block"
SIDE, FRAMES = 32, 9  # pixels and frames of a video: 4 x 4 latents, 3 latent frames
SHIFTED = {"flow_shift": 5.0}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """By noise levels: those of the published folder, and a shifted flow, which begins at pure noise."""
    root = tmp_path_factory.mktemp("cosmos")
    return {
        "karras": make_folder(root / "karras", scheduler=KARRAS),
        "shifted": make_folder(root / "shifted", scheduler=SHIFTED),
    }


@pytest.fixture
def small():
    return make_small()


def make_small(lora=False, **options):
    torch.manual_seed(0)
    codec = LatentCodec(latent_channels=CHANNELS)
    model = VideoPredictor.create(codec, backbone="cosmos", num_frames=3, num_layers=2, **options)
    return with_adapters(model) if lora else model


def with_adapters(model):
    """Adapters that have an effect, unlike PEFT's."""
    model.add_lora(rank=2)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def image():
    return PIL.Image.fromarray(np.random.default_rng(0).integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8))


def first_frames():
    return torch.from_numpy(np.array(image())).permute(2, 0, 1).unsqueeze(0)


def noise():
    return torch.randn(1, CHANNELS, 3, 4, 4, generator=torch.Generator().manual_seed(1))  # [B, C, F, h, w]


def open_pipeline(folder, solver="euler", dtype=torch.float32):
    options = {"safety_checker": SafetyChecker(), "dtype": dtype}
    pipe = Cosmos2_5_PredictBasePipeline.from_pretrained(folder, **options)
    pipe.set_progress_bar_config(disable=True)
    if solver == "euler":
        pipe.scheduler = EulerHybridFlowScheduler.from_config(pipe.scheduler.config, eta=0.0)
    return pipe


def stock_video(pipe, guidance_scale, output_type="latent"):
    return pipe(
        image=image(), prompt=TEXT, height=SIDE, width=SIDE, num_frames=FRAMES, num_inference_steps=5,
        guidance_scale=guidance_scale, latents=noise(), output_type=output_type,
    ).frames  # fmt: skip


@torch.no_grad()
def our_video(model, guidance_scale, solver="euler"):
    """With the pipeline's ``guidance_scale``, which counts from 0."""
    condition = model.condition(instructions=[TEXT], first_frames=first_frames())
    guidance = 1.0 + guidance_scale if guidance_scale > 1 else 1.0
    sampler = model.sampler(num_inference_steps=5, guidance_scale=guidance, solver=solver, stochastic_steps=())
    start = model.predicted(noise().transpose(1, 2)).contiguous()
    predicted = sampler.sample(start, model.denoiser(condition, guidance=sampler.guides))
    return model.whole(condition, predicted)  # [B, F, C, h, w]


def relative_error(ours, theirs):
    return float((ours - theirs).norm() / theirs.norm())


@pytest.mark.parametrize("solver", ["euler", "unipc"])
@pytest.mark.parametrize("guidance_scale", [1.0, 7.0])
@pytest.mark.parametrize("levels", ["karras", "shifted"])
def test_videos_are_those_of_the_stock_pipeline(folders, levels, guidance_scale, solver):
    model = VideoPredictor.from_pretrained(folders[levels])
    theirs = stock_video(open_pipeline(folders[levels], solver), guidance_scale).transpose(1, 2)
    ours = our_video(model, guidance_scale, solver)
    # at pure noise UniPC works with 1 - 1e-6, whose log-SNR has few digits in float32
    assert relative_error(ours[:, 1:], theirs[:, 1:]) < (1e-4 if (levels, solver) == ("shifted", "unipc") else 1e-5)
    # the pipeline's own first frame keeps what is missing to pure noise at its first noise level: 1/201 of the noise
    first = ours[:, 0]
    left = noise()[:, :, 0] - first
    expected = first + (1 - model.sampler().sigmas[0]) * left
    assert relative_error(expected, theirs[:, 0]) < 1e-5
    assert relative_error(first, theirs[:, 0]) < (0.02 if levels == "karras" else 1e-5)


@pytest.mark.parametrize("levels", ["karras", "shifted"])
def test_noise_levels_are_those_of_the_stock_schedulers(folders, levels):
    sampler = VideoPredictor.from_pretrained(folders[levels]).sampler()
    assert sampler.num_inference_steps == 36 and sampler.solver == "unipc"
    assert sampler.guidance_scale == sampler.min_guidance_scale == 8
    for solver in ("euler", "unipc"):
        scheduler = open_pipeline(folders[levels], solver).scheduler
        scheduler.set_timesteps(36)
        ours = torch.tensor(sampler.sigmas, dtype=torch.float32)
        torch.testing.assert_close(scheduler.sigmas, ours, rtol=0, atol=2e-6)  # UniPC begins 1e-6 below 1
    again = EulerHybridFlowScheduler.from_config(EulerHybridFlowScheduler.from_config(scheduler.config).config)
    again.set_timesteps(36)
    torch.testing.assert_close(again.sigmas, ours, rtol=0, atol=1e-6)


def test_frames_are_those_of_the_stock_pipeline(folders):
    model = VideoPredictor.from_pretrained(folders["shifted"])
    theirs = stock_video(open_pipeline(folders["shifted"]), 1.0, "pt")
    ours = model.codec.decode(our_video(model, 1.0))
    assert isinstance(model.codec, WanVAECodec) and model.codec.spatial_ratio == RATIO
    assert ours.shape == (1, FRAMES, 3, SIDE, SIDE)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("levels", ["karras", "shifted"])
@pytest.mark.parametrize("adapters", [False, True])
def test_what_is_saved_opens_in_the_stock_pipeline(folders, tmp_path, levels, adapters):
    checker = {"safety_checker": ["cosmos_guardrail", "CosmosSafetyChecker"]}  # which is not saved with the model
    model = VideoPredictor.from_pretrained(edited(folders[levels], tmp_path / "from", "model_index.json", **checker))
    if adapters:
        with_adapters(model)
    given = {"flow_shift": 3.0} if levels == "shifted" else {}
    model.set_sampler(model.sampler(num_inference_steps=4, guidance_scale=2.0, solver="dpm++2m", **given))
    saved = tmp_path / "saved"
    model.save_pretrained(saved)
    assert (saved / "adapter").is_dir() == adapters
    assert json.loads((saved / "model_index.json").read_text())["safety_checker"] == [None, None]
    theirs = stock_video(open_pipeline(saved), 7.0).transpose(1, 2)
    assert relative_error(our_video(model, 7.0)[:, 1:], theirs[:, 1:]) < 1e-5
    again = VideoPredictor.from_pretrained(saved)
    assert again.sampler() == model.sampler() and again.sampler().sigmas == model.sampler().sigmas
    assert again.text_encoder.fingerprint() == model.text_encoder.fingerprint()
    torch.testing.assert_close(our_video(again, 7.0), our_video(model, 7.0), rtol=1e-5, atol=1e-5)
    if not adapters:
        assert again.fingerprint() == model.fingerprint()
        assert again.fingerprint() != VideoPredictor.from_pretrained(folders[levels]).fingerprint()
    model.save_pretrained(saved)  # over itself


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_text_tokens_are_those_of_the_stock_pipeline(folders, tmp_path, dtype):
    folder = shutil.copytree(folders["karras"], tmp_path / "model")
    open_pipeline(folder).text_encoder.to(dtype).save_pretrained(folder / "text_encoder")
    pipe = open_pipeline(folder, dtype=dtype)
    texts = [TEXT, "  open   the drawer &amp; push ", "", "slowly " * 600]
    ours = VideoPredictor.from_pretrained(folder).text_encoder(texts)
    expected = torch.cat([pipe._get_prompt_embeds(text) for text in texts])
    assert ours.shape == (4, 512, TEXT_DIM) and ours.dtype == dtype and not ours.requires_grad
    torch.testing.assert_close(ours, expected.detach(), rtol=0, atol=0)


def test_the_text_encoder_is_loaded_only_for_new_texts(folders, tmp_path):
    folder = shutil.copytree(folders["karras"], tmp_path / "model")
    encoder = VideoPredictor.from_pretrained(folder).text_encoder
    expected = encoder([TEXT, "open the drawer"])
    shutil.rmtree(folder / "text_encoder")
    assert torch.equal(encoder(["open the drawer", TEXT]), expected.flip(0))
    with pytest.raises(ValueError, match="holds no"):
        encoder(["slowly"])


@torch.no_grad()
def test_the_given_frame_has_its_own_time_and_mask(small):
    """1e-4 on the first frame, the noise level itself on all others, as the stock pipeline has it."""
    latents = torch.randn(2, 3, CHANNELS, 4, 6)
    condition = small.condition(instructions=[TEXT] * 2, first_latents=latents[:, 0])
    inputs = small.transformer_inputs(small.predicted(latents), torch.tensor([0.25, 1.0]), condition)
    assert torch.equal(inputs["timestep"].flatten(1), torch.tensor([[1e-4, 0.25, 0.25], [1e-4, 1.0, 1.0]]))
    assert torch.equal(inputs["condition_mask"].mean((1, 3, 4)), torch.tensor([[1.0, 0, 0]] * 2))
    assert torch.equal(inputs["hidden_states"][:, :, 0], latents[:, 0])
    one = small.transformer_inputs(small.predicted(latents), 0.25, condition)
    assert torch.equal(one["timestep"][0], inputs["timestep"][0])


@torch.no_grad()
@pytest.mark.parametrize("layers", [(0,), (0, 1)])
def test_features_are_the_transformers_own(small, layers):
    latents = torch.randn(2, CHANNELS, 4, 6)
    condition = small.condition(instructions=[TEXT] * 2, first_latents=latents)
    outputs, blocks = [], small.transformer.transformer_blocks
    hooks = [b.register_forward_hook(lambda m, i, output: outputs.append(output)) for b in blocks]
    start = small.sampler().initial_noise((1, 2, CHANNELS, 4, 6), seed=3).expand(2, -1, -1, -1, -1)
    small(start, small.sampler().sigmas[0], condition)
    for hook in hooks:
        hook.remove()
    features = small.feature_extractor(layers, seed=3)(condition)
    expected = torch.cat([outputs[i] for i in layers], dim=-1)  # [B, F h w, D]
    assert features.shape == (2, 3, 128 * len(layers), 2, 3)
    assert torch.equal(features.permute(0, 1, 3, 4, 2).flatten(1, 3), expected)
    parameters = {id(p) for p in small.feature_parameters(layers)}
    for number, block in enumerate(blocks):
        assert all((id(p) in parameters) == (number <= layers[-1]) for p in block.parameters())
    with pytest.raises(ValueError, match="ascending indices of the transformer's 2 blocks"):
        small.feature_extractor((2,))


def flow_config(tmp_path, *overrides):
    levels = [f"sampler.{name}=null" for name in ("sigma_min", "sigma_max", "rho")]
    return make_config(tmp_path, *levels, *overrides)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("guidance", [1, 3])
def test_ratio_is_exactly_one_in_the_first_inner_epoch(tmp_path, lora, dtype, guidance):
    config = flow_config(tmp_path, f"model.dtype={dtype}", f"sampler.guidance_scale={guidance}")
    trainer = make_trainer(config, model=make_small(lora, dtype=dtype))
    before = [p.detach().clone() for p in trainer.optimizer.parameters]
    row = trainer.iterate(1, trainer.batches(0))
    assert any(not torch.equal(p, q) for p, q in zip(trainer.optimizer.parameters, before, strict=True))
    assert (row["ratio_max_dev"], row["ratio_mean"], row["approx_kl"], row["clip_fraction"]) == (0, 1, 0, 0)
    assert row["grad_norm"] > 0


def test_the_given_frame_is_seen_by_nothing_but_the_denoiser(tmp_path):
    """It comes out bit for bit; noise and log-probability have no place for it, and rewards leave it out."""
    trainer = make_trainer(flow_config(tmp_path, "grpo.num_generations=3"), model=make_small())
    batch = next(trainer.batches(0))
    other = batch | {"latents": torch.cat([batch["latents"][:, :1] + 1, batch["latents"][:, 1:]], dim=1)}
    rollout, shifted = (trainer.engine.rollout(each, seed=5) for each in (batch, other))
    assert rollout.latents.shape == (2, 3, 3, CHANNELS, 4, 4)
    assert torch.equal(rollout.latents[:, :, 0], batch["latents"][:, None, 0].expand(-1, 3, -1, -1, -1))
    (step,), (step_shifted,) = rollout.steps, shifted.steps
    assert step.sample.shape == (2, 2, CHANNELS, 4, 4) and step.log_prob.shape == (2, 3, 2)
    assert torch.equal(step.sample, step_shifted.sample)
    assert not torch.equal(step.prev_sample, step_shifted.prev_sample)  # the denoiser sees it
    rewards = trainer._score(rollout)
    assert rewards.total.shape == (2, 3, 2)
    far = batch | {"latents": torch.cat([batch["latents"][:, :1] - 50, batch["latents"][:, 1:]], dim=1)}
    assert torch.equal(trainer._score(vars_replaced(rollout, batch=far)).total, rewards.total)


def vars_replaced(value, **changes):
    return type(value)(**{**vars(value), **changes})


def test_a_small_one_is_saved_and_loaded(small, tmp_path):
    small.save_pretrained(tmp_path)
    assert not (tmp_path / "model_index.json").exists()  # its codec is no part of a pipeline
    again = VideoPredictor.from_pretrained(tmp_path)
    assert isinstance(again, CosmosPredictor) and again.fingerprint() == small.fingerprint()
    assert again.num_parameters < 3e6


def test_a_published_folder_is_post_trained_on_videos(folders, tmp_path):
    """Latents by the folder's own VAE, text by its own encoder, LoRA, guidance; the result opens in stock diffusers."""
    tiny.write_dataset(tmp_path / "data", num_episodes=4)
    config = tiny.settings(
        tmp_path, f"model.pretrained={folders['karras']}", "model.lora=2", "data.num_frames=9", "data.stride=1",
        "data.held_out_fraction=0.25", "sampler.sigma_min=null", "sampler.sigma_max=null", "sampler.rho=null",
        "sampler.guidance_scale=2", "grpo.num_iterations=2",
    )  # fmt: skip
    result = vampo_core.train(config)
    assert result.history[-1]["grad_norm"] > 0 and result.history[-1]["ratio_max_dev"] == 0
    assert len(vampo_core.evaluate(result.checkpoint, config).per_frame["l1"]) == 2
    theirs = stock_video(open_pipeline(result.checkpoint), 2.0).transpose(1, 2)
    ours = our_video(VideoPredictor.from_pretrained(result.checkpoint), 2.0)
    assert relative_error(ours[:, 1:], theirs[:, 1:]) < 1e-5


def test_a_small_one_is_trained_from_scratch(tmp_path):
    tiny.write_dataset(tmp_path / "data", num_episodes=4)
    config = tiny.settings(
        tmp_path, "model.backbone=cosmos", "model.num_layers=2", "model.num_attention_heads=2", "sampler.rho=null",
        "sampler.sigma_min=null", "sampler.sigma_max=null", "sampler.flow_shift=2", "grpo.num_iterations=2",
        "policy.feature_layers=[1]",
    )  # fmt: skip
    result = vampo_core.train(config)  # pretrains first
    assert result.history[-1]["grad_norm"] > 0
    model = VideoPredictor.from_pretrained(result.checkpoint)
    assert isinstance(model, CosmosPredictor) and model.sampler().flow_shift == 2 and model.settings.predict_change


def edited(folder, copy, file, **changes):
    shutil.copytree(folder, copy)
    config = json.loads((copy / file).read_text()) | changes
    (copy / file).write_text(json.dumps({name: value for name, value in config.items() if value != "missing"}))
    return copy


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_crossattn_projection": False}, r"of Cosmos-Predict2: .* expected Cosmos-Predict2.5's"),
        ({"extra_pos_embed_type": "learnable"}, r"of Cosmos 1.0: .* expected Cosmos-Predict2.5's"),
        ({"extra_pos_embed_type": "missing"}, "of Cosmos 1.0"),
        ({"controlnet_block_every_n": 7, "img_context_dim_in": 8}, "of Cosmos-Transfer2.5: .* expected"),
        ({"in_channels": CHANNELS}, "without a channel for the mask of given frames"),
    ],
)
def test_other_cosmos_models_are_refused_by_name(folders, tmp_path, changes, message):
    folder = edited(folders["karras"], tmp_path / "edited", "transformer/config.json", **changes)
    with pytest.raises(ValueError, match=message):
        VideoPredictor.from_pretrained(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sigma_max": "missing"}, "use_karras_sigmas, expected use_flow_sigmas, sigma_min and sigma_max with it"),
        ({"use_flow_sigmas": False}, "use_karras_sigmas, expected use_flow_sigmas"),
        ({"use_karras_sigmas": False, "flow_shift": "missing"}, "has neither flow_shift nor shift"),
        ({"use_exponential_sigmas": True}, "has use_exponential_sigmas, expected a schedule with a constant shift"),
    ],
)
def test_other_schedules_are_refused_by_name(folders, tmp_path, changes, message):
    folder = edited(folders["karras"], tmp_path / "edited", "scheduler/scheduler_config.json", **changes)
    with pytest.raises(ValueError, match=message):
        VideoPredictor.from_pretrained(folder)


def test_incomplete_folders_are_one_clear_line(folders, tmp_path):
    parts = {
        "vae": "neither vae/ nor codec/",
        "text_encoder": "no text_encoder/config.json, expected a Qwen2_5_VLForConditionalGeneration",
        "scheduler": "no scheduler/scheduler_config.json",
        "tokenizer": "holds neither tokenizer.json nor vocab.json, expected Qwen2.5-VL's tokenizer",
    }
    for part, message in parts.items():
        copy = shutil.copytree(folders["karras"], tmp_path / part)
        shutil.rmtree(copy / part)
        with pytest.raises(ValueError, match=message):
            VideoPredictor.from_pretrained(copy)
    wide = edited(folders["karras"], tmp_path / "wide", "transformer/config.json", crossattn_proj_in_channels=48)
    with pytest.raises(ValueError, match="transformer cannot be loaded as a CosmosTransformer3DModel"):
        VideoPredictor.from_pretrained(wide)
    config = json.loads((folders["karras"] / "text_encoder" / "config.json").read_text())["text_config"]
    config |= {"num_hidden_layers": 3, "layer_types": ["full_attention"] * 3}
    deep = edited(folders["karras"], tmp_path / "deep", "text_encoder/config.json", text_config=config)
    with pytest.raises(ValueError, match="is 48 wide, expected the transformer's crossattn_proj_in_channels 32"):
        VideoPredictor.from_pretrained(deep)


def test_wrong_inputs_are_one_clear_line(small, folders, monkeypatch):
    model = VideoPredictor.from_pretrained(folders["karras"])
    for name in ("sigma_max", "sigma_min", "rho", "flow_shift"):
        with pytest.raises(ValueError, match=f"{name} is 0.5, expected null: the noise levels of this model are those"):
            model.sampler(**{name: 0.5})
    with pytest.raises(ValueError, match="transformer maps 5 to 4 channels, expected 9 to 8 with this codec"):
        CosmosPredictor(small.transformer, LatentCodec(latent_channels=8), text_encoder=None, settings=small.settings)
    with pytest.raises(ValueError, match="use_karras_sigmas, expected two numbers"):
        EulerHybridFlowScheduler(use_karras_sigmas=True, sigma_min=0.01)
    monkeypatch.delattr(transformer_cosmos, "transforms")
    with pytest.raises(ImportError, match="needs torchvision, expected the version that belongs to this torch"):
        VideoPredictor.from_pretrained(folders["karras"])
