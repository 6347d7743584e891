"""The benchmark of the chain: what it averages, pairs, correlates and prints."""

import sys
from pathlib import Path

import numpy as np
import pytest

from vampo_core.config import ChainConfig

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def tables(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.delitem(sys.modules, "chain_tables", raising=False)
    import chain_tables

    return chain_tables


def loop(*successes, first_seed=0):
    """Episodes of two tasks in turns."""
    episodes = [
        {"env": "ab"[i % 2], "seed": first_seed + i, "success": success, "max_coverage": None}
        for i, success in enumerate(successes)
    ]
    rates = {env: {"mean": sum(successes[i::2]) / len(successes[i::2])} for i, env in enumerate("ab")}
    return {
        "episodes": episodes, "num_episodes": len(episodes), "max_coverage": None, "success_by_env": rates,
        "success": {"mean": sum(successes) / len(successes)}, "latency": {"hz": 20.0},
    }  # fmt: skip


def test_episodes_are_paired_over_training_seeds(tables):
    before = [loop(1, 0, 0, 0), loop(1, 0, 0, 1)]
    after = [loop(1, 1, 0, 0), loop(1, 1, 1, 1)]
    assert tables.pooled(after).mean == pytest.approx(6 / 8)
    difference = tables.pooled(after, before=before)
    assert difference.mean == pytest.approx(3 / 8)
    same = tables.pooled(after, before=after)
    assert (same.mean, same.ci95) == (0, None), "no episode differs: nothing says how much others would"
    with pytest.raises(ValueError, match="a seed has 4 episodes, expected the same 4 for all seeds"):
        tables.pooled([loop(1, 0, 0, 0), loop(1, 0, 0, 0, first_seed=9)])


def test_intervals_know_episodes_seeds_and_simulators(tables):
    """Widths against the standard errors that theory gives for each kind of spread."""
    rng = np.random.default_rng(0)
    episodes = rng.normal(size=100)
    shared = tables.crossed_bootstrap(np.tile(episodes, (3, 1)), ["a"] * 100)
    assert _width(shared) == pytest.approx(2 * 1.96 * episodes.std() / 10, rel=0.1), "three seeds are not 300 episodes"
    seeds = rng.normal(size=20)
    by_seed = tables.crossed_bootstrap(np.tile(seeds[:, None], (1, 30)), ["a"] * 30)
    assert _width(by_seed) == pytest.approx(2 * 1.96 * seeds.std() / 20**0.5, rel=0.1)
    tasks = np.repeat([[0.0, 10.0]], 2, axis=0).repeat(50, axis=1)
    assert tables.crossed_bootstrap(tasks, ["a"] * 50 + ["b"] * 50).ci95 is None, "tasks are not drawn"
    assert tables.crossed_bootstrap(tasks, ["a"] * 100).ci95 is not None


def _width(metric):
    return metric.ci95[1] - metric.ci95[0]


@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [
        ([1, 2, 3, 4], [10, 20, 30, 99], 1.0),
        ([1, 2, 3, 4], [4, 3, 2, 1], -1.0),
        ([106, 86, 100, 101, 99, 103, 97, 113, 112, 110], [7, 0, 27, 50, 28, 29, 20, 12, 6, 17], -29 / 165),
        ([1, 2, 2, 3], [1, 2, 3, 4], 0.9486832980505138),  # scipy.stats.spearmanr
    ],
)
def test_rank_correlation(tables, x, y, expected):
    assert tables.rank_correlation(x, y) == pytest.approx(expected)
    assert tables.rank_correlation(y, x) == pytest.approx(expected)


def test_no_rank_correlation_with_a_constant(tables):
    assert np.isnan(tables.rank_correlation([1, 1, 1], [1, 2, 3]))


ARMS = ("base", "base_scaled", "likelihood", "vampo")


