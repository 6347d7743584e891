"""Each operator against eager PyTorch, torch.compile and a copy of the same bytes."""

import pytest
import torch
from contenders import OPERATORS
from measure import call_overheads, measure
from pytest_benchmark.fixture import BenchmarkFixture
from report import Report, make_row
from shapes import Shape


@pytest.mark.parametrize("operator", OPERATORS)
def test_operator(
    operator: str, shape: Shape, device: str, budget: float, report: Report, benchmark: BenchmarkFixture
) -> None:
    torch.manual_seed(0)
    case = OPERATORS[operator](shape, device)
    measurement = measure(case, device, budget)
    row = make_row(case, shape.name, measurement)
    report.rows.append(row)

    inputs = case.make_inputs()

    def fused() -> None:
        case.contenders["fused"](*inputs)
        if device == "cuda":
            torch.cuda.synchronize()

    benchmark.group = shape.name
    benchmark.extra_info.update(row)
    rounds = min(20, max(3, round(0.25 / measurement.median("fused"))))
    benchmark.pedantic(fused, rounds=rounds, warmup_rounds=1)


def test_call_overhead(device: str, budget: float, report: Report) -> None:
    report.call_overhead = call_overheads(device, budget)
