"""How much memory a post-training will take, before any weight is loaded."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from vampo_core.config import VampoConfig
from vampo_core.diffusion.sampler import EulerHybridSampler
from vampo_core.models.codecs.base import Codec
from vampo_core.models.codecs.latent import LatentCodec
from vampo_core.models.codecs.wan_vae import WanVAECodec
from vampo_core.models.predictor import VideoPredictor
from vampo_core.models.registry import backbone_class, backbone_of
from vampo_core.models.settings import as_dtype
from vampo_core.pipeline.clips import windows_of
from vampo_core.pipeline.predictor import add_adapters, check_sampler, predictor_folder
from vampo_core.training.peak_memory import LiveBytes, without_data
from vampo_core.training.processes import new_accelerator
from vampo_core.training.sharding import blocks_of, is_sharding

FLOAT32 = 4


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes on one device, by what takes them."""

    weights: int
    """Weights of denoiser and codec; the text encoder is let go once all instructions are embedded.

    Of a sharded denoiser one share of them, and whole ones of what runs at a time.
    """
    optimizer: int
    """AdamW's two moments, gradients, and the running mean of the weights, of what is trained."""
    reference: int
    """The frozen base that ``grpo.kl_coef`` and ``grpo.anchor_coef`` compare with; with adapters it needs none."""
    videos: int
    """Latent videos of a part of the batch: draws, predictions, and what rewards are made from."""
    rollout: int
    """Activations of the pass that draws the groups, kept for the update, and of the tail behind it."""
    update: int
    """Activations of the pass with gradient and its backward pass."""
    num_weights: int
    """Weights of the denoiser."""
    num_trained: int
    """Weights that are trained."""

    @property
    def total(self) -> int:
        """Largest sum at any time: the update begins when the rollout is done."""
        return self.weights + self.optimizer + self.reference + self.videos + max(self.rollout, self.update)

    def advice(self, config: VampoConfig) -> str:
        """The setting that lowers the largest part."""
        parts = {"weights": self.weights + self.reference, "optimizer": self.optimizer}
        parts |= {"rollout": self.rollout, "update": self.update, "videos": self.videos}
        largest = max(parts, key=lambda name: parts[name])
        if largest in ("weights", "optimizer"):
            if not config.model.lora:
                return "model.lora=16 with model.dtype=bfloat16: adapters on frozen weights in half precision"
            return (
                "model.dtype=bfloat16" if config.model.dtype == "float32" else "a larger device, or several with FSDP"
            )
        if largest == "rollout" and config.sampler.tail_chunk_size != 1:
            return "a smaller sampler.tail_chunk_size"
        if not config.model.gradient_checkpointing:
            return "model.gradient_checkpointing=true"
        return "more optim.gradient_accumulation_steps, which make the parts of a batch smaller"


