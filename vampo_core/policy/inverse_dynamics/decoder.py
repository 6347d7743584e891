"""The action decoder: an inverse dynamics model from the latents of two frames to the actions between them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vampo_core.config import ConfigError, VampoConfig
from vampo_core.diffusion.streams import DECODER_NOISE, stream_seed
from vampo_core.models.fingerprint import fingerprint
from vampo_core.ops import philox_normal
from vampo_core.policy.base import WEIGHTS as POLICY_WEIGHTS
from vampo_core.policy.inverse_dynamics.networks import NETWORKS
from vampo_core.policy.inverse_dynamics.pairs import PairDataset
from vampo_core.policy.inverse_dynamics.settings import DecoderSettings, Network
from vampo_core.policy.normalization import normalize, unnormalize
from vampo_core.policy.settings import SETTINGS_FILE as POLICY_SETTINGS
from vampo_core.training.checkpoint import find_checkpoint

SETTINGS_FILE, _WEIGHTS = "decoder.json", "decoder.safetensors"
_PREFIX = "decoder."
"""Of a decoder's weights in a policy folder."""
_ARCHITECTURE = 1


class ActionDecoder(nn.Module):
    """Reads the actions between two frames from their latents.

    Trained on the expert's own videos, it says what a predicted video means for the robot: as a reward, as a judge, and
    inside a policy. Actions are normalized as policies normalize theirs, to -1 and 1 over the training data.

    Args:
        settings: what it reads and how its network is made.
        action_range: smallest and largest action in the training data ``[2, A]``.
    """

    action_range: Tensor  # [2, A]

    def __init__(self, settings: DecoderSettings, action_range: Tensor) -> None:
        super().__init__()
        self.settings = settings
        self.network = NETWORKS[settings.network](settings)
        self.register_buffer("action_range", action_range.clone())

    @property
    def dtype(self) -> torch.dtype:
        """Precision of its computations."""
        return torch.float32

    @classmethod
    def new(cls, config: VampoConfig, codec: str, dataset: PairDataset, network: Network) -> "ActionDecoder":
        """An untrained decoder for a dataset; its weights follow torch's global seed.

        Args:
            config: settings of the run, ``config.decoder`` above all.
            codec: fingerprint of the codec that made the latents.
            dataset: pairs of frames.
            network: architecture.
        """
        channels, height, columns = dataset[0]["latents"].shape
        settings = DecoderSettings(
            network=network,
            latent_size=(channels, height, columns),
            codec=codec,
            num_actions=dataset.horizon,
            action_dim=dataset.action_dim,
            width=config.decoder.width,
            latent_noise=config.decoder.latent_noise,
        )
        return cls(settings, dataset.ranges().action)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:  # [N, C, h, w] each -> [N, n, A]
        """The actions between two frames, normalized."""
        rows = self.network(first, second)
        return rows.unflatten(1, (self.settings.num_actions, self.settings.action_dim))

    def normalize(self, actions: Tensor) -> Tensor:  # [..., A]
        """Actions in the data's units on the scale of what is decoded."""
        return normalize(actions.to(self.action_range), self.action_range)

    def unnormalize(self, actions: Tensor) -> Tensor:  # [..., A]
        """Decoded actions in the data's units, clipped to the range of the training actions."""
        return unnormalize(actions.clamp(-1, 1), self.action_range)

    def training_loss(self, batch: Mapping[str, Any], *, seed: int, iteration: int, first_clip: int) -> Tensor:  # []
        """Mean absolute error of normalized actions, with noise on the latents.

        Args:
            batch: collated items of a :class:`PairDataset`.
            seed: seed of the run.
            iteration: number of the update.
            first_clip: place of this batch's first pair among those of all processes.
        """
        device, size = self.action_range.device, len(batch["instruction"])
        noise = philox_normal(
            (size, 1, 2, *self.settings.latent_size),
            seed=stream_seed(seed, DECODER_NOISE, iteration),
            first_clip=first_clip,
            device=device,
        )[:, 0]
        first, second = (
            batch[key].to(device) + self.settings.latent_noise * noise[:, i]
            for i, key in enumerate(("latents", "next_latents"))
        )
        return (self(first, second) - self.normalize(batch["actions"])).abs().mean()

    @torch.no_grad()
    def predict_recorded(
        self, batch: Mapping[str, Any], *, num_samples: int, seed: int, first_clip: int
    ) -> Tensor:  # [B, num_samples, n, A]
        """The actions between recorded frames, in the data's units; equal for every sample, as nothing is drawn."""
        device = self.action_range.device
        decoded = self.unnormalize(self(batch["latents"].to(device), batch["next_latents"].to(device)))
        return decoded.unsqueeze(1).expand(-1, num_samples, -1, -1)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "ActionDecoder":
        """Load a decoder, frozen.

        Args:
            folder: folder or run of a decoder, or of a policy of the kind ``inverse_dynamics``.

        Raises:
            ValueError: there is no decoder, or a part of it is missing or damaged.
        """
        path = _folder_of(folder)
        is_policy = not (path / SETTINGS_FILE).is_file()
        try:
            values = json.loads((path / (POLICY_SETTINGS if is_policy else SETTINGS_FILE)).read_text())
            values = values["decoder"] if is_policy else values
            architecture = values.pop("architecture", _ARCHITECTURE)
            if architecture != _ARCHITECTURE:
                raise ValueError(f"architecture is {architecture}, expected {_ARCHITECTURE}: train the decoder again")
            settings = DecoderSettings.from_dict(values)
            weights = load_file(path / (POLICY_WEIGHTS if is_policy else _WEIGHTS))
            if is_policy:
                weights = {k.removeprefix(_PREFIX): x for k, x in weights.items() if k.startswith(_PREFIX)}
            decoder = cls(settings, torch.zeros(2, settings.action_dim))
            decoder.load_state_dict(weights, strict=True)
        except (OSError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
            reason = " ".join(line.strip() for line in str(error).splitlines()[:2])
            raise ValueError(f"{path} holds no action decoder that can be loaded: {reason}") from error
        return decoder.requires_grad_(False).eval()

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``decoder.json`` and ``decoder.safetensors``."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        values = {"architecture": _ARCHITECTURE} | self.settings.to_dict()
        (folder / SETTINGS_FILE).write_text(json.dumps(values, indent=2) + "\n")
        save_file({name: x.contiguous() for name, x in self.state_dict().items()}, folder / _WEIGHTS)

    def fingerprint(self) -> str:
        """A hash of settings and weights."""
        return fingerprint(self.settings.to_dict(), self.state_dict())

    def check(self, what: str, *, codec: str, num_actions: int, action_dim: int | None = None) -> None:
        """Refuse a decoder that reads other latents or other actions.

        Args:
            what: name of the setting that asked for the decoder, for the message.
            codec: fingerprint of the codec whose latents it is to read.
            num_actions: actions between two frames.
            action_dim: numbers in an action; None where they do not matter.

        Raises:
            ConfigError: it does not fit.
        """
        own = self.settings
        if own.codec != codec:
            raise ConfigError(f"{what} reads latents of codec {own.codec}, expected {codec}, the predictor's codec")
        if own.num_actions != num_actions:
            raise ConfigError(
                f"{what} reads {own.num_actions} actions between two frames, expected data.stride "
                f"= {num_actions}, times a codec's frames per latent"
            )
        if action_dim is not None and own.action_dim != action_dim:
            raise ConfigError(f"{what} reads actions of {own.action_dim} numbers, expected the data's {action_dim}")


def _folder_of(folder: str | Path) -> Path:
    """The folder with a decoder's files that a folder, a checkpoint or a run stands for.

    Raises:
        ValueError: there is none.
    """
    path = Path(folder)
    names = (SETTINGS_FILE, POLICY_SETTINGS)
    if not any((path / name).is_file() for name in names):
        path = find_checkpoint(path)
    if not any((path / name).is_file() for name in names):
        raise ValueError(f"{path} has neither {SETTINGS_FILE} nor {POLICY_SETTINGS}, expected an action decoder")
    return path
