"""Tiny predictors, clips and configurations for the tests of training, and what is compared of a finished run."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from vampo_core.config import VampoConfig, load_config
from vampo_core.data import ClipDataset
from vampo_core.grpo.trainer import VampoTrainer
from vampo_core.models.codecs.latent import LatentCodec
from vampo_core.models.predictor import VideoPredictor
from vampo_core.training.pretrain import Pretrainer

NUM_FRAMES, CHANNELS, SIDE = 3, 4, 4
WAN = [
    *("model.backbone=wan", "model.num_layers=2", "sampler.sigma_min=null", "sampler.sigma_max=null"),
    "sampler.rho=null",
]
"""A small Wan instead of the UNet."""
MEASURED = {"data_s", "rollout_s", "reward_s", "update_s", "samples_per_s", "peak_memory_mb"}
"""What differs between two runs that are the same."""


@dataclass
class MadeUpEpisode:
    """A smooth latent video that differs from every other one; the instruction does not, as in robot data."""

    number: int
    length: int = 7
    dataset: str = "made-up"
    instruction: str = "push the block"

    @property
    def episode_id(self) -> str:
        return f"{self.number:03d}"

    @property
    def actions(self) -> Tensor:  # [T, 0]
        return torch.empty(self.length, 0)

    states = actions

    @property
    def is_pushed(self) -> Tensor:  # [T]
        return torch.zeros(self.length, dtype=torch.bool)

    def latents(self, indices: Sequence[int]) -> Tensor:  # [F, C, h, w]
        generator = torch.Generator().manual_seed(self.number)
        phase, speed = torch.rand(2, 1, CHANNELS, SIDE, SIDE, generator=generator)
        return 1.4 * torch.sin(6.3 * phase + speed * torch.tensor(list(indices)).view(-1, 1, 1, 1))


def make_clips(*numbers: int) -> ClipDataset:
    """Five clips of each episode."""
    return ClipDataset([MadeUpEpisode(number) for number in numbers], num_frames=NUM_FRAMES)


def make_config(folder: Path, *overrides: str) -> VampoConfig:
    """Four iterations of two clips and four generations."""
    return load_config(
        "pusht",
        "grpo.num_iterations=4",
        "grpo.batch_size=2",
        "grpo.num_generations=4",
        "sampler.num_inference_steps=4",
        "sampler.sigma_min=0.002",
        "sampler.rho=7",
        "sampler.guidance_scale=1",
        "optim.lr=1e-3",
        "optim.decay_steps=0",
        "model.latent_channels=4",
        "model.block_out_channels=[32,32]",
        f"data.num_frames={NUM_FRAMES}",
        "pretrain.num_steps=4",
        "pretrain.batch_size=2",
        "pretrain.lr=1e-3",
        "pretrain.warmup_steps=2",
        "pretrain.decay_steps=0",
        "pretrain.ema_decay=0.9",
        "pretrain.eval_every=2",
        "pretrain.save_every=1",
        "evaluation.num_clips=3",
        f"run.dir={folder}",
        "run.eval_every=2",
        "run.save_every=1",
        *overrides,
    )


def make_model(
    config: VampoConfig, *, lora_dropout: float = 0.0, dropout: float = 0.0, **settings: Any
) -> VideoPredictor:
    """An untrained predictor, whose weights are always the same; adapters begin with an effect, unlike PEFT's.

    Args:
        config: its ``model`` and ``data`` sections count.
        lora_dropout: of the adapters.
        dropout: of an additional layer behind the UNet's first convolution.
        settings: other arguments of ``VideoPredictor.create``.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = VideoPredictor.create(
            LatentCodec(latent_channels=CHANNELS),
            num_frames=config.data.num_frames,
            backbone=config.model.backbone,
            sigma_max=config.sampler.sigma_max or 80.0,
            dtype=config.model.dtype,
            **{**config.model.network_options(), **settings},
        )
        if dropout:
            model.unet.conv_in = nn.Sequential(model.unet.conv_in, nn.Dropout(dropout))
            model.unet.conv_in.weight = model.unet.conv_in[0].weight  # whose dtype the predictor asks for
        if config.model.lora:
            model.add_lora(rank=config.model.lora, dropout=lora_dropout)
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    nn.init.normal_(parameter, std=0.1)
    if config.model.gradient_checkpointing:
        model.enable_gradient_checkpointing()
    return model


