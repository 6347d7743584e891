"""Runs that two processes share with FSDP 2, one after the other in one pair of processes."""

import contextlib
import errno
import json
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from training_processes import _CONTEXT
from training_runs import make_config, make_pretrainer, make_trainer

import vampo_core.training.shard_files
from vampo_core.models.predictor import VideoPredictor
from vampo_core.ops import latent_reward


@dataclass(frozen=True)
class Job:
    """A run of the pair."""

    folder: Path
    overrides: Sequence[str] = ()
    kind: str = "train"  # or "pretrain"
    resume: bool = False
    fault: str = ""  # what goes wrong on one process, see FAULTS


def run_pair(jobs: Sequence[Job], folder: Path) -> list[list[dict[str, Any]]]:
    """Run jobs; what each process ended each of them with."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = [_CONTEXT.Process(target=_run_all, args=(jobs, folder, rank, port)) for rank in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        process.kill()
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    endings = [json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    return [list(pair) for pair in zip(*endings, strict=True)]


def _run_all(jobs: Sequence[Job], folder: Path, rank: int, port: int) -> None:
    os.environ.update(
        ACCELERATE_USE_CPU="true", ACCELERATE_USE_FSDP="true", FSDP_VERSION="2", RANK=str(rank), LOCAL_RANK=str(rank),
        WORLD_SIZE="2", LOCAL_WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
    )  # fmt: skip
    torch.set_num_threads(1)
    vampo_core.training.shard_files.FILE_BYTES = 2**20  # several files
    with open(os.devnull, "w") as nothing, contextlib.redirect_stderr(nothing):  # progress bars
        endings = [_run_one(job, rank) for job in jobs]
    (folder / f"rank{rank}.json").write_text(json.dumps(endings))
    os._exit(0)  # without tearing down, see training_processes


def _run_one(job: Job, rank: int) -> dict[str, Any]:
    config = make_config(job.folder, *job.overrides)
    trainer: Any = make_pretrainer(config) if job.kind == "pretrain" else make_trainer(config)
    ending: dict[str, Any] = {
        "num_weights": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
        "num_own": sum(p.numel() for p in trainer.optimizer.parameters),
    }
    with contextlib.ExitStack() as stack:
        if job.fault:
            process, fault = FAULTS[job.fault]
            if rank == process:
                fault(trainer, stack)
        try:
            result = trainer.train(job.folder if job.resume else None)
            ending |= {"history": result.history, "after": result.after.to_dict()}
        except Exception as error:
            ending["error"] = f"{type(error).__name__}: {error}"
    return ending


def _odd_reward(trainer: Any, stack: contextlib.ExitStack) -> None:
    def _odd(pred, target, batch):
        return latent_reward(pred, target).reward * float("nan")

    trainer.rewards = [(_odd, 1.0)]


def _odd_loss(trainer: Any, stack: contextlib.ExitStack) -> None:
    backward = trainer.optimizer.backward
    trainer.optimizer.backward = lambda loss: backward(loss * float("nan"))


def _full_disk(*args: Any, **options: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _no_room_for_shards(trainer: Any, stack: contextlib.ExitStack) -> None:
    writer = vampo_core.training.shard_files.HuggingFaceStorageWriter
    original, writer.write_data = writer.write_data, _full_disk
    stack.callback(setattr, writer, "write_data", original)


def _no_room_for_model(trainer: Any, stack: contextlib.ExitStack) -> None:
    trainer.model.save_pretrained = _full_disk


FAULTS = {
    "reward": (1, _odd_reward),
    "loss": (1, _odd_loss),
    "shards": (1, _no_room_for_shards),
    "model": (0, _no_room_for_model),
}
"""What goes wrong, and on which process."""


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    """Weights of the newest checkpoint, as its model folder holds them."""
    return dict(VideoPredictor.from_pretrained(folder / "checkpoints" / "latest").state_dict())
