"""What defines a policy beside its weights: written as ``policy.json`` into its folder."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

SETTINGS_FILE = "policy.json"
ARCHITECTURE = 2
"""Of encoders and action head: counts up where older weights no longer fit, or mean something else."""


@dataclass(frozen=True, kw_only=True)
class PolicySettings:
    """Sizes, and how the policy acts; the options are those of the configuration's section ``policy``."""

    features: Literal["predictive", "latents"]
    """What the policy sees."""
    feature_layers: tuple[int, ...]
    """Up blocks of the predictor's UNet."""
    feature_size: tuple[int, int, int, int]
    """(F, D, h, w)."""
    image_size: tuple[int, int]
    """(H, W) of observed frames, in pixels."""
    state_dim: int
    """S."""
    action_dim: int
    """A."""
    text_dim: int
    """Width of the instruction's embedding."""
    action_horizon: int
    """H, actions of a chunk."""
    num_executed_steps: int
    """Control steps from one prediction to the next."""
    temporal_ensemble: float | None
    """Decay of the weights of overlapping chunks; None for the newest alone."""
    num_sampling_steps: int
    """Denoising steps of a chunk."""
    num_queries: int
    """Tokens of each frame."""
    former_depth: int
    """Layers of the Video Former."""
    depth: int
    """Layers of the action head."""
    width: int
    """Channels of both."""
    num_attention_heads: int
    """Heads of every attention."""

    def save(self, folder: Path) -> None:
        """Write ``policy.json``."""
        values = {"architecture": ARCHITECTURE} | dataclasses.asdict(self)
        (folder / SETTINGS_FILE).write_text(json.dumps(values, indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path) -> "PolicySettings":
        """Read ``policy.json``.

        Raises:
            ValueError: the file is no JSON object, its keys are not those of this version, or the policy was trained
                with an earlier architecture.
        """
        path = folder / SETTINGS_FILE
        try:
            values: Any = json.loads(path.read_text())
            values = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
            architecture = values.pop("architecture", 1)
            settings = cls(**values)
        except (AttributeError, TypeError, ValueError) as error:
            raise ValueError(f"{path} cannot be read: {error}") from error
        if architecture != ARCHITECTURE:
            raise ValueError(f"{path} says architecture {architecture}, expected {ARCHITECTURE}: train the policy anew")
        return settings
