"""Actions read from videos: what a decoder finds between the frames of a prediction, against what the expert did."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor


class ActionDecoder(Protocol):
    """Reads actions from two consecutive frames of a clip; frozen, on the device of the videos."""

    def __call__(self, first: Tensor, second: Tensor, /) -> Tensor:
        """Latents ``[N, C, h, w]`` of both frames to the n actions between them ``[N, n, A]``, normalized."""
        ...

    def normalize(self, actions: Tensor, /) -> Tensor:
        """Actions ``[..., A]`` in the data's units on the scale of what is decoded."""
        ...


Decoders = Mapping[str, ActionDecoder]
"""Decoders by the name of their dataset: robots differ in their actions."""


def decode_actions(
    decoder: ActionDecoder,
    videos: Tensor,  # [N, F, C, h, w]
) -> Tensor:  # [N, F - 1, n, A], normalized
    """The actions between consecutive frames of latent videos."""
    pairs = decoder(videos[:, :-1].flatten(0, 1), videos[:, 1:].flatten(0, 1))
    return pairs.unflatten(0, (videos.shape[0], -1))


def action_errors(
    decoders: Decoders,
    videos: Tensor,  # [B, S, F, C, h, w]
    batch: Mapping[str, Any],  # B collated clips
) -> Tensor:  # [B, S, F]
    """Mean absolute error of decoded actions against the expert's, normalized.

    Frame f is credited with the actions from f - 1 to f, the first one with those to its successor. Where the data says
    that actions do not count, the error is 0 for every video.

    Raises:
        ValueError: the batch has no actions between frames, or no decoder for a clip's dataset.
    """
    errors = videos.new_empty(videos.shape[:3])
    for name, clips in _by_dataset(decoders, batch).items():
        decoder, part = decoders[name], videos[clips]
        expert, valid = (_stacked(batch[key], clips, videos) for key in ("action_chunks", "action_valid"))
        decoded = decode_actions(decoder, part.flatten(0, 1)).unflatten(0, part.shape[:2])  # [b, S, F - 1, n, A]
        error = (decoded - decoder.normalize(expert).unsqueeze(1)).abs().mean((-2, -1))  # [b, S, F - 1]
        by_pair = error * valid.unsqueeze(1)
        errors[clips] = torch.cat([by_pair[..., :1], by_pair], dim=-1).to(errors)
    return errors


def action_lengths(
    decoders: Decoders,
    videos: Tensor,  # [B, S, F, C, h, w]
    batch: Mapping[str, Any],  # B collated clips
) -> Tensor:  # [B, S, F]
    """How far decoded actions are from those of a video that stands still at the same frame, normalized.

    Frames are credited as in :func:`action_errors`. Measured from stillness, lengths mean the same for actions that are
    velocities and for those that are positions.
    """
    lengths = videos.new_empty(videos.shape[:3])
    for name, clips in _by_dataset(decoders, batch).items():
        part = videos[clips].flatten(0, 1)  # [b * S, F, C, h, w]
        first = part[:, :-1].flatten(0, 1)
        still = decoders[name](first, first).unflatten(0, (len(part), -1))  # [b * S, F - 1, n, A]
        length = (decode_actions(decoders[name], part) - still).norm(dim=-1).mean(-1).unflatten(0, (len(clips), -1))
        lengths[clips] = torch.cat([length[..., :1], length], dim=-1).to(lengths)
    return lengths


def has_valid_actions(batch: Mapping[str, Any]) -> Tensor:  # [B, F] bool
    """Frames that :func:`action_errors` credits with an action that counts."""
    by_pair = torch.stack(list(batch["action_valid"]))  # [B, F - 1]
    return torch.cat([by_pair[:, :1], by_pair], dim=1)


def has_actions(batch: Mapping[str, Any]) -> bool:
    """Whether clips come with the actions between their frames."""
    return "action_chunks" in batch


def _by_dataset(decoders: Decoders, batch: Mapping[str, Any]) -> dict[str, list[int]]:
    """Clips of a batch by the name of their dataset.

    Raises:
        ValueError: there are no actions between frames, or there is no decoder for a dataset.
    """
    if not has_actions(batch):
        raise ValueError("the batch has no action_chunks, expected clips with a stride from data with actions")
    clips: dict[str, list[int]] = {}
    for number, clip_id in enumerate(batch["clip_id"]):
        clips.setdefault(clip_id.partition("/")[0], []).append(number)
    missing = sorted(clips.keys() - decoders.keys())
    if missing:
        raise ValueError(f"there is no action decoder for dataset {missing[0]!r}, only for {', '.join(decoders)}")
    return clips


def _stacked(values: Tensor | Sequence[Tensor], clips: Sequence[int], like: Tensor) -> Tensor:  # [b, F - 1, ...]
    """The rows of some clips; a batch of robots with different actions comes as a list."""
    rows = values[list(clips)] if isinstance(values, Tensor) else torch.stack([values[i] for i in clips])
    return rows.to(like.device)
