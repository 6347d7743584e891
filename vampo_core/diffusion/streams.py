"""Named streams of counter-based noise: every place that draws from a seed has its own."""

import itertools
from dataclasses import dataclass

from vampo_core.ops._checks import check_int

_MASK = (1 << 64) - 1


@dataclass(frozen=True)
class Stream:
    """A range of stream numbers of a seed; draw ``index`` of the stream has the number ``first + index``."""

    name: str
    first: int
    length: int = 1


INITIAL_NOISE = Stream("initial noise of a sampling run", 0)
STEP = Stream("noise of sampling step i", 1, 1 << 32)
ROLLOUT = Stream("seed of the rollouts of iteration i + 1", 1 << 40, 1 << 40)
PRETRAIN_SIGMA = Stream("noise levels of pretraining step i", 1 << 41, 1 << 40)
PRETRAIN_NOISE = Stream("noise of pretraining step i", 1 << 42, 1 << 40)
POLICY_SIGMA = Stream("noise levels of policy training step i", 1 << 43, 1 << 40)
POLICY_NOISE = Stream("noise of policy training step i", 1 << 44, 1 << 40)
ANCHOR = Stream("noise of the anchor", 1 << 45)
PRETRAIN_DROPOUT = Stream("clips without condition in pretraining step i", 1 << 46, 1 << 40)
DECODER_NOISE = Stream("noise on latents in step i of an action decoder's training", 1 << 47, 1 << 40)
JUDGE = Stream("seed of the judge", 1 << 48)
CONTROL = Stream("noise of the chunk that begins at control step i of an episode", 0, 1 << 32)

STREAMS = (
    *(INITIAL_NOISE, STEP, ROLLOUT, PRETRAIN_SIGMA, PRETRAIN_NOISE, PRETRAIN_DROPOUT),
    *(POLICY_SIGMA, POLICY_NOISE, ANCHOR, DECODER_NOISE, JUDGE),
)
"""Streams that may be drawn from one seed: ``run.seed`` and ``evaluation.seed`` may be the same number. ``CONTROL`` is
not among them, because only closed loops draw from the seeds of episodes."""


def check_distinct(streams: tuple[Stream, ...]) -> None:
    """Refuse streams that share a number.

    Raises:
        ValueError: two of them do.
    """
    for one, other in itertools.pairwise(sorted(streams, key=lambda stream: stream.first)):
        if one.first + one.length > other.first:
            raise ValueError(f"the streams {one.name!r} and {other.name!r} share numbers, expected distinct ones")


check_distinct(STREAMS)


def stream_seed(seed: int, stream: Stream, index: int = 0) -> int:
    """Key of a draw: SplitMix64 (Steele et al. 2014) of seed and stream number, cut to 63 bits.

    Args:
        seed: any integer, ``0 <= seed < 2**63``.
        stream: what is drawn.
        index: number of the draw within the stream, such as the iteration.

    Raises:
        ValueError: the seed or the index is out of range.
    """
    seed = check_int("seed", seed, minimum=0, maximum=2**63 - 1)
    index = check_int("index", index, minimum=0, maximum=stream.length - 1)
    z = (seed + (stream.first + index + 1) * 0x9E3779B97F4A7C15) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return (z ^ (z >> 31)) >> 1
