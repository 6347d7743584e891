"""One training in several processes against the same in one, at a fixed number of clips per process.

    python benchmarks/scaling.py [--processes 2] [--rounds 12] [--clips 4] [--generations 8] [--steps 8]
                                 [--results FOLDER]

Processes are ranks over nccl where there are as many GPUs, else over gloo with one CPU thread each. In every round, in
rotating order, one process trains on its own, all of them train together, and all of them train on their own at the
same time. The last is a control: what it loses, the machine loses (memory bandwidth, clock speed, other work), and
what training together loses beyond it is communication. Its CPU time says how much of it is the machine's and not other
work's. The time of an update's all-reduce is split into the wait for the slowest process and the transfer.
"""

import argparse
import json
import multiprocessing
import os
import socket
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import torch
from report import environment, provenance
from torch import Tensor

from vampo_core.config import VampoConfig, load_config
from vampo_core.data.clips import ClipDataset
from vampo_core.grpo.trainer import VampoTrainer
from vampo_core.models.codecs.latent import LatentCodec
from vampo_core.models.predictor import VideoPredictor
from vampo_core.training import optimizer
from vampo_core.training.memory import keep_freed_memory
from vampo_core.training.processes import gathered

FRAMES, CHANNELS, SIDE = 8, 16, 8
MODES = ("one", "together", "control")
TARGET = 0.9


@dataclass(frozen=True)
class Noise:
    """An episode of random latents."""

    episode_id: str
    length: int = 2 * FRAMES
    dataset: str = "noise"
    instruction: str = "push the T"

    @property
    def actions(self) -> Tensor:  # [T, 0]
        return torch.empty(self.length, 0)

    states = actions

    @property
    def is_pushed(self) -> Tensor:  # [T]
        return torch.zeros(self.length, dtype=torch.bool)

    def latents(self, indices: Sequence[int]) -> Tensor:  # [F, C, h, w]
        generator = torch.Generator().manual_seed(int(self.episode_id))
        return torch.randn(self.length, CHANNELS, SIDE, SIDE, generator=generator)[list(indices)]


def configuration(args: argparse.Namespace, num_processes: int) -> VampoConfig:
    """Settings of a training in so many processes."""
    return load_config(
        VampoConfig(),
        f"grpo.batch_size={args.clips * num_processes}",
        f"grpo.num_generations={args.generations}",
        f"sampler.num_inference_steps={args.steps}",
        "evaluation.num_clips=2",
        "evaluation.action_error=false",
    )


def new_trainer(args: argparse.Namespace, num_processes: int) -> VampoTrainer:
    """A trainer of the embedded default."""
    torch.manual_seed(0)
    return VampoTrainer(
        model=VideoPredictor.create(LatentCodec(latent_channels=CHANNELS), num_frames=FRAMES),
        config=configuration(args, num_processes),
        train_dataset=ClipDataset([Noise(str(i)) for i in range(16)], num_frames=FRAMES),
        eval_dataset=ClipDataset([Noise(str(i)) for i in (16, 17)], num_frames=FRAMES),
    )


