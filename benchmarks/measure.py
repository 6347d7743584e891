"""Times contenders side by side: in every round each runs once, so that a slow moment of the machine hits all."""

import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from contenders import OPERATORS, Case
from shapes import TINY
from torch import Tensor

MIN_ROUNDS, MAX_ROUNDS = 3, 500
CPU_SAMPLE_SECONDS = 3e-4  # calls of one contender within a round, together: far less than a scheduler's time slice
HOST_SAMPLE_CALLS = 10
CUDA_SAMPLE_CALLS = 20  # few enough for the launch queue to hold them behind the pause
CUDA_CLOCK_HZ = 2e9  # an upper estimate: the pause may be longer than asked, never shorter
MAX_BUFFER_SETS = 64

Calls = Iterator[Callable[[], object]]


@dataclass(frozen=True)
class Measurement:
    """Seconds per call of every contender, one entry per round."""

    seconds: dict[str, list[float]]

    def median(self, contender: str) -> float:
        return statistics.median(self.seconds[contender])

    def ratios(self, contender: str) -> list[float]:
        """How many times longer than ``fused`` this contender took, round by round."""
        return [theirs / ours for theirs, ours in zip(self.seconds[contender], self.seconds["fused"], strict=True)]


def measure(case: Case, device: str, budget: float) -> Measurement:
    """Time every contender of a case, and a copy that moves the same bytes.

    Args:
        case: operator, shape and contenders.
        device: ``"cpu"`` or ``"cuda"``.
        budget: seconds to spend on the rounds, beyond the least number of rounds.
    """
    input_sets = [case.make_inputs() for _ in range(_num_buffer_sets(case, device))]
    if case.same_result:
        _check_same_result(case, input_sets[0])
    calls = {name: _cycle(contender, input_sets) for name, contender in case.contenders.items()}
    calls["copy"] = _cycle(Tensor.copy_, [_copy_buffers(case.bytes_moved, device) for _ in input_sets])
    first = {name: _warm_up(contender, device) for name, contender in calls.items()}
    if device == "cuda":
        samplers = {name: partial(_cuda_seconds, calls[name], host_seconds=first[name]) for name in calls}
    else:
        samplers = {
            name: partial(_host_seconds, calls[name], max(1, round(CPU_SAMPLE_SECONDS / first[name]))) for name in calls
        }
    return _interleave(samplers, budget)


def call_overheads(device: str, budget: float) -> dict[str, float]:
    """Seconds that a call of each operator, without gradients, costs the host beyond ``torch.add``."""
    cases = [make(TINY, device) for name, make in OPERATORS.items() if not name.endswith("_backward")]
    calls = {case.operator: _cycle(case.contenders["fused"], [case.make_inputs()]) for case in cases}
    calls["torch.add"] = _cycle(torch.add, [(torch.ones(4, device=device), torch.ones(4, device=device))])
    for contender in calls.values():
        _warm_up(contender, device)
    measurement = _interleave({name: partial(_host_seconds, calls[name], HOST_SAMPLE_CALLS) for name in calls}, budget)
    add = measurement.seconds.pop("torch.add")
    return {
        name: statistics.median(ours - theirs for ours, theirs in zip(seconds, add, strict=True))
        for name, seconds in measurement.seconds.items()
    }


def _interleave(samplers: dict[str, Callable[[], float]], budget: float) -> Measurement:
    seconds: dict[str, list[float]] = {name: [] for name in samplers}
    names = list(samplers)
    start = time.perf_counter()
    for index in range(MAX_ROUNDS):
        shift = index % len(names)
        for name in names[shift:] + names[:shift]:
            seconds[name].append(samplers[name]())
        if index + 1 >= MIN_ROUNDS and time.perf_counter() - start > budget:
            break
    return Measurement(seconds)


def _host_seconds(calls: Calls, count: int) -> float:
    """Seconds per call on the host's clock; on CUDA, of the launch only."""
    if count > 1:
        next(calls)()  # brings back to the cache what the contender before pushed out
    start = time.perf_counter()
    for call in itertools.islice(calls, count):
        call()
    seconds = (time.perf_counter() - start) / count
    _synchronize()
    return seconds


def _cuda_seconds(calls: Calls, host_seconds: float) -> float:
    """Seconds per call on the device's clock.

    The launches queue up behind a pause, so that they run back to back and the host's speed does not count.
    """
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    torch.cuda._sleep(int((1.5 * host_seconds * CUDA_SAMPLE_CALLS + 1e-4) * CUDA_CLOCK_HZ))
    start.record()
    for call in itertools.islice(calls, CUDA_SAMPLE_CALLS):
        call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3 / CUDA_SAMPLE_CALLS


def _warm_up(calls: Calls, device: str) -> float:
    """Compile, fault pages in and fill allocator pools; return the host seconds of a later call."""
    for _ in range(3 if device == "cuda" else 1):
        next(calls)()
    _synchronize()
    seconds = [_host_seconds(calls, 1)]
    while len(seconds) < 5 and sum(seconds) < 0.05:
        seconds.append(_host_seconds(calls, 1))
    return min(seconds)


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _cycle(function: Callable[..., object], input_sets: list[tuple[Tensor, ...]]) -> Calls:
    return itertools.cycle([partial(function, *inputs) for inputs in input_sets])


def _num_buffer_sets(case: Case, device: str) -> int:
    """As many as keep a set from still being in a GPU's cache when its turn comes again."""
    if device == "cpu":
        return 1
    cache = torch.cuda.get_device_properties(0).L2_cache_size
    return min(MAX_BUFFER_SETS, 1 + 2 * cache // case.bytes_moved)


def _copy_buffers(bytes_moved: int, device: str) -> tuple[Tensor, Tensor]:
    """Return ``(destination, source)``: a copy reads the half of ``bytes_moved`` and writes the other."""
    source = torch.randn(max(1, bytes_moved // 8), device=device)
    return torch.empty_like(source), source


def _check_same_result(case: Case, inputs: tuple[Tensor, ...]) -> None:
    """Refuse to time a wrong result; rounding is the business of the tests."""
    ours, theirs = (_as_tuple(case.contenders[name](*inputs)) for name in ("fused", "eager"))
    for got, expected in zip(ours, theirs, strict=True):
        error = torch.linalg.vector_norm((got - expected).float()) / torch.linalg.vector_norm(expected.float())
        assert error < 1e-2, f"{case.operator}: fused and eager differ by {error:.1e}"


def _as_tuple(result: object) -> tuple[Tensor, ...]:
    return (result,) if isinstance(result, Tensor) else result  # type: ignore[return-value]
