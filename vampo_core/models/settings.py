"""Settings of a predictor that diffusers' own config files have no place for."""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from vampo_core.diffusion.settings import check_interval

SETTINGS_FILE = "vampo.json"
LATER = {"later": True}  # metadata of a setting that folders of the first versions do not have
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class PredictorSettings:
    """Written beside the model as ``vampo.json``."""

    num_frames: int = 8
    """Number of frames of a clip (F), including the first frame, which is the condition."""
    fps: int = 7
    """SVD's micro-conditioning id for frames per second (``StableVideoDiffusionPipeline(fps=7)`` passes 6)."""
    motion_bucket_id: int = 127
    """SVD's micro-conditioning id for the amount of motion."""
    noise_aug_strength: float = 0.0
    """SVD's micro-conditioning id for noise on the first frame, to which none is added here."""
    num_inference_steps: int = 8
    """Default number of steps of :meth:`VideoPredictor.sampler`."""
    rho: float = 7.0
    """Default exponent of the Karras schedule."""
    guidance_scale: float = 1.0
    """Default guidance of the last frame; 1 is none."""
    min_guidance_scale: float = 1.0
    """Default guidance of the first frame."""
    guidance_interval: tuple[float, float] | None = field(default=None, metadata=LATER)
    """Default noise levels between which guidance acts; None for all. A list is taken as a tuple, as JSON has none."""
    solver: str = field(default="euler", metadata=LATER)
    """Default solver of the deterministic steps."""
    predict_change: bool = False
    """Whether the network denoises the change from the first frame, instead of the latents themselves."""
    negative_prompt: str = field(default="", metadata=LATER)
    """Text of the unconditional half of guidance, for models that are guided by a negative prompt (Wan)."""
    text_max_length: int = 20
    """Number of tokens of a CLIP text encoder."""
    text_position_code: bool = True
    """Whether CLIP tokens get VPP's sine-cosine position code."""

    def __post_init__(self) -> None:
        if self.guidance_interval is not None:
            interval = check_interval("guidance_interval", self.guidance_interval)
            object.__setattr__(self, "guidance_interval", interval)

    def save(self, folder: Path) -> None:
        """Write ``vampo.json``."""
        (folder / SETTINGS_FILE).write_text(json.dumps(self.values(), indent=2) + "\n")

    def values(self) -> dict[str, Any]:
        """All settings but those that came later and have their default: older folders keep their fingerprints."""
        later = {f.name: f.default for f in dataclasses.fields(self) if f.metadata == LATER}
        return {name: v for name, v in dataclasses.asdict(self).items() if name not in later or v != later[name]}

    @classmethod
    def load(cls, folder: Path) -> "PredictorSettings | None":
        """Read ``vampo.json``; None where there is none.

        Raises:
            ValueError: the file is no JSON object, or has keys that this version does not know.
        """
        path = folder / SETTINGS_FILE
        if not path.is_file():
            return None
        try:
            return cls(**json.loads(path.read_text()))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path} cannot be read: {error}") from error


def as_dtype(value: str | torch.dtype) -> torch.dtype:
    """The precision of autocast that a name stands for.

    Raises:
        ValueError: there is no such precision.
    """
    dtype = _DTYPES.get(value) if isinstance(value, str) else value
    if dtype not in _DTYPES.values():
        raise ValueError(f"dtype is {value!r}, expected one of {', '.join(_DTYPES)}")
    assert dtype is not None
    return dtype