def seed_record(chain, shift):
    """A training seed in which each arm has more success than the one before it, and less L1."""
    policies, rank = {}, {arm: i for i, arm in enumerate(ARMS)}
    for name, (arm, kind) in chain.controllers.items():
        good = rank[arm] + shift if kind == "imagined" else 2
        policies[name] = {"arm": arm, "kind": kind, "closed_loop": loop(*[i < good for i in range(8)])}
        if kind != "imagined":
            policies[name] |= {"updates": 10, "minutes": 1.5, "action_l1": 0.1}
    policies["expert"] = {"arm": None, "kind": None, "closed_loop": {**loop(*[1] * 8), "latency": None}}
    arms = {
        arm: {
            "title": arm, "steps": 7 * i, "unit": "iteration" if i > 1 else None,
            "metrics": {"l1": 0.5 - i / 10, "cosine": 0.5 - i / 10},
        }
        for i, arm in enumerate(ARMS)
    }  # fmt: skip
    return {"policies": policies, "arms": arms}


def rows(page, first):
    """Cells of the lines of the table that begins with a head cell."""
    lines = page[page.index(f"| {first} |") :].split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if "---" not in line]


def test_the_tables(tables):
    chain = ChainConfig(arms=ARMS, policies=("imagined", "predictive", "latents"))
    seeds = {"0": seed_record(chain, 1), "1": seed_record(chain, 3)}
    page = tables.markdown(seeds, chain, "a machine")
    assert page.startswith("a machine\n\nTraining seeds 0, 1; 8 episodes for every policy of every seed.")
    success = {tuple(row[:2]): row[2:] for row in rows(page, "arm")[1:]}
    assert success["base", "Acts on its imagined video"][1] == ""
    assert success["vampo", "Acts on its imagined video"][0].startswith("62 [")
    assert success["vampo", "Acts on its imagined video"][1].startswith("+37.5 [")
    assert success["vampo", "Acts on predictive features"][1] == "+0.0"
    assert success["", "Sees only the current frame"][1].startswith("+0.0")  # 2 - (1 + 3) / 2 episodes
    assert success["", "expert"] == ["100", ""]
    by_seed = rows(page, "success by seed, % (Δ)")
    assert by_seed[1][by_seed[0].index("imagined-vampo")] == "50 (+38)"
    by_task = {row[0]: row[1:] for row in rows(page, "success by task, %")[1:]}
    assert by_task["base"] == ["25", "25"] and by_task["imagined-base"] == ["38", "12"]
    metrics = {row[0]: row[1:] for row in rows(page, "held out (Δ)")[1:]}
    assert metrics["vampo"] == ["21 iterations", "0.2000 (-0.3000)", "0.2000 (-0.3000)"]
    assert metrics["base"] == ["", "0.5000", "0.5000"]
    correlations = {row[0]: row[1:] for row in rows(page, "metric")[1:]}
    assert "over 3 arms and 2 seeds" in page, "scaled actions are not in the video"
    assert correlations["Latent L1"][1] == "+1.00" and correlations["Latent cosine"][1] == "-1.00"
    assert 0 < float(correlations["Latent L1"][0]) < 1, "seeds differ, metrics do not"
    assert correlations["Latent L1"][2:] == ["+nan", "+nan"]
    trained = {row[0]: row[1:] for row in rows(page, "training")[1:]}
    assert trained["vampo"] == ["10", "1.5", "0.1000", "", "20"] and trained["imagined-vampo"][0] == ""


def test_todays_chain(tables):
    chain = ChainConfig()
    policies = {name: {"closed_loop": loop(1, 1, 1, 0)} for name in (*chain.controllers, "expert")}
    policies["vampo"] |= {"closed_loop": loop(1, 1, 1, 1), "rephrased": loop(0, 1, 0, 0)}
    arms = {name: {"steps": 0, "unit": None, "metrics": {"l1": 0.1}} for name in chain.arms}
    page = tables.markdown({"0": {"policies": policies, "arms": arms}}, chain, "a machine")
    success = {tuple(row[:2]): row[2:] for row in rows(page, "arm")[1:]}
    assert success["vampo", "Acts on predictive features"][0] == "100"
    assert success["vampo", "Acts on predictive features"][1].startswith("+25.0 [")
    assert {row[0]: row[4] for row in rows(page, "training")[1:]}["vampo"].startswith("25 [")
