"""The benchmark of an iteration: what it refuses to measure, and what both contenders do."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

_FILE = Path(__file__).parents[2] / "benchmarks" / "rl_iteration.py"


def load():
    spec = importlib.util.spec_from_file_location("rl_iteration", _FILE)
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    return benchmark


def run(monkeypatch, folder, *arguments):
    """Its results."""
    benchmark = load()
    threads = str(torch.get_num_threads())
    monkeypatch.setattr(sys, "argv", ["rl_iteration.py", "--threads", threads, "--results", str(folder), *arguments])
    benchmark.main()
    (file,) = folder.iterdir()
    return json.loads(file.read_text())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_model_of_full_size_is_not_measured_without_a_gpu(tmp_path, monkeypatch):
    assert run(monkeypatch, tmp_path, "--preset", "svd")["result"] == "not measured"


def test_both_contenders_make_an_update(tmp_path, monkeypatch):
    steps = []
    original = torch.optim.AdamW.step
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda *args, **rest: steps.append(1) or original(*args, **rest))
    result = run(monkeypatch, tmp_path, "--rounds", "1", "--clips", "1", "--generations", "2", "--steps", "2")
    assert len(steps) == 4  # of two contenders, in the warm-up and in one round
    assert result["ours"]["update_mb"] < result["reference"]["update_mb"]


def test_what_an_iteration_asks_of_the_driver_is_counted(monkeypatch):
    benchmark, counts = load(), iter((5, 7))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(
        torch.cuda, "memory_stats", lambda device: {"num_device_alloc": next(counts), "num_alloc_retries": 1, "x": 3}
    )
    phases = benchmark.Phases(torch.nn.Linear(1, 1), torch.device("cuda"))
    with phases.iteration():
        pass
    assert phases.driver_calls == {"num_device_alloc": 2, "num_alloc_retries": 0}
    assert benchmark.driver_calls(torch.device("cpu")) == {}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_float8_is_refused_where_there_is_none(tmp_path, monkeypatch):
    with pytest.raises((ValueError, ImportError), match=r"sampler\.tail_dtype is 'float8'"):
        run(monkeypatch, tmp_path, "--tail-dtype", "float8")


def test_credit_by_derivative_makes_an_update_too(tmp_path, monkeypatch):
    sizes = ["--rounds", "1", "--clips", "1", "--generations", "3", "--steps", "3"]
    result = run(monkeypatch, tmp_path, *sizes, "--pathwise", "2")
    assert (result["G"], result["pathwise"]) == (3, 2) and result["speedup"] > 0
