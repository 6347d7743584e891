"""Every setting of a run but a policy's (``policy_sections.py``), with its default, range and meaning.

Defaults are careful enough for a model that was trained elsewhere; presets hold what differs. The classes are immutable
and check themselves, so a configuration that exists is valid; ``load_config(config, "grpo.num_generations=16")`` makes
a changed one.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from vampo_core.config.checks import ConfigError, MultipleOf, Range, check_fields

Positive = Annotated[int, Range(minimum=1)]
Count = Annotated[int, Range(minimum=0)]
Above0 = Annotated[float, Range(above=0)]
AtLeast0 = Annotated[float, Range(minimum=0)]
Decay = Annotated[float, Range(minimum=0, below=1)]


@dataclass(frozen=True, kw_only=True)
class GRPOConfig:
    """The policy-gradient loop."""

    num_iterations: Positive = 30
    """Rollout, reward, update: how often."""
    batch_size: Positive = 8
    """Clips per iteration (B), over all processes together."""
    num_generations: Annotated[int, Range(minimum=2)] = 8
    """Rollouts per clip (G), compared with each other."""
    num_inner_epochs: Positive = 1
    """Updates made from one iteration's rollouts."""
    clip_range: Above0 = 1e-3
    """Ratios count within 1 ± this; small, because log-probabilities are means over a frame's latents."""
    adv_clip_max: Above0 = 2.0
    """Advantages are clipped to ± this."""
    kl_coef: AtLeast0 = 0.0
    """Weight of the KL divergence from the base model, which is a second UNet in memory unless model.lora is set."""
    anchor_coef: AtLeast0 = 0.0
    """Weight of the squared distance from the base's output at noise levels of the ODE tail, which the policy gradient
    does not visit; 0 for none."""
    reuse_first_step: bool = True
    """Use the forward pass that drew the group for the first update too, instead of repeating it."""

    def __post_init__(self) -> None:
        check_fields(self, "grpo")


@dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    """Euler Hybrid sampling: noise where the policy acts, an ODE everywhere else.

    What is null is the predictor's own setting, as its folder tells; one made from scratch has the one in brackets.
    """

    num_inference_steps: Annotated[int, Range(minimum=2)] | None = None
    """Denoiser evaluations of one video (T) [8]."""
    sigma_min: Above0 | None = None
    """Smallest noise level above 0 [0.002]."""
    sigma_max: Above0 | None = None
    """Largest noise level [80; SVD: 700]."""
    rho: Above0 | None = None
    """Exponent of the Karras schedule [7]."""
    eta: Above0 = 1.0
    """Noise of the stochastic steps; 1 is the full ancestral step."""
    stochastic_steps: tuple[Count, ...] = (0,)
    """Indices of the steps that draw noise; the last step, to noise level 0, cannot."""
    guidance_scale: AtLeast0 | None = None
    """Classifier-free guidance of the last frame, linear from 1 at the first; 1 is none [1]."""
    antithetic: bool = False
    """Draw a group's noise in pairs z, -z."""
    shared_noise: bool = True
    """One initial noise per clip, shared by its group; otherwise one per generation."""
    tail_chunk_size: Positive | None = None
    """Videos that the deterministic steps work on at once, to bound memory; null for all."""

    def __post_init__(self) -> None:
        check_fields(self, "sampler")
        object.__setattr__(self, "stochastic_steps", tuple(sorted(set(self.stochastic_steps))))
        if self.sigma_min is not None and self.sigma_max is not None and self.sigma_min >= self.sigma_max:
            raise ConfigError(
                f"sampler.sigma_min is {self.sigma_min}, expected less than sampler.sigma_max = {self.sigma_max}"
            )
        last = None if self.num_inference_steps is None else self.num_inference_steps - 2
        if not self.stochastic_steps or (last is not None and self.stochastic_steps[-1] > last):
            raise ConfigError(
                f"sampler.stochastic_steps is {list(self.stochastic_steps)}, expected at least one index from 0 to "
                f"sampler.num_inference_steps - 2{'' if last is None else f' = {last}'}: the step to noise level 0 has "
                "no density"
            )
        if self.antithetic and not self.shared_noise:
            raise ConfigError(
                "sampler.antithetic is True with sampler.shared_noise = False, expected shared noise: "
                "pairs z, -z need one starting point"
            )

    def overrides(self) -> dict[str, Any]:
        """What is set, as :class:`~vampo_core.EulerHybridSampler` names it."""
        fields = {
            "num_inference_steps": self.num_inference_steps,
            "sigma_min": self.sigma_min,
            "sigma_max": self.sigma_max,
            "rho": self.rho,
            "eta": self.eta,
            "stochastic_steps": self.stochastic_steps,
            "guidance_scale": self.guidance_scale,
            "min_guidance_scale": None if self.guidance_scale is None else 1.0,
        }
        return {name: value for name, value in fields.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class RewardConfig:
    """Weights of the built-in rewards, each per frame; 0 leaves one out.

    The best checkpoint is chosen by held-out L1 and cosine in these weights. What is reported as the held-out reward is
    always cosine - L1, so that runs with different rewards compare.
    """

    l1_weight: AtLeast0 = 1.0
    """Negative L1 distance from the expert's latents."""
    cosine_weight: AtLeast0 = 1.0
    """Cosine similarity to the expert's latents."""
    motion_weight: AtLeast0 = 0.0
    """L1 and cosine of frame-to-frame differences, where a static background counts for nothing."""
    pixel_weight: AtLeast0 = 0.0
    """Negative L1 distance after decoding."""

    def __post_init__(self) -> None:
        check_fields(self, "reward")
        if not any((self.l1_weight, self.cosine_weight, self.motion_weight, self.pixel_weight)):
            raise ConfigError("reward.l1_weight is 0.0 like every other weight, expected at least one above 0")


@dataclass(frozen=True, kw_only=True)
class AdamWConfig:
    """The optimizer and its learning-rate schedule: up, flat, down."""

    lr: Above0 = 3e-5
    """Learning rate between warm-up and decay."""
    weight_decay: AtLeast0 = 0.0
    """Decoupled weight decay."""
    max_grad_norm: Above0 = 0.5
    """Gradients are scaled down to this norm."""
    warmup_steps: Count = 0
    """First updates, over which the learning rate rises from 0, linearly."""
    decay_steps: Count = 0
    """Last updates, over which the learning rate falls to 0, linearly."""
    beta1: Decay = 0.9
    """Decay of the gradient's running mean."""
    beta2: Decay = 0.999
    """Decay of the squared gradient's running mean."""


@dataclass(frozen=True, kw_only=True)
class OptimConfig(AdamWConfig):
    """AdamW of the post-training."""

    gradient_accumulation_steps: Positive = 1
    """Parts that a batch is worked through in, to bound memory; they make one update together."""

    def __post_init__(self) -> None:
        check_fields(self, "optim")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The video predictor; the fields from ``patch_size`` on shape the embedded default alone."""

    pretrained: str | None = None
    """Checkpoint folder to start from; null for the embedded default, pretrained first."""
    text_encoder: str | None = None
    """Folder of a CLIP text model, for a checkpoint that was published without it."""
    lora: Count = 0
    """Rank of the adapters that are trained instead of the whole UNet; 0 for none."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Precision of autocast around the UNet."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    ema_decay: Decay = 0.0
    """Decay of the policy's running mean, which is then what is evaluated and saved; 0 for none."""
    patch_size: Positive = 8
    """Pixels per latent along each side of the patch codec."""
    latent_channels: Positive = 16
    """Channels of the latents (C)."""
    block_out_channels: tuple[Annotated[int, MultipleOf(32)], ...] = (64, 64)
    """Channels of the UNet at each resolution, the full one first; attention in the middle block alone."""
    layers_per_block: Positive = 1
    """Residual blocks at each resolution."""
    num_attention_heads: Positive = 4
    """Heads of every attention."""

    def __post_init__(self) -> None:
        check_fields(self, "model")
        if len(self.block_out_channels) < 2:
            raise ConfigError(
                f"model.block_out_channels is {list(self.block_out_channels)}, expected at least 2 resolutions"
            )
        odd = [channels for channels in self.block_out_channels if channels % self.num_attention_heads]
        if odd:
            raise ConfigError(
                f"model.num_attention_heads is {self.num_attention_heads}, expected a divisor of "
                f"model.block_out_channels = {list(self.block_out_channels)}"
            )

    def unet_options(self) -> dict[str, Any]:
        """The architecture as arguments of ``UNetSpatioTemporalConditionModel``."""
        resolutions = len(self.block_out_channels)
        return {
            "down_block_types": ("DownBlockSpatioTemporal",) * resolutions,
            "up_block_types": ("UpBlockSpatioTemporal",) * resolutions,
            "block_out_channels": self.block_out_channels,
            "layers_per_block": self.layers_per_block,
            "num_attention_heads": self.num_attention_heads,
        }


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Expert episodes and the clips cut from them."""

    format: Literal["recorded", "vpp"] = "recorded"
    """Layout of the data: ours, or that of the Video Prediction Policy."""
    root: str | tuple[str, ...] = "data/pusht"
    """Folder of the dataset, or a list of several that are trained on together."""
    weights: tuple[Above0, ...] | None = None
    """How often each folder is drawn from in training, relative to the others; null for by number of clips."""
    num_frames: Annotated[int, Range(minimum=2)] = 8
    """Frames of a clip (F), the given first one included."""
    stride: Positive = 3
    """Episode frames from one frame of a clip to the next."""
    sampling: Literal["stride", "episode"] = "stride"
    """Clips by stride (robot data), or one per episode, evenly spaced (internet-style data)."""
    batch_size: Positive = 32
    """Frames that the codec encodes at once."""
    held_out_fraction: Annotated[float, Range(above=0, below=1)] = 0.2
    """Share of the episodes that is never trained on."""
    num_workers: Count = 0
    """Processes that read clips, and that record episodes; 0 for this one."""
    strict: bool = False
    """An episode that cannot be read is an error instead of being skipped."""
    env: str | None = "pusht"
    """Simulator to record the dataset from where it does not exist, or several with commas between; null for none."""
    num_episodes: Annotated[int, Range(minimum=2)] = 120
    """Episodes to record, over all simulators; with ``data.env`` the run uses these, and no others in ``data.root``."""
    action_noise: AtLeast0 = 0.0
    """What now and then pushes experts off their way while they are recorded, standard deviation in half the range of
    an action, so that episodes show how to come back; recorded are the experts' own actions."""
    steps_after_success: Count = 0
    """Actions for which experts go on after success while they are recorded, so that episodes show how to stay."""
    resolution: Positive | tuple[Positive, ...] = 64
    """Pixels along each side of a frame, or [height, width] for videos that are not square."""

    def __post_init__(self) -> None:
        check_fields(self, "data")
        names = [Path(root).name for root in self.roots]
        if not names or len(set(names)) < len(names):
            raise ConfigError(f"data.root is {list(self.roots)}, expected folders of different names")
        if len(names) > 1 and self.env is not None:
            raise ConfigError(
                f"data.root is {list(self.roots)} with data.env = {self.env!r}, expected one folder to record into"
            )
        if self.weights is not None and len(self.weights) != len(names):
            raise ConfigError(
                f"data.weights is {list(self.weights)}, expected as many numbers as data.root has folders: {len(names)}"
            )
        if self.format != "recorded" and self.env is not None:
            raise ConfigError(
                f"data.env is {self.env!r} with data.format = {self.format!r}, expected null: "
                "a simulator is recorded in the format 'recorded'"
            )
        if isinstance(self.resolution, tuple) and (len(self.resolution) != 2 or self.env is not None):
            expected = "[height, width]" if self.env is None else f"one number: {self.env} renders squares"
            raise ConfigError(f"data.resolution is {list(self.resolution)}, expected {expected}")

    @property
    def roots(self) -> tuple[str, ...]:
        """The folders of ``root``."""
        return self.root if isinstance(self.root, tuple) else (self.root,)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of a frame."""
        height, width = self.resolution if isinstance(self.resolution, tuple) else (self.resolution, self.resolution)
        return height, width


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(AdamWConfig):
    """Likelihood training (Karras et al. 2022, table 1) of the base model."""

    num_steps: Positive = 1200
    """Updates."""
    batch_size: Positive = 8
    """Clips per update, over all processes together."""
    lr: Above0 = 3e-4
    """Learning rate between warm-up and decay."""
    max_grad_norm: Above0 = 1.0
    """Gradients are scaled down to this norm."""
    warmup_steps: Count = 100
    """First updates, over which the learning rate rises from 0, linearly."""
    ema_decay: Decay = 0.999
    """Decay of the weights' running mean, which is then what is evaluated and saved; 0 for none."""
    p_mean: float = 0.7
    """Mean of ln sigma in training (SVD: 0.7, EDM: -1.2)."""
    p_std: Above0 = 1.6
    """Standard deviation of ln sigma in training (SVD: 1.6, EDM: 1.2)."""
    eval_every: Positive = 400
    """Updates between evaluations on held-out clips."""
    save_every: Positive = 400
    """Updates between checkpoints."""

    def __post_init__(self) -> None:
        check_fields(self, "pretrain")


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """Measurement on held-out clips, with the same noise every time."""

    num_clips: Annotated[int, Range(minimum=2)] = 64
    """Clips, spread over the held-out episodes."""
    num_samples: Positive = 1
    """Videos predicted of each."""
    batch_size: Positive = 16
    """Videos predicted at once."""
    seed: Count = 0
    """Of the noise."""

    def __post_init__(self) -> None:
        check_fields(self, "evaluation")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The run as a whole."""

    dir: str = "runs/pusht"
    """Folder of the configuration, metrics, checkpoints, samples and report."""
    seed: Annotated[int, Range(minimum=0, below=2**32)] = 0
    """Of everything drawn at random."""
    eval_every: Positive = 10
    """Iterations between evaluations on held-out clips."""
    save_every: Positive = 10
    """Iterations between checkpoints."""
    overwrite: bool = False
    """Delete the run that ``run.dir`` holds, instead of refusing to start."""
    num_threads: Count = 0
    """CPU threads of torch; 0 leaves them as they are, but for closed loops, in which a policy then takes one."""
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Where metrics go beside ``metrics.jsonl``."""

    def __post_init__(self) -> None:
        check_fields(self, "run")
