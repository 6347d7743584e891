"""Settings of a policy and the folder they are in."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from vampo_core.policy.registry import OLDEST, policy_class
from vampo_core.training.checkpoint import find_checkpoint

SETTINGS_FILE = "policy.json"
"""File of the settings; it marks a policy folder."""

S = TypeVar("S", bound="PolicySettings")


@dataclass(frozen=True, kw_only=True)
class PolicySettings:
    """Settings of every policy; a kind adds its own."""

    kind: ClassVar[str]
    """Name in the registry."""
    architecture: ClassVar[int]
    """Version of the network; it counts up when older weights no longer fit or mean something else."""

    image_size: tuple[int, int]
    """Height and width of observed frames, in pixels."""
    state_dim: int
    """Numbers in the robot's state (S)."""
    action_dim: int
    """Numbers in an action (A)."""
    action_horizon: int
    """Actions in a chunk (H)."""
    num_executed_steps: int
    """Control steps from one prediction to the next."""
    temporal_ensemble: float | None
    """Decay of the weights of overlapping chunks; None executes only the newest chunk."""

    @property
    def uses_predictions(self) -> bool:
        """Whether the policy acts on predictions; False for a control that sees only the current frame."""
        return True

    @property
    def sees(self) -> str:
        """What it acts on, in a few words."""
        return "predictive features"

    def save(self, folder: Path) -> None:
        """Write ``policy.json``."""
        values = {"kind": self.kind, "architecture": self.architecture} | dataclasses.asdict(self)
        (folder / SETTINGS_FILE).write_text(json.dumps(values, indent=2) + "\n")

    @classmethod
    def load(cls: type[S], folder: Path) -> S:
        """Read ``policy.json``.

        Raises:
            ValueError: the file is not a JSON object, its keys are not those of this version, or the policy was trained
                with an older architecture.
        """
        path, values = folder / SETTINGS_FILE, _read(folder)
        values.pop("kind", None)
        architecture = values.pop("architecture", 1)
        try:
            options: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
            settings = cls(**options)
        except TypeError as error:
            raise ValueError(f"{path} cannot be read: {error}") from error
        if architecture != cls.architecture:
            raise ValueError(
                f"{path} says architecture {architecture}, expected {cls.architecture}: train the policy again"
            )
        return settings


def policy_folder(folder: str | Path) -> Path:
    """The policy folder that a policy folder, a checkpoint or a run folder stands for.

    Raises:
        ValueError: there is none.
    """
    path = Path(folder)
    if not (path / SETTINGS_FILE).is_file():
        path = find_checkpoint(folder)
    if not (path / SETTINGS_FILE).is_file():
        raise ValueError(f"{path} has no {SETTINGS_FILE}, expected a policy that `vampo policy train` made")
    return path


def policy_kind(folder: Path) -> str:
    """The kind of a policy folder; a file that names none is from before there were kinds.

    Raises:
        ValueError: ``policy.json`` cannot be read.
    """
    return _read(folder).get("kind", OLDEST)


def trained_architecture(kind: str) -> int:
    """Version of the network of a kind that is trained now."""
    return policy_class(kind).settings_type.architecture


def policy_settings(folder: Path) -> PolicySettings:
    """The settings in a policy folder.

    Raises:
        ValueError: they cannot be read, or the policy was trained with an older architecture.
    """
    return policy_class(policy_kind(folder)).settings_type.load(folder)


def _read(folder: Path) -> dict[str, Any]:
    path = folder / SETTINGS_FILE
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} cannot be read: it holds {type(values).__name__}, expected an object")
    return values
