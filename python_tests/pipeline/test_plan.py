"""Memory planned without weights: counted as on real tensors, and what one card can hold of a published model."""

import json
from pathlib import Path

import pytest
import torch
from svd_folder import make_svd_pipeline
from torch import nn
from training_runs import WAN, make_config, make_model
from wan_folder import make_folder

from vampo_core import api
from vampo_core.cli.parser import main
from vampo_core.models.codecs.latent import LatentCodec
from vampo_core.models.predictor import VideoPredictor
from vampo_core.pipeline import plan
from vampo_core.pipeline.plan import memory_plan, memory_table
from vampo_core.pipeline.predictor import load_predictor
from vampo_core.training.peak_memory import LiveBytes

MIB, GIB = 2**20, 2**30


def test_live_bytes_of_a_network_counted_by_hand():
    network = nn.Sequential(nn.Linear(64, 256, bias=False), nn.ReLU(), nn.Linear(256, 8, bias=False))
    x = torch.randn(512, 64)
    with LiveBytes(network) as count, torch.no_grad():
        network(x)
        assert count.live == 0
        # the hidden layer and its ReLU together, or the ReLU and the output
        assert count.peak == 4 * 512 * (256 + 256)
    with LiveBytes(network) as count:
        output = network(x)
        assert count.live == 4 * 512 * (256 + 8)  # the ReLU's output, which its backward and the next layer need
        output.sum().backward()
        gradients = 4 * (64 * 256 + 256 * 8)
        del output
        assert count.live == gradients


def test_shares_are_planned(tmp_path):
    """A share of the weights, and what is whole at a time, in half precision: two blocks, and what is in none."""
    config = make_config(tmp_path, "data.resolution=32", "grpo.batch_size=4", "grpo.kl_coef=0.1", *WAN)
    config = api.load_config(config, "model.num_layers=6", "model.dtype=bfloat16")
    whole, share = memory_plan(config, num_processes=4), memory_plan(config, num_processes=4, sharded=True)
    assert (share.optimizer, share.reference) == (whole.optimizer / 4, whole.reference / 4)
    assert (share.rollout, share.update) == (whole.rollout, whole.update)
    network = make_model(config).denoiser_network
    num_block = sum(p.numel() for p in network.blocks[0].parameters())
    num_gathered = sum(p.numel() for p in network.parameters()) - 4 * num_block
    assert share.weights == whole.weights / 4 + 2 * num_gathered


@pytest.mark.parametrize("overrides", [[], WAN, [*WAN, "model.dtype=bfloat16", "sampler.guidance_scale=2"]])
def test_it_counts_what_real_tensors_take(tmp_path, overrides):
    config = make_config(tmp_path, "data.resolution=32", *overrides)
    found = memory_plan(config)
    codec = LatentCodec(latent_channels=4, spatial_ratio=8)
    model = VideoPredictor.create(
        codec, backbone=config.model.backbone, num_frames=3, dtype=config.model.dtype, **config.model.network_options()
    ).train()
    rows = 2 * (2 if config.sampler.guidance_scale == 2 else 1)
    clips = torch.randn(rows, 3, 4, 4, 4)
    condition = model.condition(instructions=["push"] * rows, first_latents=clips[:, 0]).detach()
    for parameter in model.denoiser_network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    with LiveBytes(model) as count:
        output = model(model.predicted(clips), model.sampler().sigmas[0], condition)
        output.float().square().mean().backward()
    assert found.update == pytest.approx(count.peak, rel=0.03)
    parameters = sum(p.numel() for p in model.denoiser_network.parameters())
    assert (found.weights, found.num_trained, found.optimizer) == (4 * parameters, parameters, 12 * parameters)


def test_settings_move_their_own_part(tmp_path):
    def planned(*overrides):
        return memory_plan(make_config(tmp_path, "data.resolution=32", *overrides))

    plain = planned()
    assert planned("sampler.tail_chunk_size=1").rollout < plain.rollout
    assert 1.8 * plain.update < planned("grpo.batch_size=4").update < 2.1 * plain.update
    assert planned("grpo.batch_size=4", "optim.gradient_accumulation_steps=2") == plain
    assert memory_plan(make_config(tmp_path, "data.resolution=32", "grpo.batch_size=4"), num_processes=2) == plain
    assert planned("model.ema_decay=0.9").optimizer == 4 / 3 * plain.optimizer
    assert planned("grpo.kl_coef=1").reference == plain.weights and plain.reference == 0
    assert planned("model.gradient_checkpointing=true").update < plain.update
    lora = planned("model.lora=2", "model.dtype=bfloat16", "grpo.kl_coef=1")
    assert lora.optimizer < plain.optimizer / 5 and lora.weights < 0.7 * plain.weights and lora.reference == 0
    assert planned("grpo.credit=pathwise").rollout > plain.rollout


