"""What any policy is: it learns from experts, predicts chunks of actions from observations, and is kept in a folder."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vampo_core.config import VampoConfig
from vampo_core.data.episode import Episode
from vampo_core.models.fingerprint import fingerprint
from vampo_core.models.predictor import Condition, VideoPredictor
from vampo_core.policy.controller import Observation, PolicyController
from vampo_core.policy.data import ActionDataset
from vampo_core.policy.normalization import Ranges
from vampo_core.policy.registry import policy_class
from vampo_core.policy.settings import PolicySettings, policy_folder, policy_kind

PREDICTOR, WEIGHTS = "predictor", "policy.safetensors"
"""In a policy folder: the folder of its video predictor, and the file of all other weights."""


class Policy(nn.Module, ABC):
    """Acts on what a video predictor expects to see.

    A policy folder holds ``policy.json``, ``policy.safetensors`` (the policy's own weights and the ranges of its data)
    and ``predictor/``, a whole predictor folder. It works on another machine, and after the predictor's own run is
    gone.

    A kind sets ``settings_type`` and implements the abstract methods; its constructor has these arguments.

    Args:
        predictor: video predictor.
        settings: sizes of the networks, and how the policy acts.
        ranges: ranges of actions and states in the training data.
    """

    settings_type: ClassVar[type[PolicySettings]]
    learns_from_clips: ClassVar[bool] = False
    """Whether latents of clips are its data; otherwise those of single frames, as it observes them."""
    settings: PolicySettings
    action_range: Tensor  # [2, A]
    state_range: Tensor  # [2, S]

    def __init__(self, predictor: VideoPredictor, settings: PolicySettings, ranges: Ranges) -> None:
        super().__init__()
        self.predictor, self.settings = predictor, settings
        self.register_buffer("action_range", ranges.action.clone())
        self.register_buffer("state_range", ranges.state.clone())
        self._episode: tuple[str, PolicyController] | None = None
        self._seed = 0

    @classmethod
    @abstractmethod
    def new(cls, config: VampoConfig, predictor: VideoPredictor, dataset: ActionDataset) -> "Policy":
        """An untrained policy for a dataset, whose trained parameters require grad.

        Its weights follow torch's global seed.
        """

    @classmethod
    def dataset(
        cls, config: VampoConfig, episodes: Sequence[Episode], widths: tuple[int, int] | None = None
    ) -> ActionDataset:
        """What it learns from in expert episodes; by default every frame with the chunk of actions that begins there.

        Args:
            config: settings of the run.
            episodes: episodes with latents.
            widths: see :class:`~vampo_core.policy.data.ActionDataset`.
        """
        horizon = config.policy.action_horizon
        return ActionDataset(episodes, horizon=horizon, widths=widths, strict=config.data.strict)

    @classmethod
    def prepare_data(
        cls, config: VampoConfig, predictor: VideoPredictor, datasets: Sequence[ActionDataset], root: str | Path
    ) -> None:
        """Compute once what training needs of the frames; nothing by default.

        Args:
            config: settings of the run, ``config.policy`` above all.
            predictor: video predictor of the policy.
            datasets: training and held-out frames.
            root: folder of the dataset that they belong to, where results may be kept.
        """

    @abstractmethod
    def training_loss(
        self,
        batch: Mapping[str, Any],  # collated items of an ActionDataset
        *,
        seed: int,
        iteration: int,
        first_clip: int,
    ) -> Tensor:  # []
        """The loss of a batch, with gradient.

        Args:
            batch: frames of expert episodes with the actions that follow.
            seed: seed of the run.
            iteration: number of the update. Noise follows from the seed, this number and a frame's place.
            first_clip: place of this batch's first frame among the frames of all processes.
        """

    @abstractmethod
    def predict_recorded(
        self,
        batch: Mapping[str, Any],  # B collated items of an ActionDataset
        *,
        num_samples: int,
        seed: int,
        first_clip: int,
    ) -> Tensor:  # [B, num_samples, H, A]
        """Chunks of actions for recorded frames, several of each.

        Args:
            batch: frames of expert episodes.
            num_samples: number of chunks for each frame.
            seed: seed of the noise.
            first_clip: place of this batch's first frame among all frames, on which their noise depends.
        """

    @abstractmethod
    def predict_observed(
        self,
        states: Tensor,  # [B, S], in the data's units
        condition: Condition,  # of B observed frames and instructions
        seeds: Sequence[int],  # [B], keys of the noise that each prediction draws
    ) -> Tensor:  # [B, H, A], in the data's units
        """Chunks of actions for what is observed."""

    @property
    def dtype(self) -> torch.dtype:
        """Precision of autocast around the predictor's denoiser; everything else is float32."""
        return self.predictor.dtype

    @classmethod
    def from_pretrained(cls, folder: str | Path, *, dtype: str | torch.dtype = "float32") -> "Policy":
        """Load a policy of any kind.

        Args:
            folder: policy folder, checkpoint of a policy's training, or its run folder for the newest checkpoint.
            dtype: precision of autocast around the predictor's denoiser.

        Raises:
            ValueError: there is no policy, or a part of it is missing or damaged.
        """
        path = policy_folder(folder)
        kind = policy_class(policy_kind(path))
        settings = kind.settings_type.load(path)
        predictor = VideoPredictor.from_pretrained(path / PREDICTOR, dtype=dtype)
        ranges = Ranges(torch.zeros(2, settings.action_dim), torch.zeros(2, settings.state_dim))  # the file has them
        policy = kind(predictor, settings, ranges)
        try:
            loaded = {f"{PREDICTOR}.{name}": x for name, x in predictor.state_dict().items()}
            policy.load_state_dict(load_file(path / WEIGHTS) | loaded, strict=True)
        except (OSError, RuntimeError, SafetensorError) as error:
            reason = " ".join(line.strip() for line in str(error).splitlines()[:2])  # the second line names weights
            raise ValueError(f"{path / WEIGHTS} cannot be loaded: {reason}") from error
        return policy.eval()

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a policy folder, the predictor included, with its adapters merged."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.predictor.save_pretrained(folder / PREDICTOR)
        self.settings.save(folder)
        save_file({name: x.contiguous() for name, x in self._own_weights().items()}, folder / WEIGHTS)

    def fingerprint(self) -> str:
        """A hash of all weights and settings, including the predictor's and its precision."""
        return fingerprint([asdict(self.settings), self.predictor.fingerprint()], self._own_weights())

    def _own_weights(self) -> dict[str, Tensor]:
        """Everything but the predictor's weights, by name."""
        return {name: x for name, x in self.state_dict().items() if not name.startswith(f"{PREDICTOR}.")}

    @torch.no_grad()
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
        for observation in observations:
            self._check(observation)
        device = self.action_range.device
        frames = torch.from_numpy(np.stack([o["pixels"] for o in observations])).to(device).permute(0, 3, 1, 2)
        states = torch.from_numpy(np.stack([np.asarray(o["state"], np.float32) for o in observations])).to(device)
        condition = self.predictor.condition(instructions=instructions, first_frames=frames.float() / 255)
        actions = self.predict_observed(states, condition, seeds).cpu().numpy()
        if np.isnan(actions).any():  # a robot would execute them
            hint = "" if self.dtype == torch.float32 else f": with dtype = {self.dtype} features may have overflowed"
            raise FloatingPointError(f"the policy predicts actions that are nan, expected finite numbers{hint}")
        return actions

    def reset(self, seed: int = 0) -> None:
        """Begin an episode of :meth:`act`, whose noise is drawn with this seed."""
        self._seed, self._episode = seed, None

    def act(self, observation: Observation, instruction: str) -> np.ndarray:  # [A] float32
        """The next action of one robot: every ``num_executed_steps`` calls a chunk is predicted.

        Call :meth:`reset` when an episode begins; an instruction that differs from the last call's begins one too.
        :class:`PolicyController` runs several episodes at once, and with other settings.

        Raises:
            ValueError: the observation does not fit the policy.
            FloatingPointError: actions are NaN.
        """
        if self._episode is None or self._episode[0] != instruction:
            self._episode = (instruction, PolicyController(self))
            self._episode[1].begin(0, instruction, self._seed)
        return self._episode[1].act({0: observation})[0]

    def _check(self, observation: Observation) -> None:
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
