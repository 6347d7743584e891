"""The bias report of cheaper tails, on a tiny predictor."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from training_runs import make_clips, make_config, make_model

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def tail(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.delitem(sys.modules, "tail", raising=False)
    import tail

    return tail


def test_the_reference_agrees_with_itself_and_a_shortcut_less(tail, tmp_path, monkeypatch):
    config = make_config(tmp_path, "sampler.num_inference_steps=8")
    monkeypatch.setattr(tail, "prepare_clips", lambda *args: SimpleNamespace(held_out=make_clips(8, 9)))
    tails = ["run.seed=1", "sampler.tail_steps=1", "sampler.tail_dtype=bfloat16"]
    (same, short, half), num_clips = tail.compare(make_model(config), config, tails, clips=3, rounds=1)
    assert num_clips == 3
    assert same.correlation == pytest.approx(1.0)
    assert same.reward.mean == 0
    assert (same.num_steps, short.num_steps, half.num_steps) == (7, 1, 7)
    assert short.correlation < half.correlation < 1
    table = tail.markdown([same, short], "head", config, "8 steps", 3)
    assert "| `tail_steps=1` | 1 |" in table