def wan_5b(folder: Path) -> Path:
    """The config files of Wan2.2-TI2V-5B, without weights."""
    make_folder(folder)
    for weights in folder.rglob("*.safetensors"):
        weights.unlink()
    sizes = {
        "transformer": {
            "num_attention_heads": 24, "attention_head_dim": 128, "in_channels": 48, "out_channels": 48,
            "text_dim": 4096, "freq_dim": 256, "ffn_dim": 14336, "num_layers": 30, "rope_max_seq_len": 1024,
        },
        "vae": {
            "base_dim": 160, "decoder_base_dim": 256, "z_dim": 48, "dim_mult": [1, 2, 4, 4], "num_res_blocks": 2,
            "latents_mean": [0.0] * 48, "latents_std": [1.0] * 48,
        },
    }  # fmt: skip
    for part, changes in sizes.items():
        path = folder / part / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


ONE_CARD = [
    "model.lora=16", "model.dtype=bfloat16", "data.resolution=[224,448]", "data.num_frames=33",
    "data.format=vpp", "data.env=null",
    "sampler.sigma_min=null", "sampler.sigma_max=null", "sampler.rho=null", "grpo.batch_size=8",
    "grpo.num_generations=8", "optim.gradient_accumulation_steps=8",
]  # fmt: skip


def test_wan_5b_fits_one_card(tmp_path):
    config = make_config(tmp_path, f"model.pretrained={wan_5b(tmp_path / 'wan')}", *ONE_CARD)
    whole = memory_plan(config)
    assert whole.num_weights == pytest.approx(5.0e9, rel=0.02)
    assert whole.weights == pytest.approx(2 * 5.0e9, rel=0.02)  # the VAE is not loaded
    frames = memory_plan(api.load_config(config, "reward.pixel_weight=1"))
    assert frames.weights - whole.weights == pytest.approx(4 * 0.7e9, rel=0.1)
    assert whole.total < 40 * GIB
    small = memory_plan(api.load_config(config, "sampler.tail_chunk_size=1", "model.gradient_checkpointing=true"))
    assert small.total < min(24 * GIB, whole.total)
    assert "billion weights, 23.59 million of them trained" in memory_table(whole, config)


@pytest.mark.parametrize("kind", ["svd", "wan"])
def test_a_folder_is_planned_as_it_is_loaded(tmp_path, kind):
    if kind == "wan":
        folder, overrides = make_folder(tmp_path / "model"), WAN[2:]
    else:
        make_svd_pipeline().save_pretrained(tmp_path / "model")
        folder, overrides = tmp_path / "model", []
    settings = [f"model.pretrained={folder}", "data.num_frames=5", "data.resolution=32", *overrides]
    config = make_config(tmp_path, *settings, "model.lora=2", "model.dtype=bfloat16")
    found, model = memory_plan(config), load_predictor(config, folder)
    network = sum(p.numel() * p.element_size() for p in model.denoiser_network.parameters())
    codec = sum(p.numel() * p.element_size() for p in model.codec.parameters())  # Wan's is not loaded
    assert found.weights == network + codec and (codec == 0) == (kind == "wan")
    assert found.num_trained == sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_on_the_command_line(tmp_path, capsys):
    assert main(["plan", "--config", "metaworld"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "1.77 million weights" in lines[0] and lines[-1].startswith("to take less: ")
    assert any(line.split()[0] == "total" and "MiB" in line for line in lines)


def test_a_run_on_a_gpu_says_whether_it_fits(tmp_path, monkeypatch, capsys):
    config = make_config(tmp_path, "data.resolution=32")
    plan.announce_memory(config)
    assert not capsys.readouterr().out  # there is no GPU
    assert memory_plan(config, num_processes=100).update > 0  # the trainer refuses that, in words
    table = memory_table(memory_plan(config), config, capacity=1000)
    assert table.splitlines()[-1].startswith("the device has 0.0 MiB; to take less: ")
    assert "to take less" not in memory_table(memory_plan(config), config, capacity=40 * GIB)
