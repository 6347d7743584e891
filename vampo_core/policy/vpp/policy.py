"""A policy: video predictor, encoders of what it shows, action head and the data's statistics, as one folder."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vampo_core.models.fingerprint import fingerprint
from vampo_core.models.predictor import Condition, FeatureExtractor, VideoPredictor
from vampo_core.policy.controller import Observation, PolicyController
from vampo_core.policy.vpp.action_head import ActionCondition, ActionHead
from vampo_core.policy.vpp.frame_encoder import FrameEncoder
from vampo_core.policy.vpp.settings import SETTINGS_FILE, PolicySettings
from vampo_core.policy.vpp.video_former import VideoFormer
from vampo_core.training.checkpoint import find_checkpoint

PREDICTOR, _WEIGHTS = "predictor", "policy.safetensors"
"""In a policy folder: the predictor's folder, and the file of the rest."""


@dataclass(frozen=True)
class Ranges:
    """Smallest and largest values in the training data, by which actions and states are brought to [-1, 1]."""

    action: Tensor  # [2, A]
    state: Tensor  # [2, S]


class Policy(nn.Module):
    """Acts on what a frozen (or jointly trained) video predictor expects to see.

    A checkpoint folder is ``policy.json``, ``policy.safetensors`` (encoders, head, statistics) and ``predictor/``, a
    whole predictor folder: it works on another machine, and after the predictor's own run is gone.

    Args:
        predictor: gives features, the embedding of the instruction, and latents of frames.
        settings: sizes, and how the policy acts.
        ranges: statistics of the training data.
    """

    def __init__(self, predictor: VideoPredictor, settings: PolicySettings, ranges: Ranges) -> None:
        super().__init__()
        self.predictor, self.settings = predictor, settings
        codec = predictor.codec
        height, columns = (size // codec.spatial_ratio for size in settings.image_size)
        self.frame_encoder = FrameEncoder((codec.latent_channels, height, columns), width=settings.width)
        self.former = VideoFormer(
            settings.feature_size,
            width=settings.width,
            num_queries=settings.num_queries,
            depth=settings.former_depth,
            num_heads=settings.num_attention_heads,
        )
        self.head = ActionHead(
            action_dim=settings.action_dim,
            action_horizon=settings.action_horizon,
            state_dim=settings.state_dim,
            text_dim=settings.text_dim,
            width=settings.width,
            depth=settings.depth,
            num_heads=settings.num_attention_heads,
        )
        self.action_range: Tensor
        self.state_range: Tensor
        self.register_buffer("action_range", ranges.action.clone())
        self.register_buffer("state_range", ranges.state.clone())
        self._extractor = feature_extractor(predictor, settings.features, settings.feature_layers)
        self._episode: tuple[str, PolicyController] | None = None
        self._seed = 0

    @property
    def dtype(self) -> torch.dtype:
        """Precision of autocast around the predictor's UNet; encoders and head are float32."""
        return self.predictor.dtype

    @classmethod
    def from_pretrained(cls, folder: str | Path, *, dtype: str | torch.dtype = "float32") -> "Policy":
        """Load a policy folder, a checkpoint of a policy's training, or its run folder for the newest one.

        Args:
            folder: where it lies.
            dtype: precision of autocast around the predictor's UNet.

        Raises:
            ValueError: there is no policy, or a part of it is missing or damaged.
        """
        path = policy_folder(folder)
        settings = PolicySettings.load(path)
        predictor = VideoPredictor.from_pretrained(path / PREDICTOR, dtype=dtype)
        policy = cls(
            predictor, settings, Ranges(torch.zeros(2, settings.action_dim), torch.zeros(2, settings.state_dim))
        )
        try:
            loaded = {f"{PREDICTOR}.{name}": x for name, x in predictor.state_dict().items()}
            policy.load_state_dict(load_file(path / _WEIGHTS) | loaded, strict=True)
        except (OSError, RuntimeError, SafetensorError) as error:
            reason = " ".join(line.strip() for line in str(error).splitlines()[:2])  # the second line names weights
            raise ValueError(f"{path / _WEIGHTS} cannot be loaded: {reason}") from error
        return policy.eval()

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a checkpoint folder, the predictor included; its adapters are merged into what is written."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.predictor.save_pretrained(folder / PREDICTOR)
        self.settings.save(folder)
        save_file({name: x.contiguous() for name, x in self._own_weights().items()}, folder / _WEIGHTS)

    def fingerprint(self) -> str:
        """Changes with any weight or setting, the predictor's and its precision included."""
        return fingerprint([asdict(self.settings), self.predictor.fingerprint()], self._own_weights())

    def compile_features(self) -> None:
        """Run the predictor's UNet through ``torch.compile``; the first prediction of each batch size is slow."""
        settings = self.settings
        self._extractor = feature_extractor(self.predictor, settings.features, settings.feature_layers, compiled=True)

    def features(self, condition: Condition) -> Tensor:  # [B, F, D, h, w] float32
        """Features of B clips."""
        return observed_features(self.predictor, self._extractor, condition)

    def forward(
        self,
        noisy: Tensor,  # [B, H, A], normalised
        sigma: Tensor,  # [B]
        states: Tensor,  # [B, S], as the robot tells them
        condition: Condition,  # of B clips
        features: Tensor | None = None,  # [B, F, D, h, w], computed here by default
    ) -> Tensor:  # [B, H, A]
        """Denoised actions, normalised."""
        return self.head(noisy, sigma, self._action_condition(states, condition, features))

    @torch.no_grad()
    def sample_actions(
        self,
        states: Tensor,  # [B, S], as the robot tells them
        condition: Condition,  # of B clips
        noise: Tensor,  # [B, H, A], standard normal
        features: Tensor | None = None,  # [B, F, D, h, w], computed here by default
    ) -> Tensor:  # [B, H, A]
        """Chunks of actions in the data's units, clipped to the range of the training actions."""
        seen = self._action_condition(states, condition, features)
        chunk = self.head.sample(seen, noise, num_steps=self.settings.num_sampling_steps)
        return unnormalize(chunk.clamp(-1, 1), self.action_range)

    @torch.no_grad()
    def predict(
        self,
        observations: Sequence[Observation],  # B of them
        instructions: Sequence[str],
        noise: Tensor,  # [B, H, A], standard normal
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
        actions = self.sample_actions(states, condition, noise.to(device)).cpu().numpy()
        if np.isnan(actions).any():  # a robot would be sent them
            hint = "" if self.dtype == torch.float32 else f": with dtype = {self.dtype} features may have overflowed"
            raise FloatingPointError(f"the policy predicts actions that are nan, expected finite numbers{hint}")
        return actions

    def reset(self, seed: int = 0) -> None:
        """Begin an episode of :meth:`act`, whose actions are drawn with this seed."""
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

    def _action_condition(self, states: Tensor, condition: Condition, features: Tensor | None) -> ActionCondition:
        features = self.features(condition) if features is None else features
        current = self.frame_encoder(current_latents(self.predictor, condition))
        tokens = torch.cat([self.former(features), current], dim=1)
        return self.head.condition(tokens, condition.encoder_hidden_states, normalize(states, self.state_range))

    def _own_weights(self) -> dict[str, Tensor]:
        """Of encoders, head and statistics."""
        return {name: x for name, x in self.state_dict().items() if not name.startswith(f"{PREDICTOR}.")}

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


def policy_folder(folder: str | Path) -> Path:
    """The folder that a policy folder, a checkpoint or a run folder stands for.

    Raises:
        ValueError: there is none.
    """
    path = Path(folder)
    if not (path / SETTINGS_FILE).is_file():
        path = find_checkpoint(folder)
    if not (path / SETTINGS_FILE).is_file():
        raise ValueError(f"{path} has no {SETTINGS_FILE}, expected a policy that `vampo policy train` made")
    return path


def feature_extractor(
    predictor: VideoPredictor, features: str, layers: Sequence[int], *, compiled: bool = False
) -> FeatureExtractor | None:
    """What gives a policy its features; None for the control on latents."""
    return None if features == "latents" else predictor.feature_extractor(layers, compiled=compiled)


def observed_features(
    predictor: VideoPredictor, extractor: FeatureExtractor | None, condition: Condition
) -> Tensor:  # [B, F, D, h, w] float32
    """Predictive features, or without an extractor the current frame's latents as features of one frame."""
    return current_latents(predictor, condition).unsqueeze(1) if extractor is None else extractor(condition).float()


def current_latents(predictor: VideoPredictor, condition: Condition) -> Tensor:  # [B, C, h, w] float32
    """Latents of the frame that is observed, as the codec gives them."""
    return (condition.image_latents * predictor.codec.scaling_factor).float()


def normalize(
    values: Tensor,  # [..., D]
    limits: Tensor,  # [2, D], smallest and largest
) -> Tensor:  # [..., D]
    """Bring values between the limits to [-1, 1]; what never varied becomes its difference from that value."""
    centre, scale = _centre_scale(limits)
    return (values - centre) / scale


def unnormalize(
    values: Tensor,  # [..., D]
    limits: Tensor,  # [2, D]
) -> Tensor:  # [..., D]
    """The inverse of :func:`normalize`; what never varied keeps its value."""
    centre, scale = _centre_scale(limits)
    return centre + values * scale * (limits[1] > limits[0])


def _centre_scale(limits: Tensor) -> tuple[Tensor, Tensor]:
    scale = (limits[1] - limits[0]) / 2
    return (limits[0] + limits[1]) / 2, torch.where(scale > 0, scale, torch.ones_like(scale))
