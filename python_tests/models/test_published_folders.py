"""SVD and VPP folders from data to a checkpoint that stock diffusers opens."""

import math

import PIL.Image
import pytest
import tiny_run as tiny
import torch
from diffusers import StableVideoDiffusionPipeline

import vampo_core
from vampo_core import api
from vampo_core.models.predictor import VideoPredictor


def settings(folder, svd_folder, *overrides):
    """Of one iteration on the folder, with videos of its own."""
    if not (folder / "data").is_dir():
        tiny.write_dataset(folder / "data")
    return tiny.settings(
        folder, f"model.pretrained={svd_folder}", "data.num_frames=3", "evaluation.num_clips=2",
        "grpo.num_iterations=1", "pretrain.num_steps=1", "pretrain.batch_size=2", *overrides,
    )  # fmt: skip


@pytest.mark.parametrize("call", ["train", "pretrain"])
@pytest.mark.parametrize("kind", ["svd", "vpp"])
def test_an_iteration_on_a_published_folder(tmp_path, svd_folder, clip_folder, kind, call):
    """SVD is conditioned on its first frame as CLIP sees it, VPP, here with adapters, on the instruction."""
    overrides = [f"model.text_encoder={clip_folder}", "model.lora=2"] if kind == "vpp" else []
    result = getattr(vampo_core, call)(settings(tmp_path, svd_folder, *overrides))
    (row,) = result.history
    assert row["grad_norm"] > 0 and all(math.isfinite(v) for v in row.values() if isinstance(v, float))

    pipe = StableVideoDiffusionPipeline.from_pretrained(result.checkpoint)
    before = VideoPredictor.from_pretrained(svd_folder).unet.state_dict()
    after = pipe.unet.state_dict()
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert changed and (kind == "svd" or all("attn" in name or "transformer" in name for name in changed))
    trained, own = VideoPredictor.from_pretrained(result.checkpoint).sampler(), result.config.sampler
    assert trained.sigmas[0] == own.sigma_max and len(trained.sigmas) == own.num_inference_steps + 1
    assert trained.guidance_scale == own.guidance_scale == 1
    pipe.set_progress_bar_config(disable=True)
    image = PIL.Image.new("RGB", (32, 32), "red")
    frames = pipe(image, num_frames=3, height=32, width=32, num_inference_steps=1, output_type="pt").frames
    assert frames.isfinite().all()


def test_a_published_folder_is_sampled_as_it_was_made(tmp_path, svd_folder, monkeypatch):
    """Its largest noise level, SVD's 700, where the configuration names none."""
    samplers = []
    monkeypatch.setattr(api, "evaluate_predictor", lambda _, sampler, *args, **kwargs: samplers.append(sampler))
    for sigma_max in ("null", "80"):
        vampo_core.evaluate(svd_folder, settings(tmp_path, svd_folder, f"sampler.sigma_max={sigma_max}"))
    assert [round(sampler.sigmas[0]) for sampler in samplers] == [700, 80]


def test_a_clip_image_condition_is_that_of_the_decoded_frame(svd_folder):
    model = VideoPredictor.from_pretrained(svd_folder)
    latents = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    condition = model.observed_condition(latents, ["", ""])
    frames = torch.cat([model.codec.decode(clip.view(1, 4, 16, 16)) for clip in latents])
    torch.testing.assert_close(condition.encoder_hidden_states, model.image_encoder(frames))
    torch.testing.assert_close(condition.image_latents, latents / 0.18215)