def memory_plan(config: VampoConfig, *, num_processes: int = 1, sharded: bool = False) -> MemoryPlan:
    """Memory of ``vampo train`` on each device, counted on a model without weights.

    Activations are those of the same passes, run on tensors without data; a GPU's kernels may keep somewhat more or
    less. Frames have the size ``data.resolution``.

    Args:
        config: settings of the run.
        num_processes: number of processes that share the batch.
        sharded: whether they share weights and optimizer, too.

    Raises:
        ConfigError: clips do not divide into latents.
        ValueError: there is no such model.
    """
    model = _skeleton(config)
    check_sampler(config, model)
    sampler, grpo, data = model.sampler(**config.sampler.overrides(cheap_tail=True)), config.grpo, config.data
    num_clips = max(1, grpo.batch_size // (config.optim.gradient_accumulation_steps * num_processes))
    rows = num_clips * grpo.num_generations
    chunk = min(rows, config.sampler.tail_chunk_size or rows)
    windows = windows_of(config, model.codec)
    num_frames = data.num_frames if windows is None else windows.num_latents
    height, width = (size // model.codec.spatial_ratio for size in data.image_size)
    clip = (num_frames, model.codec.latent_channels, height, width)
    trained = [parameter for parameter in model.denoiser_network.parameters() if parameter.requires_grad]
    passes = _Passes(model, sampler, clip)
    update = passes.run(num_clips, backward=True).peak
    rollout = passes.run(num_clips).live
    if grpo.credit == "pathwise":
        steps = sampler.num_steps - sampler.first_stochastic_step - 1
        rollout += (steps - 1) * passes.run(chunk).live + passes.run(chunk, backward=True).peak
    else:
        tail = config.sampler.tail_dtype  # in float8 the rest of the tail is in bfloat16, and so is much of its memory
        dtype = None if tail is None else torch.bfloat16 if tail == "float8" else as_dtype(tail)
        rollout += passes.run(chunk, gradient=False, dtype=dtype).peak
    num_trained = sum(parameter.numel() for parameter in trained)
    moments = 4 if config.model.ema_decay else 3  # gradient, two moments, running mean
    compares = (grpo.kl_coef > 0 or grpo.anchor_coef > 0) and not config.model.lora
    num_shares = num_processes if sharded else 1
    network = _bytes(model.denoiser_network) // num_shares
    gathered = _gathered_bytes(model) if sharded else 0
    return MemoryPlan(
        weights=network + _codec_bytes(model.codec, config) + gathered,
        optimizer=moments * FLOAT32 * num_trained // num_shares,
        reference=network if compares else 0,
        videos=4 * FLOAT32 * rows * math.prod(clip),
        rollout=rollout,
        update=update,
        num_weights=model.num_parameters,
        num_trained=num_trained,
    )


def announce_memory(config: VampoConfig) -> None:
    """Before a run on a GPU, say what it will take and, where that is more than there is, which setting takes less."""
    accelerator = new_accelerator()
    if accelerator.device.type == "cuda" and accelerator.is_main_process:
        capacity = torch.cuda.get_device_properties(accelerator.device).total_memory
        try:
            plan = memory_plan(config, num_processes=accelerator.num_processes, sharded=is_sharding(accelerator))
        except (ValueError, RuntimeError) as error:  # what is wrong with the run itself is said by what it is wrong for
            print(f"memory: not planned ({error})", flush=True)
        else:
            print(memory_table(plan, config, capacity=capacity), flush=True)


def memory_table(plan: MemoryPlan, config: VampoConfig, *, capacity: int | None = None) -> str:
    """The plan for people.

    Args:
        plan: the plan.
        config: settings of the run.
        capacity: bytes of the device; None where there is none to compare with.
    """
    parts = {
        "weights": "denoiser and codec",
        "optimizer": "gradients, AdamW, running mean",
        "reference": "the frozen base, for grpo.kl_coef and grpo.anchor_coef",
        "videos": "latent videos of a part of the batch",
        "rollout": "activations, until the update begins",
        "update": "activations, once the rollout is done",
        "total": "at most, on each device",
    }
    rows = [f"{_count(plan.num_weights)} weights, {_count(plan.num_trained)} of them trained"]
    rows += [f"  {name:10}{_size(getattr(plan, name)):>11}   {meaning}" for name, meaning in parts.items()]
    if capacity is None or plan.total > capacity:
        has = "" if capacity is None else f"the device has {_size(capacity)}; "
        rows.append(f"{has}to take less: {plan.advice(config)}")
    return "\n".join(rows)


def _size(number: int) -> str:
    """Bytes in MiB or GiB."""
    return f"{number / 2**30:.1f} GiB" if number >= 2**30 else f"{number / 2**20:.1f} MiB"


def _count(number: int) -> str:
    """A large number in millions or billions."""
    return f"{number / 1e9:.2f} billion" if number >= 1e9 else f"{number / 1e6:.2f} million"


def _skeleton(config: VampoConfig) -> VideoPredictor:
    """The model of a configuration without weights, with its adapters."""
    if config.model.pretrained is None:
        codec = LatentCodec(latent_channels=config.model.latent_channels, spatial_ratio=config.model.patch_size)
        kind = backbone_class(config.model.backbone)
        with torch.random.fork_rng():
            model = kind.create(
                codec,
                num_frames=config.data.num_frames,
                dtype=config.model.dtype,
                device="meta",
                **config.model.network_options(),
            )
    else:
        folder = predictor_folder(config.model.pretrained)
        model = backbone_of(folder).skeleton(folder, dtype=config.model.dtype)
    add_adapters(config, model)
    if config.model.gradient_checkpointing:
        model.enable_gradient_checkpointing()
    return model.train()


class _Activations(NamedTuple):
    """Bytes of activations."""

    live: int  # when the pass is done, its output included
    peak: int


class _Passes:
    """Passes of a denoiser without weights, and the memory that they take.

    Args:
        model: predictor whose network is on torch's meta device.
        sampler: noise levels and guidance.
        clip: shape ``(F, C, h, w)`` of a latent clip.
    """

    def __init__(self, model: VideoPredictor, sampler: EulerHybridSampler, clip: tuple[int, ...]) -> None:
        self._model, self._clip, self._sigma = model, clip, sampler.first_sigma
        self._num_halves = 2 if sampler.uses_guidance else 1
        self._mode = FakeTensorMode()
        with self._mode:
            without_data(model.denoiser_network)
            for parameter in model.denoiser_network.parameters():
                parameter.grad = (
                    torch.empty_like(parameter) if parameter.requires_grad else None
                )  # the optimizer's share
        first = torch.zeros(1, *clip[1:])
        self._condition = model.condition(instructions=["instruction"], first_latents=first).detach()

    def run(
        self, num_clips: int, *, gradient: bool = True, backward: bool = False, dtype: torch.dtype | None = None
    ) -> "_Activations":
        """Activations of a pass.

        Args:
            num_clips: number of clips, each twice where guidance is on.
            gradient: whether the pass keeps what its backward pass needs.
            backward: whether this is run, too.
            dtype: precision of autocast, see :meth:`VideoPredictor.denoiser`.
        """
        model, rows = self._model, num_clips * self._num_halves
        with self._mode:
            condition = self._condition._map(self._mode.from_tensor).repeat(rows)
            sample = model.predicted(torch.empty(rows, *self._clip))
            with LiveBytes(model) as count, torch.set_grad_enabled(gradient):
                output = model.denoiser(condition, dtype=dtype)(sample, self._sigma, None)[0]
                if backward:
                    output.float().square().mean().backward()
                return _Activations(count.live, count.peak)


def _codec_bytes(codec: Codec, config: VampoConfig) -> int:
    """Weights of the codec; Wan's VAE is loaded only where rewards need frames."""
    if isinstance(codec, WanVAECodec):
        return _bytes(codec.vae) if config.reward.pixel_weight else 0
    return _bytes(codec) if isinstance(codec, nn.Module) else 0


def _bytes(module: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in module.parameters())


def _gathered_bytes(model: VideoPredictor) -> int:
    """What is whole at a time of a sharded denoiser: a block, the next one on its way, and all that is in no block."""
    dtype = model.dtype

    def size(module: nn.Module) -> int:
        return sum(p.numel() * min(p.element_size(), dtype.itemsize) for p in module.parameters())

    blocks = [size(block) for block in blocks_of(model.denoiser_network)]
    return size(model.denoiser_network) - sum(blocks) + 2 * max(blocks, default=0)
