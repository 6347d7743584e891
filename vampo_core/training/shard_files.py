"""Checkpoints that the processes of a sharded run write together, through ``torch.distributed.checkpoint``.

Every process writes its shares to a safetensors file; any number of processes, sharded or not, read what they need of
all files. The folder has to be one that all processes see.
"""

import contextlib
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import torch.distributed.checkpoint as distributed_checkpoint
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.checkpoint import CheckpointException, HuggingFaceStorageReader, HuggingFaceStorageWriter

from vampo_core.training.checkpoint import CheckpointError
from vampo_core.training.processes import from_main

FILE_BYTES = 2**33
"""Size of a file, of all processes together; a process holds its part of one in memory when it writes."""


def write_shards(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write the shares of all processes; every one enters, and fails if one fails.

    Raises:
        OSError: they could not be written.
    """
    numbers, size = {}, 0
    for name, tensor in tensors.items():
        numbers[name] = 1 + size // FILE_BYTES
        size += tensor.numel() * tensor.element_size()
    # safetensors instead of the default format, whose metadata is a pickle
    writer = HuggingFaceStorageWriter(str(folder), numbers, save_distributed=True)
    try:
        distributed_checkpoint.save(dict(tensors), storage_writer=writer)
    except CheckpointException as error:
        raise OSError(_first_line(error)) from error


def names_in(folder: Path) -> set[str]:
    """Names of the tensors in a folder.

    Raises:
        CheckpointError: a file is damaged.
    """
    try:
        return set(HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"checkpoint {folder} cannot be read: {type(error).__name__}: {error}") from error


def read_shards(folder: Path, tensors: Mapping[str, Tensor], *, together: bool) -> None:
    """Read tensors in place.

    Args:
        folder: written by :func:`write_shards`.
        tensors: whole tensors, or with ``together`` distributed ones, by name.
        together: whether every process enters, and fails if one fails.

    Raises:
        CheckpointError: they could not be read.
    """
    reader = HuggingFaceStorageReader(str(folder))
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # which is what no_dist says
            distributed_checkpoint.load(dict(tensors), storage_reader=reader, no_dist=not together)
    except CheckpointException as error:
        raise CheckpointError(f"checkpoint {folder} cannot be read: {_first_line(error)}") from error


def save_together(save: Callable[[Callable[[Path], None]], object] | None, write: Callable[[Path], None]) -> None:
    """Have all processes write to the folder that the main one makes.

    Args:
        save: on the main process, what makes the folder, calls the function that it is given on it, and publishes it;
            None on the others.
        write: what every process does with the folder, at the same time.

    Raises:
        CheckpointError: the main process, or the writing of any, failed; every process raises it.
    """
    if save is None:
        folder = from_main(None)
        if folder is not None:
            with contextlib.suppress(OSError):  # the main process says what failed
                write(folder)
        message = from_main(None)
        if message is not None:
            raise CheckpointError(message)
        return
    is_written, error = False, None

    def write_with_all(folder: Path) -> None:
        nonlocal is_written
        is_written = True
        from_main(folder)
        write(folder)

    try:
        save(write_with_all)
    except CheckpointError as failure:
        error = failure
    if not is_written:  # there was nothing to write, or no folder
        from_main(None)
    from_main(None if error is None else str(error))
    if error is not None:
        raise error


def _first_line(error: CheckpointException) -> str:
    failure = next(iter(error.failures.values()))[0]
    return f"{type(failure).__name__}: {str(failure).partition(chr(10))[0]}"
