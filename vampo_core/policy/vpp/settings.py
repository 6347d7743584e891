"""Settings of a policy on predictive features."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from vampo_core.policy.settings import PolicySettings


@dataclass(frozen=True, kw_only=True)
class VPPSettings(PolicySettings):
    """Sizes of the networks; the options are those of the configuration's section ``policy``."""

    kind: ClassVar[str] = "vpp"
    architecture: ClassVar[int] = 2

    features: Literal["predictive", "latents"]
    """What the policy sees: predictive features, or only the current frame's latents."""
    feature_layers: tuple[int, ...]
    """Feature layers of the predictor."""
    feature_size: tuple[int, int, int, int]
    """Frames, channels, height and width of the features (F, D, h, w)."""
    text_dim: int
    """Width of the instruction's embedding."""
    num_sampling_steps: int
    """Denoising steps of a chunk."""
    num_queries: int
    """Tokens of each frame (Q)."""
    former_depth: int
    """Layers of the Video Former."""
    depth: int
    """Layers of the action head."""
    width: int
    """Channels of Video Former and action head."""
    num_attention_heads: int
    """Heads of every attention."""

    @property
    def uses_predictions(self) -> bool:
        """Whether the policy sees predictive features."""
        return self.features == "predictive"

    @property
    def sees(self) -> str:
        """See :attr:`PolicySettings.sees`."""
        return "predictive features" if self.uses_predictions else "the current frame's latents"
