"""An iteration that is one update on a loss, as in pretraining and in policy training."""

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from vampo_core.training.loop import Trainer
from vampo_core.training.memory import peak_memory_mb
from vampo_core.training.processes import reduced


def update_on_loss(
    trainer: Trainer[Any],
    iteration: int,
    batches: Iterator[Mapping[str, Any]],
    loss_of: Callable[[int, Mapping[str, Any]], Tensor],
) -> dict[str, Any]:
    """Make one update and return its metrics.

    Args:
        trainer: the trainer, whose optimizer is used.
        iteration: number of the iteration, for error messages.
        batches: training batches.
        loss_of: computes the loss [] of this process's part of an iteration's batch, with gradient.

    Raises:
        NonFiniteError: the loss or a gradient is not finite.
    """
    what, lr, begin = f"step {iteration}", trainer.optimizer.lr, time.perf_counter()
    batch = next(batches)
    data_s = time.perf_counter() - begin
    assert isinstance(trainer.optimizer.model, nn.Module)
    trainer.optimizer.model.train()
    loss = loss_of(iteration, batch)
    trainer.optimizer.backward(loss)
    grad_norm = trainer.optimizer.step(what=what)
    mean = reduced({"loss": loss.detach()}, trainer.accelerator)  # waits for the device
    seconds = {"data_s": data_s, "update_s": time.perf_counter() - begin - data_s}
    return {**mean, "grad_norm": grad_norm, "lr": lr, **seconds, "peak_memory_mb": peak_memory_mb()}
