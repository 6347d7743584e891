"""Phases of an iteration: on a GPU one wait for all of them."""

import time

import pytest
import torch

from vampo_core.training.clock import PhaseClock


def test_phases_add_up_on_a_cpu():
    clock = PhaseClock(torch.device("cpu"))
    for phase in ("rollout_s", "update_s", "rollout_s"):
        with clock(phase):
            time.sleep(0.01)
    seconds = clock.seconds
    assert seconds.keys() == {"rollout_s", "update_s"}
    assert seconds["rollout_s"] > 0.018 and 0.009 < seconds["update_s"] < seconds["rollout_s"]


def test_a_gpu_is_waited_for_once(monkeypatch):
    """Events tell the time of the stream: 1 s from each to the next."""
    calls, now = [], iter(range(99))

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            self.time = next(now)

        def elapsed_time(self, other):
            assert calls, "read before the stream has come to it"
            return 1e3 * (other.time - self.time)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", calls.append)
    device = torch.device("cuda")
    clock = PhaseClock(device)
    for phase in ("rollout_s", "update_s", "rollout_s"):
        with clock(phase):
            pass
    assert not calls
    assert clock.seconds == pytest.approx({"rollout_s": 2, "update_s": 1})
    assert clock.seconds == pytest.approx({"rollout_s": 2, "update_s": 1})
    assert calls == [device]
