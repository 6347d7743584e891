"""What any policy is: it predicts chunks of actions from observations, acts in an episode, and lies in a folder."""

import dataclasses
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from torch import nn

from vampo_core.models.predictor import VideoPredictor
from vampo_core.policy.controller import Observation, PolicyController
from vampo_core.policy.registry import policy_class
from vampo_core.training.checkpoint import find_checkpoint

SETTINGS_FILE = "policy.json"
PREDICTOR = "predictor"
"""Files of a policy folder: the settings, and the folder of its video predictor."""

S = TypeVar("S", bound="PolicySettings")


@dataclass(frozen=True, kw_only=True)
class PolicySettings:
    """Settings of every policy, written as ``policy.json``; a kind adds its own."""

    kind: ClassVar[str]
    """Name in the registry."""
    architecture: ClassVar[int]
    """Version of the network; it counts up when older weights no longer fit or mean something else."""

    image_size: tuple[int, int]
    """Height and width of observed frames, in pixels."""
    state_dim: int
    """Numbers of the robot's state (S)."""
    action_dim: int
    """Numbers of an action (A)."""
    action_horizon: int
    """Actions of a chunk (H)."""
    num_executed_steps: int
    """Control steps from one prediction to the next."""
    temporal_ensemble: float | None
    """Decay of the weights of overlapping chunks; None executes only the newest chunk."""

    def save(self, folder: Path) -> None:
        """Write ``policy.json``."""
        values = {"kind": self.kind, "architecture": self.architecture} | dataclasses.asdict(self)
        (folder / SETTINGS_FILE).write_text(json.dumps(values, indent=2) + "\n")

    @classmethod
    def load(cls: type[S], folder: Path) -> S:
        """Read ``policy.json``.

        Raises:
            ValueError: the file is no JSON object, its keys are not those of this version, or the policy was trained
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


class Policy(nn.Module, ABC):
    """Acts on what a video predictor expects to see.

    A policy folder holds ``policy.json``, the policy's weights, and ``predictor/``, a whole predictor folder: it works
    on another machine, and after the predictor's own run is gone.
    """

    settings_type: ClassVar[type[PolicySettings]]
    predictor: VideoPredictor
    settings: Any  # a settings_type

    def __init__(self) -> None:
        super().__init__()
        self._episode: tuple[str, PolicyController] | None = None
        self._seed = 0

    @classmethod
    def from_pretrained(cls, folder: str | Path, *, dtype: str | torch.dtype = "float32") -> "Policy":
        """Load a policy folder, a checkpoint of a policy's training, or its run folder for the newest checkpoint.

        Args:
            folder: folder of the policy.
            dtype: precision of autocast around the predictor's denoiser.

        Raises:
            ValueError: there is no policy, or a part of it is missing or damaged.
        """
        path = policy_folder(folder)
        return policy_class(policy_kind(path)).load(path, dtype=dtype)

    @abstractmethod
    def save_pretrained(self, folder: str | Path) -> None:
        """Write a policy folder, the predictor included."""

    @abstractmethod
    def fingerprint(self) -> str:
        """A hash of all weights and settings, including the predictor's."""

    @abstractmethod
    def predict(
        self,
        observations: Sequence[Observation],  # B of them
        instructions: Sequence[str],
        seeds: Sequence[int],  # [B], keys of the noise that each prediction draws
    ) -> np.ndarray:  # [B, H, A] float32
        """Chunks of actions for what is observed.

        Raises:
            ValueError: an observation lacks a key, or has another shape or type than the policy was trained on.
            FloatingPointError: actions are NaN.
        """

    @property
    @abstractmethod
    def uses_predictions(self) -> bool:
        """Whether the policy acts on predictions; False for a control that sees only the current frame."""

    @property
    def dtype(self) -> torch.dtype:
        """Precision of autocast around the predictor's denoiser; everything else is float32."""
        return self.predictor.dtype

    def reset(self, seed: int = 0) -> None:
        """Begin an episode of :meth:`act`, whose noise is drawn with this seed."""
        self._seed, self._episode = seed, None

    def act(self, observation: Observation, instruction: str) -> np.ndarray:  # [A] float32
        """The next action of one robot: every ``num_executed_steps`` calls a chunk is predicted.

        Call :meth:`reset` where an episode begins; another instruction than in the last call begins one too.
        :class:`PolicyController` runs several episodes at once, and with other settings.

        Raises:
            ValueError: the observation does not fit the policy.
            FloatingPointError: actions are NaN.
        """
        if self._episode is None or self._episode[0] != instruction:
            self._episode = (instruction, PolicyController(self))
            self._episode[1].begin(0, instruction, self._seed)
        return self._episode[1].act({0: observation})[0]

    def check_observation(self, observation: Observation) -> None:
        """Refuse an observation that the policy was not trained on.

        Raises:
            ValueError: a key is missing, or a shape, type or value is wrong.
        """
        missing = [key for key in ("pixels", "state") if key not in observation]
        if missing:
            raise ValueError(f"observation has keys {sorted(observation)}, expected 'pixels' and 'state'")
        pixels, state = np.asarray(observation["pixels"]), np.asarray(observation["state"])
        expected = (*self.settings.image_size, 3)
        if pixels.shape != expected or pixels.dtype != np.uint8:
            raise ValueError(
                f"observation['pixels'] has shape {pixels.shape} and type {pixels.dtype}, expected {expected} and "
                "uint8, as the policy was trained on"
            )
        if state.shape != (self.settings.state_dim,):
            raise ValueError(f"observation['state'] has shape {state.shape}, expected ({self.settings.state_dim},)")
        if not np.isfinite(state).all():
            raise ValueError(f"observation['state'] is {state}, expected finite numbers")


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


def policy_settings(folder: Path) -> PolicySettings:
    """The settings in a policy folder.

    Raises:
        ValueError: they cannot be read, or the policy was trained with an older architecture.
    """
    return policy_class(policy_kind(folder)).settings_type.load(folder)


def policy_kind(folder: Path) -> str:
    """The kind of a policy folder.

    Raises:
        ValueError: ``policy.json`` cannot be read.
    """
    return _read(folder).get("kind", "vpp")


def _read(folder: Path) -> dict[str, Any]:
    path = folder / SETTINGS_FILE
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} cannot be read: it holds {type(values).__name__}, expected an object")
    return values
