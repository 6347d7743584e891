"""Low-rank adapters: trained, saved, loaded and merged."""

import json

import pytest
import torch
from diffusers import UNetSpatioTemporalConditionModel
from peft import PeftModel

from vampo_core.models import VideoPredictor

TEXTS = ["open the drawer", "close the drawer"]
SMALL = {"block_out_channels": (32, 32), "num_attention_heads": 2, "cross_attention_dim": 16}


@pytest.fixture
def small(codec):
    torch.manual_seed(0)
    return VideoPredictor.create(codec, num_frames=3, **SMALL)


def inputs_for(predictor, num_clips=2):
    size = 32 // predictor.codec.spatial_ratio
    generator = torch.Generator().manual_seed(1)
    sample = 5 * torch.randn(num_clips, 3, predictor.codec.latent_channels, size, size, generator=generator)
    condition = predictor.condition(
        instructions=(TEXTS * num_clips)[:num_clips],
        first_frames=torch.rand(num_clips, 3, 32, 32, generator=generator),
    )
    return sample, condition


def test_lora(small, tmp_path):
    sample, condition = inputs_for(small)
    base_output = small(sample, 3.0, condition)
    small.save_pretrained(tmp_path / "base")
    small.add_lora(rank=2, alpha=4)
    assert torch.equal(small(sample, 3.0, condition), base_output)
    trained = {name: p for name, p in small.unet.named_parameters() if p.requires_grad}
    assert trained
    assert all("lora_" in name for name in trained)
    with torch.no_grad():
        for parameter in trained.values():
            parameter.add_(0.1 * torch.randn_like(parameter))
    output = small(sample, 3.0, condition)
    assert not torch.allclose(output, base_output, rtol=1e-3, atol=1e-4)

    small.save_adapter(tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 2, 4)
    resumed = VideoPredictor.from_pretrained(tmp_path / "base")
    resumed.load_adapter(tmp_path / "adapter")
    assert torch.equal(resumed(sample, 3.0, condition), output)
    assert {n for n, p in resumed.unet.named_parameters() if p.requires_grad} == trained.keys()
    unet = UNetSpatioTemporalConditionModel.from_pretrained(tmp_path / "base" / "unet")
    small_unet, small.unet = small.unet, PeftModel.from_pretrained(unet, tmp_path / "adapter").base_model.model
    assert torch.equal(small(sample, 3.0, condition), output)
    small.unet = small_unet

    small.save_pretrained(tmp_path / "merged")
    assert torch.equal(small(sample, 3.0, condition), output)  # saving left the model as it was
    merged = VideoPredictor.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(merged(sample, 3.0, condition), output, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="has no adapter"):
        merged.save_adapter(tmp_path / "none")


def test_lora_keeps_float32_adapters_on_a_half_precision_base(codec):
    torch.manual_seed(0)
    predictor = VideoPredictor.create(codec, num_frames=3, dtype="bfloat16", **SMALL)
    predictor.add_lora(rank=2, base_dtype="bfloat16")
    dtypes = {"lora_" in name: parameter.dtype for name, parameter in predictor.unet.named_parameters()}
    assert dtypes == {True: torch.float32, False: torch.bfloat16}
    sample, condition = inputs_for(predictor)
    predictor(sample, 3.0, condition).float().square().mean().backward()
    assert all(p.grad.dtype == torch.float32 for p in predictor.unet.parameters() if p.requires_grad)
    with pytest.raises(ValueError, match="already has an adapter"):
        predictor.add_lora()