class Worker:
    """One process: a training of its own, and its part of the common one."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.together = new_trainer(args, args.processes)
        device = self.together.accelerator.device
        own = SimpleNamespace(  # an accelerator that knows of no other process
            device=device,
            num_processes=1,
            process_index=0,
            is_main_process=True,
            reduce=lambda tensor, reduction: tensor,
            gather=lambda tensor: tensor,
        )
        with mock.patch("vampo_core.grpo.trainer.new_accelerator", lambda: own):
            self.separate = new_trainer(args, 1)
        self.device = device
        self.batches = {trainer: trainer.batches(0) for trainer in (self.together, self.separate)}
        self.iteration = 1  # the first one of a run also replays its draws, and processes begin here at different times

    def iterate(self, mode: str) -> dict[str, float]:
        """Seconds of an iteration, and of the all-reduce in it."""
        self.iteration += 1
        seconds = {"wait": 0.0, "transfer": 0.0}
        trainer = self.together if mode == "together" else self.separate
        with ExitStack() as stack:
            if trainer is self.together:
                stack.enter_context(self._timed_reduction(seconds))
            begin, cpu = self._now(), time.process_time()
            trainer.iterate(self.iteration, self.batches[trainer])
            if trainer is self.together:
                for _ in range(2):  # the loop asks twice whether any process was asked to stop
                    gathered(False)
            seconds |= {"iteration": self._now() - begin, "cpu": time.process_time() - cpu}
        return seconds

    @contextmanager
    def _timed_reduction(self, seconds: dict[str, float]) -> Iterator[None]:
        average = optimizer.average

        def timed(*arguments) -> None:
            begin = self._now()
            torch.distributed.barrier()
            arrived = self._now()
            average(*arguments)
            seconds["wait"] += arrived - begin
            seconds["transfer"] += self._now() - arrived

        with mock.patch.object(optimizer, "average", timed):
            yield

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def serve(args: argparse.Namespace, rank: int, port: int, orders: Connection) -> None:
    """A process of the benchmark: iterates on request, and says how long it took."""
    size = str(args.processes)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=size, LOCAL_WORLD_SIZE=size)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    if torch.cuda.device_count() < args.processes:
        os.environ["ACCELERATE_USE_CPU"] = "true"
    torch.set_num_threads(1)
    worker = Worker(args)
    if worker.device.type == "cpu":
        keep_freed_memory()
    orders.send(worker.device.type)
    while (mode := orders.recv()) is not None:
        orders.send(worker.iterate(mode))
    os._exit(0)  # without tearing down: Gloo's thread and the one that destroys its group may wait for each other


def measure(args: argparse.Namespace) -> tuple[str, list[dict[str, list[dict[str, float]]]]]:
    """The type of device; for each round and mode the seconds of every process that took part."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    pipes = [context.Pipe() for _ in range(args.processes)]
    for rank, (_, theirs) in enumerate(pipes):
        context.Process(target=serve, args=(args, rank, port, theirs), daemon=True).start()
        theirs.close()  # or nobody would notice a process that has died
    workers = [ours for ours, _ in pipes]
    device, *_ = [worker.recv() for worker in workers]
    rounds = []
    for number in range(args.rounds + 1):
        row = {}
        for place in range(len(MODES)):
            mode = MODES[(place + number) % len(MODES)]
            taking_part = workers[:1] if mode == "one" else workers
            for worker in taking_part:
                worker.send(mode)
            row[mode] = [worker.recv() for worker in taking_part]
        if number:  # the first round warms up
            rounds.append(row)
    for worker in workers:
        worker.send(None)
    return device, rounds


def summary(rounds: Sequence[dict[str, list[dict[str, float]]]]) -> dict[str, list[float]]:
    """Ratios of each round: of iterations per second and process, and shares of an iteration together."""

    def mean(row: dict[str, list[dict[str, float]]], mode: str, name: str = "iteration") -> float:
        return statistics.mean(process[name] for process in row[mode])

    return {
        "together": [mean(row, "one") / mean(row, "together") for row in rounds],
        "control": [mean(row, "one") / mean(row, "control") for row in rounds],
        "control_cpu": [mean(row, "one", "cpu") / mean(row, "control", "cpu") for row in rounds],
        "communication": [mean(row, "control") / mean(row, "together") for row in rounds],
        "wait": [mean(row, "together", "wait") / mean(row, "together") for row in rounds],
        "transfer": [mean(row, "together", "transfer") / mean(row, "together") for row in rounds],
        "seconds": [mean(row, "one") for row in rounds],
    }


def markdown(ratios: dict[str, list[float]], head: str, args: argparse.Namespace) -> str:
    """The table: medians and quartiles over rounds."""
    names = {
        "together": f"{args.processes} processes together, against one",
        "control": f"{args.processes} processes on their own, against one (control)",
        "control_cpu": "the same in CPU time, without the wait for a core",
        "communication": "together, against the control",
        "wait": "share of an iteration: wait for the slowest process",
        "transfer": "share of an iteration: all-reduce",
    }
    lines = [
        head, "",
        f"Iterations per second and process; {args.clips} clips per process, G {args.generations}, T {args.steps}, "
        f"{statistics.median(ratios['seconds']):.2f} s per iteration in one process, {args.rounds} rounds; target "
        f"{TARGET:.0%}.",
        "", "| | median | quartiles |", "| --- | --- | --- |",
    ]  # fmt: skip
    for key, name in names.items():
        low, _, high = statistics.quantiles(ratios[key], n=4)
        lines.append(f"| {name} | {statistics.median(ratios[key]):.1%} | {low:.1%} to {high:.1%} |")
    return "\n".join([*lines, "", *([args.note, ""] if args.note else [])])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--clips", type=int, default=4, help="of each process")
    parser.add_argument("--generations", type=int, default=8)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--note", default="", help="what else the machine did, for the page")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    if args.rounds < 2:
        parser.error(f"--rounds is {args.rounds}, expected at least 2, for quartiles")
    device, rounds = measure(args)
    torch.set_num_threads(1)  # what a process had, for the record
    where, ratios = environment(device), summary(rounds)
    page = markdown(ratios, provenance(where), args)
    args.results.mkdir(parents=True, exist_ok=True)
    settings = {name: getattr(args, name) for name in ("processes", "rounds", "clips", "generations", "steps", "note")}
    result = {"environment": where, "settings": settings, "ratios": ratios}
    (args.results / f"scaling-{device}.json").write_text(json.dumps(result) + "\n")
    (args.results / f"scaling-{device}.md").write_text(page)
    print(page)


if __name__ == "__main__":
    main()
