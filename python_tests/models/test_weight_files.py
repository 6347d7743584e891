"""Folders that hold a variant of the weights only, as SVD and CLIP are often downloaded."""

import shutil

import pytest
import tiny_run as tiny
import torch
from diffusers import StableVideoDiffusionPipeline

import vampo_core
from vampo_core.models import VideoPredictor


def as_variant(folder, copy, variant="fp16", shard_size=None):
    """The folder with its weights in float16, under the names of a variant, and possibly in several files."""
    shutil.copytree(folder, copy)
    loaded = VideoPredictor.from_pretrained(folder)
    options = {"variant": variant} if shard_size is None else {"variant": variant, "max_shard_size": shard_size}
    for name, model in {
        "unet": loaded.unet, "vae": loaded.codec.vae, "image_encoder": loaded.image_encoder.model
    }.items():  # fmt: skip
        shutil.rmtree(copy / name)
        model.half().save_pretrained(copy / name, **options)
    return copy


def clip_as_variant(folder, copy):
    shutil.copytree(folder, copy)
    (copy / "model.safetensors").rename(copy / "model.fp16.safetensors")
    return copy


def weight_names(folder):
    return {path.name for path in folder.rglob("*.safetensors")}


@pytest.mark.parametrize("shard_size", [None, "100KB"])
def test_a_folder_with_one_variant_loads_from_a_configuration(svd_folder, tmp_path, shard_size):
    folder = as_variant(svd_folder, tmp_path / "svd", shard_size=shard_size)
    assert all(".fp16" in name for name in weight_names(folder))
    tiny.write_dataset(tmp_path / "data")
    config = tiny.settings(tmp_path, f"model.pretrained={folder}", "data.num_frames=3", "evaluation.num_clips=2")
    assert vampo_core.evaluate(folder, config).num_clips == 2
    loaded, exact = (VideoPredictor.from_pretrained(path) for path in (folder, svd_folder))
    for name, value in loaded.state_dict().items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, exact.state_dict()[name], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("shard_size", [None, "3KB"])
def test_what_is_saved_from_a_variant_opens_in_the_stock_pipeline(svd_folder, clip_folder, tmp_path, shard_size):
    """SVD's image encoder is copied, not loaded, where the condition is a text: the copy needs no variant either."""
    folder = as_variant(svd_folder, tmp_path / "svd", shard_size=shard_size)
    clip = clip_as_variant(clip_folder, tmp_path / "clip")
    model = VideoPredictor.from_pretrained(folder, text_encoder=clip)
    assert model.text_encoder.model.dtype == torch.float32
    model.save_pretrained(tmp_path / "saved")
    pipe = StableVideoDiffusionPipeline.from_pretrained(tmp_path / "saved")
    exact = VideoPredictor.from_pretrained(svd_folder).image_encoder.model.state_dict()
    for name, value in pipe.image_encoder.state_dict().items():
        torch.testing.assert_close(value.float(), exact[name].float(), rtol=1e-3, atol=1e-6)


def test_weights_without_a_variant_are_preferred(svd_folder, tmp_path):
    folder = as_variant(svd_folder, tmp_path / "svd")
    for name in ("unet", "vae", "image_encoder"):
        shutil.copytree(svd_folder / name, folder / name, dirs_exist_ok=True)
    loaded, exact = (VideoPredictor.from_pretrained(path).state_dict() for path in (folder, svd_folder))
    assert all(torch.equal(value, exact[name]) for name, value in loaded.items())
    chosen = VideoPredictor.from_pretrained(folder, variant="fp16").unet.state_dict()
    assert not all(torch.equal(value, exact[f"unet.{name}"]) for name, value in chosen.items())


def test_several_variants_to_choose_from(svd_folder, tmp_path):
    folder = as_variant(svd_folder, tmp_path / "svd")
    for name in ("diffusion_pytorch_model", "model"):
        for path in folder.rglob(f"{name}.fp16.safetensors"):
            shutil.copy(path, path.with_name(f"{name}.non_ema.safetensors"))
    with pytest.raises(ValueError, match="unet holds the variants fp16, non_ema, expected variant= to name one"):
        VideoPredictor.from_pretrained(folder)
    assert VideoPredictor.from_pretrained(folder, variant="fp16").unet.dtype == torch.float32
