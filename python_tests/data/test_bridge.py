"""Real robot video end to end: BridgeData latents from pretraining to VAMPO, in a short version of the preset."""

import math

import pytest
import torch
from real_data import ROOT, needs

import vampo_core
from vampo_core.config import load_config
from vampo_core.pipeline.clips import prepare_clips
from vampo_core.training.run_folder import RunFolder

pytestmark = needs("bridge")


def test_bridge_from_pretraining_to_vampo(tmp_path):
    config = load_config(
        "bridge",
        f"data.root={ROOT / 'bridge'}",
        f"run.dir={tmp_path / 'bridge'}",
        "model.block_out_channels=[32,32,32]",
        "pretrain.num_steps=12",
        "pretrain.warmup_steps=2",
        "pretrain.lr=2e-3",
        "pretrain.ema_decay=0.5",
        "pretrain.eval_every=12",
        "pretrain.save_every=12",
        "grpo.num_iterations=2",
        "grpo.num_generations=4",
        "sampler.num_inference_steps=3",
        "sampler.tail_chunk_size=4",
        "evaluation.num_clips=2",
        "run.eval_every=2",
        "run.save_every=2",
    )
    result = vampo_core.train(config)
    assert result.checkpoint.name == "step-2" and not result.interrupted
    for row in result.history:
        assert row["ratio_max_dev"] == 0 and row["grad_norm"] > 0 and row["zero_std_fraction"] == 0
        assert all(math.isfinite(value) for value in row.values())
    assert result.before.l1.mean != result.after.l1.mean

    base = next(path for path in tmp_path.iterdir() if path.name.startswith("base-"))
    losses = [row["loss"] for row in vampo_core.training.metrics.read_metrics(base / "metrics.jsonl")]
    assert len(losses) == 12 and min(losses[6:]) < losses[0]

    again = vampo_core.evaluate(result.checkpoint, config)
    assert again.per_clip["l1"] == pytest.approx(result.after.per_clip["l1"], rel=1e-6)
    model = vampo_core.VideoPredictor.from_pretrained(result.checkpoint)
    clips = prepare_clips(config, model.codec)
    (train,) = clips.train
    trained = {train[i]["episode_id"] for i in range(len(train))}
    held_out = {clips.held_out[i]["episode_id"] for i in range(len(clips.held_out))}
    assert trained and held_out and not trained & held_out
    item = clips.held_out[0]
    assert item["latents"].shape == (16, 4, 32, 32) and torch.isfinite(item["latents"]).all()
    assert RunFolder.check(config, resume_from=tmp_path / "bridge").name == "step-2"
