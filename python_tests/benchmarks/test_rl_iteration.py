"""The benchmark of an iteration: what it refuses to measure, and what both contenders do."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

_FILE = Path(__file__).parents[2] / "benchmarks" / "rl_iteration.py"


def run(monkeypatch, folder, *arguments):
    """Its results."""
    spec = importlib.util.spec_from_file_location("rl_iteration", _FILE)
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
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
