"""Low-rank adapters: trained, saved, loaded and merged."""

import json

import pytest
import torch
from diffusers import UNetSpatioTemporalConditionModel
from peft import LoHaConfig, LoraConfig, PeftModel, get_peft_model

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
    adapted = {p.dtype for name, p in predictor.unet.named_parameters() if "lora_" in name}
    frozen = {p.dtype for name, p in predictor.unet.named_parameters() if "base_layer.weight" in name}
    norms = {p.dtype for name, p in predictor.unet.named_parameters() if ".norm" in name and "lora_" not in name}
    assert (adapted, frozen, norms) == ({torch.float32}, {torch.bfloat16}, {torch.float32})
    sample, condition = inputs_for(predictor)
    predictor(sample, 3.0, condition).float().square().mean().backward()
    assert all(p.grad.dtype == torch.float32 for p in predictor.unet.parameters() if p.requires_grad)
    with pytest.raises(ValueError, match="already has an adapter"):
        predictor.add_lora()


ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]


def inject(predictor, config):
    """Put an adapter of PEFT into the UNet by hand, with random weights."""
    model = get_peft_model(predictor.unet, config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize(
    "settings",
    [
        {"use_dora": True},
        {"use_dora": True, "target_modules": ["conv1"]},
        {"use_rslora": True, "r": 4},
        {"lora_bias": True, "target_modules": ["to_out.0"]},
    ],
)
def test_relatives_of_lora(small, tmp_path, settings):
    """What is loaded, saved and switched off is the adapter's own output, whatever kind it is."""
    small.save_pretrained(tmp_path / "base")
    inject(small, LoraConfig(**{"r": 2, "target_modules": ATTENTION} | settings)).save_pretrained(tmp_path / "adapter")
    sample, condition = inputs_for(small)
    output = small(sample, 3.0, condition)

    loaded = VideoPredictor.from_pretrained(tmp_path / "base")
    base = loaded(sample, 3.0, condition)
    loaded.load_adapter(tmp_path / "adapter")
    torch.testing.assert_close(loaded(sample, 3.0, condition), output)
    assert not torch.allclose(base, output, rtol=1e-2, atol=1e-2)
    assert torch.equal(loaded.frozen_reference()(sample, 3.0, condition), base)
    loaded.save_pretrained(tmp_path / "merged")
    merged = VideoPredictor.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(merged(sample, 3.0, condition), output, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (LoHaConfig(r=2, target_modules=ATTENTION), "peft_type 'LOHA', expected 'LORA'"),
        (LoraConfig(r=2, target_modules=ATTENTION, bias="lora_only"), "bias 'lora_only', expected 'none'"),
        (
            LoraConfig(r=2, target_modules=ATTENTION, modules_to_save=["conv_out"]),
            r"modules_to_save \['conv_out'\], expected None",
        ),
        (LoraConfig(r=2, target_modules=ATTENTION, init_lora_weights="pissa"), "init_lora_weights 'pissa'"),
    ],
)
def test_adapters_that_are_refused(small, tmp_path, config, message):
    """They change weights outside of the adapted layers, so that the base could not be had under them again."""
    small.save_pretrained(tmp_path / "base")
    inject(small, config).save_pretrained(tmp_path / "adapter")
    loaded = VideoPredictor.from_pretrained(tmp_path / "base")
    weights = {name: value.clone() for name, value in loaded.unet.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        loaded.load_adapter(tmp_path / "adapter")
    assert all(torch.equal(value, weights[name]) for name, value in loaded.unet.state_dict().items())


@pytest.mark.parametrize(
    "config", [LoraConfig(r=2, target_modules=ATTENTION), LoHaConfig(r=2, target_modules=ATTENTION)]
)
def test_an_adapter_put_in_by_hand_is_saved_too(small, tmp_path, config):
    sample, condition = inputs_for(small)
    base = small(sample, 3.0, condition)
    inject(small, config)
    output = small(sample, 3.0, condition)
    assert torch.equal(small.frozen_reference()(sample, 3.0, condition), base)
    small.save_pretrained(tmp_path / "merged")
    merged = VideoPredictor.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(merged(sample, 3.0, condition), output, rtol=1e-4, atol=1e-5)


def test_settings_of_a_newer_peft_are_refused(small, tmp_path):
    """PEFT itself drops settings that it does not know, and says so in a warning only."""
    inject(small, LoraConfig(r=2, target_modules=ATTENTION)).save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"use_newest": True}))
    with pytest.raises(ValueError, match="use_newest True, expected None"):
        VideoPredictor.create(small.codec, num_frames=3, **SMALL).load_adapter(tmp_path)
