"""Settings of an action decoder, and of the policy that acts with one."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

from vampo_core.policy.settings import PolicySettings

Network = Literal["difference", "judge"]
"""Architectures: one sees both frames and their difference, the other one is made differently to judge the first."""


@dataclass(frozen=True, kw_only=True)
class DecoderSettings:
    """What a decoder reads and how its network is made."""

    network: Network
    """Architecture."""
    latent_size: tuple[int, int, int]
    """Channels, height and width of a frame's latents (C, h, w)."""
    codec: str
    """Fingerprint of the codec whose latents it reads."""
    num_actions: int
    """Actions between two frames (n), which is the stride of the clips."""
    action_dim: int
    """Numbers in an action (A)."""
    width: int
    """Channels of the convolutions."""
    latent_noise: float
    """Standard deviation of the noise on latents in training."""

    def to_dict(self) -> dict[str, Any]:
        """Everything as values that JSON can hold."""
        return asdict(self) | {"latent_size": list(self.latent_size)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "DecoderSettings":
        """The inverse of :meth:`to_dict`, also after JSON.

        Raises:
            TypeError: a key is missing or unknown.
        """
        return cls(**{**values, "latent_size": tuple(values["latent_size"])} if "latent_size" in values else values)


@dataclass(frozen=True, kw_only=True)
class InverseDynamicsSettings(PolicySettings):
    """Settings of a policy that acts on its imagined video."""

    kind: ClassVar[str] = "inverse_dynamics"
    architecture: ClassVar[int] = 1

    decoder: dict[str, Any]
    """Settings of the decoder, see :class:`DecoderSettings`."""
    action_scale: float = 1.0
    """Factor on decoded actions, measured from those of a video that stands still; a control for shrunken motion."""

    @property
    def sees(self) -> str:
        """See :attr:`PolicySettings.sees`."""
        return "the imagined video"
