"""Pairs of frames of expert episodes with the actions between them."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from vampo_core.config import ConfigError, VampoConfig
from vampo_core.data.episode import Episode
from vampo_core.data.windows import WindowedEpisode
from vampo_core.policy.data import ActionDataset, ActionItem

_MOST_IN_MEMORY = 2**30
"""Bytes of latents that are kept in memory; more are read from their files, which takes longer than an update."""


class PairItem(ActionItem, total=False):
    """What a PairDataset gives: ``latents`` of frame t, all actions up to frame t + n, and that frame."""

    next_latents: Tensor  # [C, h, w] float32, of frame t + n


class PairDataset(ActionDataset):
    """Frames t and t + n of some episodes with the n actions between them.

    Where a push was added to an action the frames do not show the expert's own action, so that such pairs are left out.

    Arguments are those of :class:`~vampo_core.policy.data.ActionDataset`; ``horizon`` is n, the distance of
    latent frames in clips.

    Raises:
        EpisodeError: no episode can be used, or one cannot and ``strict`` is set.
        ValueError: no episode is long enough for a pair.
    """

    def __init__(
        self,
        episodes: Sequence[Episode],
        *,
        horizon: int,
        widths: tuple[int, int] | None = None,
        strict: bool = False,
    ) -> None:
        super().__init__(episodes, horizon=horizon, widths=widths, strict=strict)
        self._frames, self._rows = [], []
        for number, episode in enumerate(self.episodes):
            pushed = torch.cat([torch.zeros(1, dtype=torch.long), episode.is_pushed.long().cumsum(0)])  # [T + 1]
            for t, rows in _pairs(episode, horizon):
                if pushed[t + horizon] == pushed[t]:
                    self._frames.append((number, t))
                    self._rows.append(rows)
        if not self._frames:
            raise ValueError(
                f"none of the {len(self.episodes)} episodes has two frames at a distance of data.stride = {horizon} "
                "(counted in frames of the codec, where it compresses time) without a push between them, expected at "
                "least one pair for the action decoder"
            )
        counts = [_num_rows(episode) for episode in self.episodes]
        size = sum(counts) * _read(self.episodes[0], [0]).nbytes
        self._latents = (
            [_read(episode, range(count)) for episode, count in zip(self.episodes, counts, strict=True)]
            if size <= _MOST_IN_MEMORY
            else None
        )

    def __getitem__(self, index: int) -> PairItem:
        (number, t), rows = self._frames[index], self._rows[index]
        table, later = self._tables[number], t + self.horizon
        latents = _read(table.episode, rows) if self._latents is None else self._latents[number][rows]
        return PairItem(
            latents=latents[0],
            next_latents=latents[1],
            actions=table.actions[t:later],
            valid=torch.ones(self.horizon, dtype=torch.bool),
            state=table.states[t],
            instruction=table.episode.instruction,
            clip_id=f"{table.episode.dataset}/{table.episode.episode_id}@{t}",
            episode_id=table.episode.episode_id,
        )


def _pairs(episode: Episode, horizon: int) -> Iterator[tuple[int, list[int]]]:
    """Frame t and the rows of latents of frames t and t + n, for every pair within the episode."""
    if not isinstance(episode, WindowedEpisode):
        yield from ((t, [t, t + horizon]) for t in range(episode.length - horizon))
        return
    num_latents = episode.windows.num_latents
    for number, start in enumerate(episode.windows.starts(episode.length)):
        for i, t in enumerate(
            range(start, min(start + (num_latents - 1) * horizon, episode.length - horizon), horizon)
        ):
            yield t, [number * num_latents + i, number * num_latents + i + 1]


def _num_rows(episode: Episode) -> int:
    if isinstance(episode, WindowedEpisode):
        return len(episode.windows.starts(episode.length)) * episode.windows.num_latents
    return episode.length


def _read(episode: Episode, rows: Sequence[int]) -> Tensor:  # [N, C, h, w]
    return episode.rows(rows) if isinstance(episode, WindowedEpisode) else episode.latents(rows)


def pairs_of(config: VampoConfig, episodes: Sequence[Episode], widths: tuple[int, int] | None = None) -> PairDataset:
    """Pairs of frames at the distance of a clip's frames.

    Raises:
        ConfigError: clips have no such distance.
    """
    if config.data.sampling != "stride":
        raise ConfigError(
            f"data.sampling is {config.data.sampling!r}, expected 'stride': an action decoder reads the actions "
            "between frames at a fixed distance"
        )
    first = episodes[0]
    distance = first.windows.latent_stride if isinstance(first, WindowedEpisode) else config.data.stride
    return PairDataset(episodes, horizon=distance, widths=widths, strict=config.data.strict)
