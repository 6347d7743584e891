"""Training in processes of their own, which may be killed, asked to stop, or work together."""

import contextlib
import itertools
import json
import multiprocessing
import os
import random
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from policy_runs import make_policy_trainer, policy_config
from training_runs import make_config, make_pretrainer, make_trainer

import vampo_core
import vampo_core.training.checkpoint
from vampo_core.evaluation.predictor import EvalResult
from vampo_core.grpo.trainer import VampoTrainer
from vampo_core.ops import latent_reward
from vampo_core.training.checkpoint import Checkpoints
from vampo_core.training.metrics import MetricsLog
from vampo_core.training.optimizer import ModelOptimizer

# The server imports everything once, the processes are forks of it. Python 3.11 hands it no sys.path.
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["training_processes"])
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))

KILL_POINTS: dict[str, tuple[object, str]] = {
    "the update": (ModelOptimizer, "step"),
    "the log": (MetricsLog, "append"),
    "writing a checkpoint": (vampo_core.training.checkpoint, "_write_state"),
    "publishing a checkpoint": (vampo_core.training.checkpoint, "publish"),
    "pruning checkpoints": (Checkpoints, "_point"),
}
"""Functions at whose end a process may be killed."""


def start(
    kind: str,
    folder: Path,
    *overrides: str,
    resume_from: Path | None = None,
    kill: tuple[str, int] | None = None,
    rank: int | None = None,
    port: int = 0,
    sharded: bool = False,
) -> BaseProcess:
    """Start a run; exit code 3 means that it was interrupted and ended in order.

    Args:
        kind: ``"train"``, ``"noisy"`` (with a random reward), ``"rounding"`` (the second process evaluates to slightly
            other numbers), ``"pretrain"``, ``"policy"``, or ``"preset"``, from data to report.
        folder: of the run.
        overrides: of :func:`training_runs.make_config`.
        resume_from: as in ``train``.
        kill: a key of KILL_POINTS and the call of it that kills the process.
        rank: of two processes that train together.
        port: at which they meet.
        sharded: whether the launcher asks for FSDP 2.
    """
    place = None if rank is None else (rank, port)
    process = _CONTEXT.Process(target=_run, args=(kind, folder, overrides, resume_from, kill, place, sharded))
    process.start()
    return process


def warm_up() -> None:
    """Have the server import everything, so that what follows takes as long as it takes."""
    process = _CONTEXT.Process(target=time.sleep, args=(0,))
    process.start()
    process.join()


def run(kind: str, folder: Path, *overrides: str, **options) -> int:
    """Exit code of a run."""
    process = start(kind, folder, *overrides, **options)
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def run_two(
    kind: str, folder: Path, *overrides: str, resume_from: Path | None = None, sharded: bool = False
) -> list[dict[str, Any]]:
    """The same run shared by two processes, with FSDP 2 where it is to be sharded; what each of them ended with."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options: dict[str, Any] = {"port": port, "resume_from": resume_from, "sharded": sharded}
    processes = [start(kind, folder, *overrides, rank=rank, **options) for rank in (0, 1)]
    for process in processes:
        process.join(120)
        process.kill()
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    return [json.loads(_ending(folder, rank).read_text()) for rank in (0, 1)]


def finish(kind: str, folder: Path, *overrides: str) -> None:
    """Continue a run that was killed, from its newest checkpoint or from the start where it has none."""
    if Checkpoints(folder / "checkpoints").latest is None:
        assert run(kind, folder, *overrides) == 0
    else:
        assert run(kind, folder, *overrides, resume_from=folder) == 0


def kill_after(process: BaseProcess, seconds: float) -> bool:
    """Kill -9 after a while; whether it was still at work."""
    process.join(seconds)
    process.kill()
    process.join()
    return process.exitcode == -signal.SIGKILL


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    """Until something has come true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def noisy_reward(pred, target, batch):
    """A reward that draws from every global generator, as a user's may: resuming has to restore them."""
    return latent_reward(pred, target).reward + 0.1 * torch.rand(pred.shape[:3]) + 0.1 * random.random()


def _run(kind, folder, overrides, resume_from, kill, rank, sharded) -> None:
    os.environ.update(ACCELERATE_USE_CPU="true", OMP_NUM_THREADS="1")
    if sharded:
        os.environ.update(ACCELERATE_USE_FSDP="true", FSDP_VERSION="2")
    if rank is not None:
        os.environ.update(
            RANK=str(rank[0]), LOCAL_RANK=str(rank[0]), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2",
            MASTER_ADDR="127.0.0.1", MASTER_PORT=str(rank[1]),
        )  # fmt: skip
    torch.set_num_threads(1)
    reduced: list[int] = []
    if kill is not None:
        _kill_in(*KILL_POINTS[kill[0]], kill[1])
    config = make_config(folder, *overrides)
    with open(os.devnull, "w") as nothing, contextlib.redirect_stderr(nothing):  # progress bars
        if kind == "preset":
            result = vampo_core.train(config, resume_from=resume_from)
        elif kind == "pretrain":
            result = make_pretrainer(config).train(resume_from)
        elif kind == "policy":
            result = make_policy_trainer(policy_config(folder, *overrides)).train(resume_from)
        else:
            trainer = make_trainer(config, reward_funcs=[noisy_reward] if kind == "noisy" else None)
            if kind == "rounding" and rank[0] == 1:
                _round_differently(trainer)
            reduced = _count_reductions(sum(p.numel() for p in trainer.optimizer.parameters))
            result = trainer.train(resume_from)
    if rank is not None:
        ending = {
            "checkpoint": result.checkpoint.name,
            "best": result.best_checkpoint.name,
            "history": result.history,
            "before": result.before.to_dict(),
            "after": result.after.to_dict(),
            "num_reductions": len(reduced),
            "draw": torch.rand(1).item(),
        }
        _ending(folder, rank[0]).write_text(json.dumps(ending))
    # without tearing down: PyTorch's Gloo thread and the one that destroys its group may wait for each other
    os._exit(3 if result.interrupted else 0)


def _ending(folder: Path, rank: int) -> Path:
    return folder.parent / f".{folder.name}-rank{rank}.json"


def _round_differently(trainer: VampoTrainer) -> None:
    """Make a process find other held-out metrics, now better and now worse, as rounding may."""
    evaluate, signs = trainer.clips.evaluate, itertools.cycle((1, -1))

    def other() -> EvalResult:
        result = evaluate()
        error = replace(result.l1, mean=result.l1.mean * (1 + 1e-3 * next(signs)))
        return replace(result, l1=error)

    trainer.clips.evaluate = other  # type: ignore[method-assign]


def _count_reductions(num_parameters: int) -> list[int]:
    """Sizes of all-reduces that are as large as the trained parameters; the list grows as they happen."""
    sizes: list[int] = []
    original = torch.distributed.all_reduce

    def all_reduce(tensor, *arguments, **options):
        if tensor.numel() >= num_parameters // 2:
            sizes.append(tensor.numel())
        return original(tensor, *arguments, **options)

    torch.distributed.all_reduce = all_reduce
    return sizes


def _kill_in(owner: object, name: str, call: int) -> None:
    original, calls = getattr(owner, name), []

    def killing(*args, **kwargs):
        result = original(*args, **kwargs)
        calls.append(None)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, killing)
