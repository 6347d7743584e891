"""How often an iteration waits for the device: a fixed number of times, however many parts and steps it has."""

import traceback

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from training_runs import make_config, make_trainer


class Waits(TorchDispatchMode):
    """Notes where the host needs a value of a tensor, except of clips and of AdamW's step counts, which it has."""

    _ON_THE_HOST = ("vampo_core/data/", "torch/optim/")

    def __init__(self):
        super().__init__()
        self.where = []

    def note(self):
        stack = traceback.extract_stack()
        if not any(place in frame.filename for frame in stack for place in self._ON_THE_HOST):
            self.where.append(
                [f"{frame.filename}:{frame.lineno}" for frame in stack if "vampo_core/" in frame.filename]
            )

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
            self.note()
        return func(*args, **(kwargs or {}))


@pytest.fixture
def waits(monkeypatch):
    """A mode that counts; ``tolist``, ``cpu`` and ``numpy`` are no operators on a CPU."""
    mode = Waits()

    def noting(original):
        def method(tensor, *args, **options):
            if torch.utils._python_dispatch._get_current_dispatch_mode() is mode:
                mode.note()
            return original(tensor, *args, **options)

        return method

    for name in ("tolist", "cpu", "numpy"):
        monkeypatch.setattr(torch.Tensor, name, noting(getattr(torch.Tensor, name)))
    return mode


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("optim.gradient_accumulation_steps=4",),
        ("sampler.stochastic_steps=[0,1]", "grpo.kl_coef=0.1", "optim.gradient_accumulation_steps=2"),
        ("sampler.guidance_scale=2", "grpo.rectify_steps=true"),
        ("grpo.credit=pathwise", "sampler.tail_chunk_size=3"),
    ],
)
def test_an_iteration_waits_four_times(tmp_path, waits, overrides):
    """Rewards are finite, loss and gradient are finite, and twice for metrics."""
    trainer = make_trainer(make_config(tmp_path, "grpo.batch_size=4", *overrides))
    batches = trainer.batches(0)
    trainer.iterate(1, batches)
    with waits:
        trainer.iterate(2, batches)
    assert len(waits.where) == 4, waits.where


def test_an_update_waits_once(tmp_path, waits):
    trainer = make_trainer(make_config(tmp_path, "grpo.num_inner_epochs=3"))
    batches = trainer.batches(0)
    trainer.iterate(1, batches)
    with waits:
        trainer.iterate(2, batches)
    assert len(waits.where) == 4 + 2, waits.where
