"""The benchmark of the chain: what it averages, pairs and prints."""

import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def benchmark_chain(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.delitem(sys.modules, "chain", raising=False)
    import chain

    return chain


def loop(*successes):
    """Episodes of two tasks in turns."""
    episodes = [
        {"env": "ab"[i % 2], "seed": i, "success": success, "max_coverage": None} for i, success in enumerate(successes)
    ]
    rates = {env: {"mean": sum(successes[i::2]) / len(successes[i::2])} for i, env in enumerate("ab")}
    return {
        "episodes": episodes, "num_episodes": len(episodes), "max_coverage": None, "success_by_env": rates,
        "success": {"mean": sum(successes) / len(successes)}, "latency": {"hz": 20.0},
    }  # fmt: skip


def test_episodes_are_paired_over_training_seeds(benchmark_chain):
    before = [loop(1, 0, 0, 0), loop(1, 0, 0, 1)]
    after = [loop(1, 1, 0, 0), loop(1, 1, 1, 1)]

    def success(episode):
        return float(episode["success"])

    assert benchmark_chain.over_seeds(after, success).mean == pytest.approx(6 / 8)
    difference = benchmark_chain.over_seeds(after, success, before)
    assert difference.mean == pytest.approx(3 / 8)
    same = benchmark_chain.over_seeds(after, success, after)
    assert (same.mean, same.ci95) == (0, None), "no episode differs: nothing says how much others would"


def test_the_page(benchmark_chain):
    trained = {"updates": 10, "minutes": 1.5, "action_l1": 0.1, "rephrased": loop(0, 0, 0, 0)}
    policies = {name: {"closed_loop": loop(1, 1, 1, 0), **trained} for name in ("base", "vampo", "latents")}
    policies["vampo"]["closed_loop"] = loop(1, 1, 1, 1)
    policies["expert"] = {"closed_loop": loop(1, 1, 1, 1)}
    video = {name: {"l1": 0.1, "cosine": 0.9, "reward": 0.8} for name in ("base", "vampo")}
    page = benchmark_chain.markdown({"0": {"policies": policies, "video": video}}, "a machine")
    (line,) = [line for line in page.splitlines() if line.startswith("| vampo | 10 |")]
    assert "| 1.00 | +0.25 [" in line and "| 0.00 | +0.00 | 20 |" in line
    assert "| expert | 100% | 100% |" in page and "| base | 100% | 50% |" in page
