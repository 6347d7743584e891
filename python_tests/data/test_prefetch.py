"""Batches read ahead of a GPU: same order, one ahead, errors where they belong, nothing left behind."""

import threading

import pytest
import torch

from vampo_core.data import prefetch
from vampo_core.data.prefetch import batches_for, read_ahead

CPU, GPU = torch.device("cpu"), torch.device("meta")  # stands for any device that is not the CPU


class Source:
    """Batches that note when, and by whom, they are read."""

    def __init__(self, length, fails_at=None):
        self.length, self.fails_at, self.started, self.read, self.by = length, fails_at, [], [], set()
        self.is_read = [threading.Event() for _ in range(length + 1)]

    def __iter__(self):
        self.started.append(threading.current_thread())
        return self._batches()

    def _batches(self):
        for number in range(self.length):
            if number == self.fails_at:
                raise OSError("a file is gone")
            self.read.append(number)
            self.by.add(threading.current_thread())
            self.is_read[number].set()
            yield {"latents": torch.full((1,), float(number)), "number": number}


def readers() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("read_ahead")]


def test_order_and_end_are_those_of_the_source():
    assert [batch["number"] for batch in read_ahead(Source(5))] == list(range(5))
    assert not readers()


def test_one_batch_is_read_while_the_one_before_is_worked_on():
    source = Source(9)
    batches = read_ahead(source)
    assert next(batches)["number"] == 0
    assert source.is_read[1].wait(10), "nobody asked for it yet"
    assert not source.is_read[2].wait(0.05), "one ahead is enough"
    assert source.started == [threading.main_thread()] and threading.main_thread() not in source.by
    batches.close()
    assert not readers()


def test_an_error_is_raised_where_its_batch_is_asked_for():
    batches = read_ahead(Source(9, fails_at=2))
    assert [next(batches)["number"] for _ in range(2)] == [0, 1]
    with pytest.raises(OSError, match="a file is gone"):
        next(batches)
    assert not readers()


def test_a_gpu_gets_latents_on_its_side_and_a_cpu_no_thread(monkeypatch):
    batch = next(batches_for(GPU, Source(2)))
    assert batch["latents"].device == GPU and batch["number"] == 0
    assert next(batches_for(GPU, [{"features": torch.zeros(1)}]))["features"].device == CPU
    monkeypatch.setattr(prefetch, "read_ahead", lambda batches: pytest.fail("reading and training share the cores"))
    source = Source(2)
    assert next(batches_for(CPU, source))["number"] == 0
    assert source.read == [0]
