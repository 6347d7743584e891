"""Settings of a run: type, range, default, meaning and role; samplers, policies and chains have files of their own.

Defaults are those of no preset: careful enough for a model that was trained elsewhere. The classes are immutable and
check themselves, so a configuration that exists is valid.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from vampo_core.config.checks import ConfigError, MultipleOf, Range, check_fields
from vampo_core.config.roles import Role

Positive = Annotated[int, Range(minimum=1)]
Count = Annotated[int, Range(minimum=0)]
Above0 = Annotated[float, Range(above=0)]
AtLeast0 = Annotated[float, Range(minimum=0)]
Decay = Annotated[float, Range(minimum=0, below=1)]
Credit = Literal["frame", "clip", "pathwise"]

VAMPO = Role(decides=("vampo",))
BASE = Role(decides=("base",))
DATA = Role(decides=("data",))
SHAPE = Role(decides=("base", "vampo"))
CODEC = Role(decides=("codec", "vampo"))
FREE = Role(may_change=True)
"""A setting that decides nothing: it only says how or where a run is made."""


@dataclass(frozen=True, kw_only=True)
class GRPOConfig:
    """The policy-gradient loop."""

    ROLE: ClassVar[Role] = VAMPO

    num_iterations: Annotated[Positive, Role(decides=("vampo",), may_change=True, unless="optim.decay_steps")] = 30
    """Number of iterations: rollout, reward, update."""
    batch_size: Positive = 8
    """Clips per iteration (B), over all processes together."""
    num_generations: Annotated[int, Range(minimum=2)] = 8
    """Rollouts per clip (G), compared with each other."""
    num_inner_epochs: Positive = 1
    """Updates made from one iteration's rollouts."""
    clip_range: Above0 = 1e-3
    """Ratios count within 1 ± this; small, because log-probabilities are means over a frame's latents."""
    credit: Credit = "frame"
    """Rewards that a frame's draw is credited with: "frame" its own only, which leaves out what the draw does to other
    frames; "clip" the clip's mean, unbiased but with more variance; "pathwise" the derivative of the mean reward along
    the rest of its path, unbiased with little variance, where every reward is differentiable. The metric
    zero_std_fraction is the share of groups without spread in these rewards: of frames, or of whole clips."""
    rectify_steps: bool = False
    """With several stochastic steps, count each by the inverse of its gradient's scale, |b| / sigma_up, instead of
    equally (temporal gradient rectification, Flash-GRPO): otherwise small noise levels drown the others."""
    adv_clip_max: Above0 = 2.0
    """Advantages are clipped to ± this."""
    kl_coef: AtLeast0 = 0.0
    """Weight of the KL divergence from the base, a second denoiser in memory unless model.lora is set; 0 for none."""
    anchor_coef: AtLeast0 = 0.0
    """Weight of the squared distance from the base's output at the noise levels of the deterministic steps, which the
    policy gradient does not visit; 0 for none."""
    reuse_first_step: bool = True
    """Use the forward pass that drew the group for the first update too, instead of repeating it."""

    def __post_init__(self) -> None:
        check_fields(self, "grpo")
        if self.credit == "pathwise" and (self.num_inner_epochs > 1 or not self.reuse_first_step):
            raise ConfigError(
                f"grpo.credit is 'pathwise' with grpo.num_inner_epochs = {self.num_inner_epochs} and "
                f"grpo.reuse_first_step = {self.reuse_first_step}, expected 1 and true: the derivative is that of the "
                "pass that drew the group"
            )


@dataclass(frozen=True, kw_only=True)
class RewardConfig:
    """Weights of the built-in rewards, each per frame; 0 leaves one out.

    The reported held-out reward is always cosine - L1, so that runs with different rewards can be compared.
    """

    ROLE: ClassVar[Role] = VAMPO

    l1_weight: AtLeast0 = 1.0
    """Negative L1 distance from the expert's latents."""
    cosine_weight: AtLeast0 = 1.0
    """Cosine similarity to the expert's latents."""
    action_weight: AtLeast0 = 0.0
    """Negative error of the actions that a frozen decoder reads from the predicted video, against the expert's."""
    action_decoder: Annotated[str | tuple[str, ...], Role(decides=("vampo",), is_path=True)] | None = None
    """Folder of the decoder, or a list with one for each folder of ``data.root``; null: trained when missing."""
    motion_weight: AtLeast0 = 0.0
    """L1 and cosine of frame-to-frame differences, where a static background counts for nothing."""
    moving_weight: AtLeast0 = 0.0
    """Negative L1 distance from the expert's latents, weighted by how much these change at each place."""
    pixel_weight: AtLeast0 = 0.0
    """Negative L1 distance after decoding."""

    def __post_init__(self) -> None:
        check_fields(self, "reward")
        names = ("l1", "cosine", "action", "motion", "moving", "pixel")
        if not any(getattr(self, f"{name}_weight") for name in names):
            raise ConfigError("reward.l1_weight is 0.0 like every other weight, expected at least one above 0")


