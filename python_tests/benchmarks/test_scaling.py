"""The benchmark of several processes: its ratios, and that its processes train together or on their own, as asked."""

import sys
from argparse import Namespace
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def scaling(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.delitem(sys.modules, "scaling", raising=False)
    import scaling

    return scaling


def test_ratios_are_of_one_round_and_of_all_its_processes(scaling):
    row = {
        "one": [{"iteration": 4.0, "cpu": 3.0}],
        "together": [
            {"iteration": 8.0, "cpu": 5.0, "wait": 0.0, "transfer": 1.0},
            {"iteration": 8.0, "cpu": 5.0, "wait": 2.0, "transfer": 1.0},
        ],
        "control": [{"iteration": 4.0, "cpu": 3.0}, {"iteration": 6.0, "cpu": 5.0}],
    }
    ratios = scaling.summary([row, row])
    assert {name: values[0] for name, values in ratios.items()} == pytest.approx(
        {"together": 0.5, "control": 0.8, "control_cpu": 0.75, "communication": 0.625}
        | {"wait": 0.125, "transfer": 0.125, "seconds": 4.0}
    )
    args = Namespace(processes=2, clips=4, generations=8, steps=8, rounds=2, note="Nothing else ran.")
    page = scaling.markdown(ratios, "head", args)
    assert "| together, against the control | 62.5% | 62.5% to 62.5% |" in page and page.endswith("Nothing else ran.\n")


def test_processes_reduce_only_together(scaling):
    args = Namespace(processes=2, clips=1, generations=2, steps=2, rounds=1)
    device, ((row),) = scaling.measure(args)
    assert device in ("cpu", "cuda")
    assert {mode: len(processes) for mode, processes in row.items()} == {"one": 1, "together": 2, "control": 2}
    for mode, processes in row.items():
        for process in processes:
            assert process["iteration"] > process["transfer"]
            assert (process["transfer"] > 0) == (mode == "together")
