"""Training batches: for a GPU, read and pinned while it works on the one before."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch


def batches_for(device: torch.device, batches: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The same batches in the same order; on a GPU each is read while the one before is worked on.

    A GPU gets the latents as copies that nobody waits for. On a CPU reading and training would share the cores, so
    nothing is read ahead there.
    """
    if device.type == "cpu":
        return iter(batches)
    return (_sent(batch, device) for batch in read_ahead(batches))


def read_ahead(batches: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Batches, one of which a thread reads ahead; what reading raises is raised where the batch is asked for."""
    source = iter(batches)  # in this thread: the signal handler of a loader's workers belongs to the main one
    with ThreadPoolExecutor(1, "read_ahead") as reader:
        coming = reader.submit(next, source, None)
        while (batch := coming.result()) is not None:
            coming = reader.submit(next, source, None)
            yield batch


def _sent(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    if "latents" not in batch:  # a policy's
        return batch
    return {**batch, "latents": batch["latents"].to(device, non_blocking=True)}