def make_trainer(config: VampoConfig, *, model: VideoPredictor | None = None, **options: Any) -> VampoTrainer:
    """A trainer on four episodes, evaluated on two others."""
    model = make_model(config) if model is None else model
    return VampoTrainer(
        model=model, config=config, train_dataset=make_clips(0, 1, 2, 3), eval_dataset=make_clips(8, 9), **options
    )


def make_pretrainer(config: VampoConfig) -> Pretrainer:
    """The same for pretraining."""
    return Pretrainer(
        model=make_model(config), config=config, train_dataset=make_clips(0, 1, 2, 3), eval_dataset=make_clips(8, 9)
    )


def trained_weights(trainer: VampoTrainer | Pretrainer) -> dict[str, Tensor]:
    """Copies of what the optimizer changes."""
    optimizer = trainer.optimizer
    return {name: p.detach().clone() for name, p in zip(optimizer.names, optimizer.parameters, strict=True)}


def gradient_of(trainer: VampoTrainer, iteration: int = 1) -> dict[str, Tensor]:
    """The gradient from which an iteration would make its first update, before clipping; no update is made."""
    optimizer, gradient = trainer.optimizer, {}

    def step(*, what: str) -> float:
        optimizer.scaler.unscale_(optimizer.adamw)
        optimizer.scaler.update()
        for name, parameter in zip(optimizer.names, optimizer.parameters, strict=True):
            gradient.setdefault(name, torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone())
        optimizer.adamw.zero_grad()
        return 0.0

    original, optimizer.step = optimizer.step, step  # type: ignore[method-assign]
    trainer.iterate(iteration, trainer.batches(iteration - 1))
    optimizer.step = original  # type: ignore[method-assign]
    return gradient


def relative_distance(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """``||actual - expected|| / ||expected||`` over all tensors together."""
    assert actual.keys() == expected.keys()
    difference = sum(float((actual[name].double() - expected[name].double()).square().sum()) for name in expected)
    return (difference / sum(float(value.double().square().sum()) for value in expected.values())) ** 0.5


def metrics_of(folder: Path) -> list[dict[str, Any]]:
    """Rows of ``metrics.jsonl`` without what a clock or the operating system measured."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in MEASURED} for row in rows]


def tensors_of(checkpoint: Path) -> dict[str, Tensor]:
    """Every tensor that a checkpoint holds: model, policy, EMA, optimizer."""
    tensors: dict[str, Tensor] = {}
    for file in sorted(checkpoint.rglob("*.safetensors")):
        tensors |= {f"{file.relative_to(checkpoint)}:{key}": value for key, value in load_file(file).items()}
    optimizer = torch.load(checkpoint / "trainer_state" / "optimizer.pt", weights_only=True)
    for number, entries in optimizer["state"].items():
        tensors |= {f"optimizer:{number}:{key}": torch.as_tensor(value) for key, value in entries.items()}
    return tensors


def assert_same_run(folder: Path, expected: Path) -> None:
    """Bit for bit the same metrics, weights, optimizer and generators, in the latest and the best checkpoint."""
    assert metrics_of(folder) == metrics_of(expected)
    for link in ("latest", "best"):
        ours, theirs = folder / "checkpoints" / link, expected / "checkpoints" / link
        assert ours.resolve().name == theirs.resolve().name
        states = [json.loads((path / "trainer_state" / "state.json").read_text()) for path in (ours, theirs)]
        assert states[0] == states[1]
        actual, wanted = tensors_of(ours), tensors_of(theirs)
        assert actual.keys() == wanted.keys()
        assert [name for name in wanted if not torch.equal(actual[name], wanted[name])] == []
