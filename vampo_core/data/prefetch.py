"""Reading ahead: training batches for a GPU, and videos for a codec."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")


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


def read_each_ahead(
    read: Callable[[T], R], items: Iterable[T], num_threads: int
) -> Generator[tuple[T, Callable[[], R]], None, None]:
    """Items in their order, each with a function that gives what ``read`` makes of it, or raises what it raised.

    Args:
        read: function for one item, called in threads.
        items: items, taken in the caller's thread, up to ``num_threads`` ahead.
        num_threads: number of threads; 0 to read where the result is asked for.
    """
    if num_threads == 0:
        yield from ((item, partial(read, item)) for item in items)
        return
    coming: deque[tuple[T, Future[R]]] = deque()
    with ThreadPoolExecutor(num_threads, "read_ahead") as readers:
        try:
            for item in items:
                coming.append((item, readers.submit(read, item)))
                if len(coming) > num_threads:
                    first, result = coming.popleft()
                    yield first, result.result
            while coming:
                first, result = coming.popleft()
                yield first, result.result
        finally:
            for _, result in coming:
                result.cancel()


def _sent(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    if "latents" not in batch:  # a policy's
        return batch
    return {**batch, "latents": batch["latents"].to(device, non_blocking=True)}
