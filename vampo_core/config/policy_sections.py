"""Settings of policies: their training, and their episodes in simulators."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from vampo_core.config.checks import ConfigError, MultipleOf, Range, check_fields
from vampo_core.config.roles import Role
from vampo_core.config.sections import FREE, Above0, AdamWConfig, AtLeast0, Count, Decay, Positive

STORED = Role(decides=("policy",), is_stored=True)


@dataclass(frozen=True, kw_only=True)
class PolicyConfig(AdamWConfig):
    """The policy and its training; ``evaluation`` says on how many held-out frames its error is measured."""

    ROLE: ClassVar[Role] = Role(decides=("policy",))

    kind: Literal["vpp", "inverse_dynamics"] = "vpp"
    """``vpp``: a diffusion head on predictive features. ``inverse_dynamics``: imagine a video, decode its actions."""
    num_episodes: Annotated[Positive | None, Role(decides=("decoder", "vampo", "policy"))] = None
    """Number of training episodes whose actions a policy, or a decoder for rewards, learns from; null for all."""
    predictor: Annotated[str, Role(is_path=True)] | None = None
    """Run folder, checkpoint or model folder of the video predictor; null for the base that ``train`` starts from."""
    features: Annotated[Literal["predictive", "latents"], STORED] = "predictive"
    """What the policy sees: the predictor's features, or as a control only the current frame's latents."""
    feature_layers: Annotated[tuple[Count, ...], STORED] = (0, 1)
    """Feature layers of the predictor (up blocks of a UNet), in ascending order."""
    action_horizon: Annotated[Positive, STORED] = 16
    """Actions predicted at once, a chunk (H)."""
    num_executed_steps: Annotated[Positive, STORED] = 8
    """Control steps from one prediction to the next."""
    temporal_ensemble: Annotated[AtLeast0 | None, STORED] = None
    """Average all chunks that cover a step, the i-th oldest weighted exp(-i times this); null: the newest one only."""
    num_sampling_steps: Annotated[int, Range(minimum=2), STORED] = 8
    """Denoising steps of a chunk."""
    num_queries: Annotated[Positive, STORED] = 4
    """Tokens of each predicted frame (Q)."""
    former_depth: Annotated[Positive, STORED] = 2
    """Layers of the Video Former."""
    depth: Annotated[Positive, STORED] = 4
    """Layers of the action head."""
    width: Annotated[int, MultipleOf(4), STORED] = 96
    """Channels of Video Former and action head."""
    num_attention_heads: Annotated[Positive, STORED] = 4
    """Heads of every attention in Video Former and action head."""
    train_predictor: bool = False
    """Train the predictor with the policy, instead of keeping it frozen and its features in a cache."""
    predictor_lr_scale: Above0 = 0.1
    """Learning rate of the predictor, in units of ``lr``."""
    num_steps: Annotated[Positive, Role(decides=("policy",), may_change=True, unless="policy.decay_steps")] = 2000
    """Number of updates."""
    batch_size: Positive = 32
    """Frames per update, over all processes together."""
    lr: Above0 = 1e-3
    """Learning rate between warm-up and decay."""
    weight_decay: AtLeast0 = 1e-4
    """Decoupled weight decay."""
    max_grad_norm: Above0 = 1.0
    """Gradients are scaled down to this norm."""
    warmup_steps: Count = 100
    """Number of first updates over which the learning rate rises linearly from 0."""
    decay_steps: Count = 1000
    """Number of last updates over which the learning rate falls linearly to 0; 0 for none."""
    ema_decay: Decay = 0.995
    """Decay of the running mean of the weights, which is then evaluated and saved; 0 for none."""
    eval_every: Annotated[Positive, Role(decides=("policy",), may_change=True)] = 500
    """Updates between evaluations on held-out frames."""
    save_every: Annotated[Positive, Role(decides=("policy",), may_change=True)] = 500
    """Updates between checkpoints."""

    def __post_init__(self) -> None:
        check_fields(self, "policy")
        if self.num_executed_steps > self.action_horizon:
            raise ConfigError(
                f"policy.num_executed_steps is {self.num_executed_steps}, expected at most policy.action_horizon = "
                f"{self.action_horizon}"
            )
        layers = list(self.feature_layers)
        if not layers or layers != sorted(set(layers)):
            raise ConfigError(f"policy.feature_layers is {layers}, expected ascending indices of up blocks")
        if self.width % self.num_attention_heads:
            raise ConfigError(
                f"policy.num_attention_heads is {self.num_attention_heads}, expected a divisor of policy.width = "
                f"{self.width}"
            )
        if self.train_predictor and self.features == "latents":
            raise ConfigError(
                "policy.train_predictor is True with policy.features = latents, expected false: its forward is not run"
            )


@dataclass(frozen=True, kw_only=True)
class DecoderConfig(AdamWConfig):
    """The action decoder (inverse dynamics): from the latents of two frames to the actions between them.

    Its network is that of every decoder. Its training is that of decoders which are made on the way, for rewards, as a
    judge and in a chain; ``vampo policy train policy.kind=inverse_dynamics`` trains as the section ``policy`` says.
    """

    ROLE: ClassVar[Role] = Role(decides=("decoder", "vampo", "policy"))

    width: Positive = 64
    """Channels of the convolutions."""
    latent_noise: AtLeast0 = 0.05
    """Standard deviation of the noise on latents in training, against errors that predicted videos have."""
    num_steps: Positive = 3000
    """Number of updates at most."""
    max_epochs: Positive = 100
    """Fewer updates are made where each pair of frames has then been seen this often."""
    batch_size: Positive = 128
    """Pairs of frames per update, over all processes together."""
    lr: Above0 = 1e-3
    """Learning rate between warm-up and decay."""
    weight_decay: AtLeast0 = 1e-3
    """Decoupled weight decay."""
    max_grad_norm: Above0 = 1.0
    """Gradients are scaled down to this norm."""
    decay_steps: Count = 3000
    """Number of last updates over which the learning rate falls linearly to 0; all of them where there are fewer."""

    def __post_init__(self) -> None:
        check_fields(self, "decoder")


@dataclass(frozen=True, kw_only=True)
class ClosedLoopConfig:
    """Episodes in simulators, in which a policy acts."""

    ROLE: ClassVar[Role] = FREE

    env: str | None = None
    """Simulator that policies act in, or several separated by commas; null for that of ``data.env``."""
    num_episodes: Positive = 50
    """Number of episodes in each simulator."""
    seed: Count = 0
    """Seed of the episodes; none of them is one that was recorded."""
    first_seed: Count | None = None
    """Simulator's seed of the first episode, from which the others count up: 0 with 50 episodes is each initial state
    of a LIBERO task once, as published; null to draw them from ``closed_loop.seed``."""
    num_workers: Count = 2
    """Processes that run the simulators; 0 for this one."""
    num_envs: Positive = 8
    """Number of simulators at once, which is the policy's batch."""
    num_executed_steps: Positive | None = None
    """Control steps from one prediction to the next; null for the policy's own setting."""
    temporal_ensemble: float | None = None
    """Weights of overlapping chunks, as in the section ``policy``; null for the policy's own, negative for none."""
    num_videos: Count = 2
    """Number of videos kept of successes, and of failures, in each simulator."""
    record: bool = False
    """Keep frames, states and actions of the episodes, as a dataset in the folder "recorded" beside the videos."""

    def __post_init__(self) -> None:
        check_fields(self, "closed_loop")