@dataclass(frozen=True, kw_only=True)
class AdamWConfig:
    """The optimizer and its learning-rate schedule: up, flat, down."""

    ROLE: ClassVar[Role]

    lr: Above0 = 3e-5
    """Learning rate between warm-up and decay."""
    weight_decay: AtLeast0 = 0.0
    """Decoupled weight decay."""
    max_grad_norm: Above0 = 0.5
    """Gradients are scaled down to this norm."""
    warmup_steps: Count = 0
    """Number of first updates over which the learning rate rises linearly from 0."""
    decay_steps: Count = 0
    """Number of last updates over which the learning rate falls linearly to 0; 0 for none."""
    beta1: Decay = 0.9
    """Decay of the gradient's running mean."""
    beta2: Decay = 0.999
    """Decay of the squared gradient's running mean."""


@dataclass(frozen=True, kw_only=True)
class OptimConfig(AdamWConfig):
    """The optimizer of the post-training."""

    ROLE: ClassVar[Role] = VAMPO

    gradient_accumulation_steps: Positive = 1
    """Number of parts that a batch is processed in, to bound memory; together they make one update."""

    def __post_init__(self) -> None:
        check_fields(self, "optim")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The video predictor; the fields from ``backbone`` on shape only a model from scratch."""

    ROLE: ClassVar[Role] = VAMPO

    pretrained: Annotated[str, Role(is_path=True)] | None = None
    """Model folder, checkpoint or run folder to start from; null for the embedded default, pretrained first."""
    text_encoder: Annotated[str, Role(decides=("vampo",), is_path=True)] | None = None
    """Folder of a CLIP text model, for a model that was published without it."""
    lora: Count = 0
    """Rank of the LoRA adapters that are trained instead of the whole denoiser; 0 for none. With ``dtype`` in half
    precision, the frozen weights are kept in it."""
    dtype: Annotated[Literal["float32", "bfloat16", "float16"], Role(decides=("base", "vampo"))] = "float32"
    """Precision of autocast around the denoiser."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    compile: Annotated[bool, FREE] = False
    """Run the denoiser through ``torch.compile``, on a GPU with CUDA graphs where there is no gradient. The first
    passes take minutes, and results differ by rounding. On a CPU it gains nothing."""
    ema_decay: Decay = 0.0
    """Decay of the running mean of the weights in post-training, which is then evaluated and saved; 0 for none."""
    backbone: Annotated[Literal["svd", "wan", "cosmos"], Role(decides=("base", "vampo"), is_later=True)] = "svd"
    """Network of a model from scratch: "svd", a UNet on EDM's process, or a transformer on a rectified flow, "wan" or
    "cosmos"."""
    patch_size: Annotated[Positive, CODEC] = 8
    """Pixels per latent along each side of the patch codec."""
    latent_channels: Annotated[Positive, CODEC] = 16
    """Channels of the latents (C)."""
    block_out_channels: Annotated[tuple[Annotated[int, MultipleOf(32)], ...], SHAPE] = (64, 64)
    """SVD: channels of the UNet at each resolution, the full one first; only the middle block attends."""
    layers_per_block: Annotated[Positive, SHAPE] = 1
    """SVD: residual blocks at each resolution."""
    num_layers: Annotated[Positive, Role(decides=("base", "vampo"), is_later=True)] = 6
    """Wan, Cosmos: blocks of the transformer."""
    num_attention_heads: Annotated[Positive, SHAPE] = 4
    """Heads of every attention; those of Wan and Cosmos have 32 channels each."""

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

    @property
    def num_blocks(self) -> int:
        """Number of blocks whose outputs can be features."""
        return len(self.block_out_channels) if self.backbone == "svd" else self.num_layers

    @property
    def num_halvings(self) -> int:
        """How often the network halves latents along each side."""
        return len(self.block_out_channels) - 1 if self.backbone == "svd" else 1

    def network_options(self) -> dict[str, Any]:
        """The architecture as arguments of ``UNetSpatioTemporalConditionModel``, or of a video transformer."""
        resolutions = len(self.block_out_channels)
        transformer = {"num_layers": self.num_layers, "num_attention_heads": self.num_attention_heads}
        svd = {
            "down_block_types": ("DownBlockSpatioTemporal",) * resolutions,
            "up_block_types": ("UpBlockSpatioTemporal",) * resolutions,
            "block_out_channels": self.block_out_channels,
            "layers_per_block": self.layers_per_block,
            "num_attention_heads": self.num_attention_heads,
        }
        return svd if self.backbone == "svd" else transformer


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Expert episodes and the clips cut from them."""

    ROLE: ClassVar[Role] = DATA

    format: Literal["recorded", "vpp", "lerobot"] = "recorded"
    """Layout of the data: ours, that of the Video Prediction Policy, or LeRobotDataset v3.0."""
    camera: Annotated[str | None, Role(decides=("data",), is_later=True)] = None
    """Camera of a LeRobot dataset, by its feature's name or the end of it, such as "front"; null for the only one."""
    state: Annotated[str, Role(decides=("data",), is_later=True)] = "observation.state"
    """Feature of a LeRobot dataset that is the robot's state."""
    action: Annotated[str, Role(decides=("data",), is_later=True)] = "action"
    """Feature of a LeRobot dataset that is the action."""
    root: Annotated[str | tuple[str, ...], Role(decides=("data",), may_change=True, is_path=True)] = "data/episodes"
    """Folder of the dataset, or a list of several that are trained on together; of a LeRobot dataset also its name on
    the Hugging Face hub, such as "lerobot/pusht"."""
    cache: Annotated[str | None, Role(may_change=True, is_path=True)] = None
    """Folder for latents and features; null for the dataset's own, or ``~/.cache/vampo_core`` if it is read-only."""
    weights: tuple[Above0, ...] | None = None
    """Relative frequency of each folder in training; null for the number of its clips."""
    num_frames: Annotated[int, Range(minimum=2)] = 8
    """Frames of a clip (F), the given first one included."""
    stride: Positive = 1
    """Episode frames from one frame of a clip to the next."""
    sampling: Literal["stride", "episode"] = "stride"
    """Clips by stride (robot data), or one per episode, evenly spaced (internet-style data)."""
    batch_size: Annotated[Positive, Role()] = 32
    """Frames that the codec encodes at once."""
    held_out_fraction: Annotated[float, Range(above=0, below=1)] = 0.2
    """Share of the episodes that is never trained on; unused where the dataset says which episodes are held out."""
    num_workers: Annotated[Count, FREE] = 0
    """Processes that read clips and record episodes, and threads that decode videos to encode them; 0 for the main
    process, which reads ahead where a GPU works."""
    strict: Annotated[bool, Role()] = False
    """Make an episode that cannot be read an error, instead of skipping it."""
    env: str | None = None
    """Simulator to record missing episodes in, or several separated by commas; null for none."""
    num_episodes: Annotated[int, Range(minimum=2)] = 120
    """Number of episodes to record, over all simulators; with ``data.env`` the run uses these and no others."""
    action_noise: AtLeast0 = 0.0
    """Standard deviation of the pushes that now and then take experts off their way while they are recorded, in half
    the range of an action; episodes then show how to come back. The experts' own actions are recorded. 0 for none."""
    resolution: Annotated[Positive | tuple[Positive, ...], Role(decides=("codec", "data"))] = 64
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
                "simulators are recorded in the format 'recorded', and closed_loop.env is where policies act"
            )
        for name, default in (("camera", None), ("state", "observation.state"), ("action", "action")):
            if self.format != "lerobot" and getattr(self, name) != default:
                raise ConfigError(
                    f"data.{name} is {getattr(self, name)!r} with data.format = {self.format!r}, expected "
                    f"{default or 'null'}: only LeRobot datasets have several"
                )
        if isinstance(self.resolution, tuple) and len(self.resolution) != 2:
            raise ConfigError(f"data.resolution is {list(self.resolution)}, expected one number or [height, width]")

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

    ROLE: ClassVar[Role] = BASE

    num_steps: Annotated[Positive, Role(decides=("base",), may_change=True, unless="pretrain.decay_steps")] = 1200
    """Number of updates."""
    batch_size: Positive = 8
    """Clips per update, over all processes together."""
    lr: Above0 = 3e-4
    """Learning rate between warm-up and decay."""
    max_grad_norm: Above0 = 1.0
    """Gradients are scaled down to this norm."""
    warmup_steps: Count = 100
    """Number of first updates over which the learning rate rises linearly from 0."""
    ema_decay: Decay = 0.999
    """Decay of the running mean of the weights, which is then evaluated and saved; 0 for none."""
    p_mean: float = 0.7
    """Mean of ln sigma in training (SVD: 0.7, EDM: -1.2), or of logit sigma for a flow, before its shift."""
    p_std: Above0 = 1.6
    """Standard deviation of ln sigma in training (SVD: 1.6, EDM: 1.2), or of logit sigma for a flow (1)."""
    condition_dropout: Annotated[float, Range(minimum=0, below=1)] = 0.0
    """Share of clips trained without their condition, which guidance needs (Ho and Salimans 2022, arXiv 2207.12598)."""
    eval_every: Annotated[Positive, Role(decides=("base",), may_change=True)] = 400
    """Updates between evaluations on held-out clips."""
    save_every: Annotated[Positive, Role(decides=("base",), may_change=True)] = 400
    """Updates between checkpoints."""

    def __post_init__(self) -> None:
        check_fields(self, "pretrain")


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """Measurement on held-out clips, with the same noise every time."""

    ROLE: ClassVar[Role] = Role(decides=("evaluation",))

    num_clips: Annotated[int, Range(minimum=2)] = 64
    """Number of clips, spread over the held-out episodes."""
    num_samples: Positive = 1
    """Number of videos predicted for each clip."""
    batch_size: Positive = 16
    """Number of videos predicted at once."""
    cheap_tail: Annotated[bool, Role(decides=("vampo",))] = False
    """Predict held-out videos with ``sampler.tail_steps`` too, instead of with the whole schedule."""
    seed: Count = 0
    """Seed of the noise, and of the judge."""
    action_error: Annotated[bool, Role(decides=("vampo",))] = True
    """Measure the actions in predicted videos with a judge: a decoder that no training sees, trained when missing;
    without actions in the data, or with clips of whole episodes, there is none."""
    best_by: Annotated[
        Literal["reward", "l1", "cosine", "motion_ratio", "action_error", "action_ratio"], Role(decides=("vampo",))
    ] = "reward"
    """Metric that chooses the best checkpoint: errors count down, ratios towards 1; ``reward`` is cosine and L1 with
    the weights of ``reward``."""

    def __post_init__(self) -> None:
        check_fields(self, "evaluation")
        if self.best_by.startswith("action") and not self.action_error:
            raise ConfigError(
                f"evaluation.best_by is {self.best_by!r} with evaluation.action_error = False, expected true: nothing "
                "else measures actions"
            )


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The run as a whole."""

    ROLE: ClassVar[Role] = FREE

    dir: Annotated[str, Role(may_change=True, is_path=True)] = "runs/run"
    """Folder of configuration, metrics, checkpoints, samples and report."""
    seed: Annotated[int, Range(minimum=0, below=2**32), Role(decides=("base", "evaluation"))] = 0
    """Seed of everything drawn at random."""
    eval_every: Annotated[Positive, Role(decides=("vampo",), may_change=True)] = 10
    """Iterations between evaluations on held-out clips; one of them gives the best checkpoint."""
    save_every: Positive = 10
    """Iterations between checkpoints."""
    overwrite: bool = False
    """Delete the run that ``run.dir`` holds, instead of refusing to start."""
    num_threads: Count = 0
    """CPU threads of torch; 0 keeps torch's own number, except in closed loops, where a policy then uses one."""
    keep_memory: bool = True
    """Keep freed memory in the process where the work is done on a CPU (glibc): at real latent sizes half of the time
    goes into giving it back and getting it again. Nothing on a GPU, whose memory torch keeps anyway."""
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Trackers that get the metrics besides ``metrics.jsonl``."""

    def __post_init__(self) -> None:
        check_fields(self, "run")
