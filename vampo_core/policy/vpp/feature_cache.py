"""Predictive features of recorded frames, computed once for each predictor.

``<root>/features/<key>/<episode>.safetensors`` holds ``features`` [T, F, D, h, w] in float16. The key is a hash of the
predictor's weights and settings and of the feature layers. Files are mapped into memory, never loaded whole. They may
be deleted at any time; a later run computes them again.
"""

import json
import zlib
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vampo_core.data.episode import Episode, reading
from vampo_core.data.folder import derived_folder, safe_name
from vampo_core.files import locked, publish, remove_leftovers, temporary_beside
from vampo_core.models.fingerprint import fingerprint
from vampo_core.models.predictor import VideoPredictor
from vampo_core.policy.vpp.features import observed_features
from vampo_core.progress import progress

_HEADER = "vampo_core"
_BATCH_SIZE = 32


class FeatureCache:
    """Features of a dataset's frames from one predictor.

    Args:
        root: folder of the dataset.
        predictor: frozen predictor in eval mode.
        layers: feature layers of the predictor, in ascending order.
        cache: folder where features are kept if not in the dataset's own.
    """

    def __init__(
        self, root: str | Path, predictor: VideoPredictor, layers: Sequence[int], *, cache: str | Path | None = None
    ) -> None:
        self.predictor = predictor
        self.extractor = predictor.feature_extractor(layers)
        key = fingerprint([predictor.fingerprint(), list(layers), self.extractor.seed], {})
        self.folder = derived_folder(Path(root), "features", cache) / key

    def fill(self, episodes: Sequence[Episode]) -> int:
        """Compute the features of episodes that are not in the cache, or that have changed since.

        Another process that fills the same folder waits until this one is done.

        Returns:
            The number of episodes computed.

        Raises:
            ValueError: features are not finite in float16.
            EpisodeError: an episode cannot be read.
        """
        num_computed = 0
        with locked(self.folder):
            remove_leftovers(self.folder, recursive=True)
            for episode in progress(episodes, desc="features", unit="episode", delay=0.5):
                latents = episode.latents(range(episode.length))
                header = {
                    "length": episode.length,
                    "instruction": episode.instruction,
                    "latents_crc32": zlib.crc32(latents.contiguous().numpy().tobytes()),
                }
                path = self._path(episode)
                if _header(path) != header:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    temporary = temporary_beside(path)
                    features = self._compute(latents, episode)
                    save_file({"features": features}, temporary, metadata={_HEADER: json.dumps(header)})
                    publish(temporary, path)
                    num_computed += 1
        return num_computed

    def read(self, episode: Episode, index: int) -> Tensor:  # [F, D, h, w] float16
        """Features of frame ``index``.

        Raises:
            EpisodeError: the file is missing or damaged.
        """
        with reading(episode.dataset, episode.episode_id), safe_open(self._path(episode), "pt") as file:
            return file.get_slice("features")[index]

    @torch.no_grad()
    def _compute(self, latents: Tensor, episode: Episode) -> Tensor:  # [T, F, D, h, w] float16
        device = self.predictor.device
        parts = []
        for part in latents.to(device).split(_BATCH_SIZE):
            condition = self.predictor.observed_condition(part, [episode.instruction] * len(part))
            parts.append(observed_features(self.predictor, self.extractor, condition).half().cpu())
        features = torch.cat(parts)
        if not features.isfinite().all():
            raise ValueError(
                f"features of episode {episode.episode_id!r} reach {features.abs().max():.3g}, expected values within "
                "float16: policy.train_predictor=true computes them as they are needed, without a cache"
            )
        return features

    def _path(self, episode: Episode) -> Path:
        return self.folder / f"{safe_name(episode.episode_id)}.safetensors"


def _header(path: Path) -> dict[str, object] | None:
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            return json.loads((file.metadata() or {})[_HEADER])
    except (OSError, SafetensorError):  # cut short
        return None
