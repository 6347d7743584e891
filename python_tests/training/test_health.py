"""Checks over rows that were made up: each speaks past its threshold, once, and not before."""

import re
from pathlib import Path

import pytest
from page_values import policy_summary
from training_runs import make_config, make_pretrainer

from vampo_core.config import load_config
from vampo_core.config.vampo import keys
from vampo_core.report.policy import render_policy
from vampo_core.training.health import Monitor, findings
from vampo_core.training.health_checks import CHECKS
from vampo_core.training.metrics import read_metrics

LIMIT = {check.name: check.limit for check in CHECKS}
DOCS = Path(__file__).parents[2] / "docs" / "health.md"
CONFIG = load_config("pusht", "grpo.num_inner_epochs=2")


def names(rows, config=CONFIG):
    rows = [{"iteration": i, **row} for i, row in enumerate(rows, 1)]
    return [finding.check for finding in findings(rows, config)]


@pytest.mark.parametrize(
    ("check", "metric", "share"),
    [
        ("ratios off 1", "replay_max_dev", 1),
        ("order of the group", "replay_mismatch", 1),
        ("no spread", "zero_std_fraction", 1),
        ("rounding", "rounding_fraction", 1),
        ("clipped ratios", "clip_fraction", 0.5),  # ratios of the first of two epochs are 1
        ("KL of an iteration", "approx_kl", 1),
        ("KL from the base", "kl", 1),
    ],
)
def test_a_threshold(check, metric, share):
    limit = share * LIMIT[check]
    assert names([{metric: 0.99 * limit}] * 30) == []
    assert names([{metric: 1.01 * limit}] * 30) == [check]
    assert names([{metric: None}] * 30) == names([{}] * 30) == []


def test_one_odd_batch_is_no_illness():
    healthy, odd = {"zero_std_fraction": 0.6, "rounding_fraction": 0.0}, {"zero_std_fraction": 1.0}
    assert names([*[healthy] * 9, healthy | odd, *[healthy] * 9]) == []


def test_a_check_speaks_once_and_not_again_after_a_resume():
    rows = [{"iteration": i, "kl": 10.0} for i in (1, 2, 3)]
    monitor = Monitor(CONFIG)
    assert [len(monitor.add(row)) for row in rows] == [1, 0, 0]
    resumed = Monitor(CONFIG, rows[:1])
    assert [len(resumed.add(row)) for row in rows[1:]] == [0, 0]
    assert resumed.findings == monitor.findings == findings(rows, CONFIG)
    assert monitor.findings[0].iteration == 1


def test_a_gradient_that_grows():
    begin = [{"grad_norm": 1.0 + i % 2} for i in range(12)]
    assert names([*begin, *[{"grad_norm": 9.0}] * 20]) == []
    assert names([*begin, *[{"grad_norm": 19.0}] * 20]) == ["gradient norm"]
    assert names([*begin, *[{"grad_norm": 900.0}] * 4, *begin]) == [], "a few of them are clipped"
    assert names([*begin, *[{"grad_norm": None}] * 20]) == [], "float16 has skipped these updates"


def test_time():
    fast, slow = {"data_s": 0.1, "update_s": 1.9}, {"data_s": 0.1, "update_s": 6.0}
    assert names([slow, *[fast] * 60]) == [], "the first iteration warms up"
    assert names([*[fast] * 30, *[slow] * 5, *[fast] * 25]) == [], "other work for half a minute"
    assert names([*[fast] * 30, *[slow] * 30]) == ["throughput"]
    assert names([{"data_s": 0, "update_s": 0.02}] * 30 + [{"data_s": 0, "update_s": 0.2}] * 30) == [], "seconds in all"


def test_memory():
    grown = [{"peak_memory_mb": 1000.0 + 20 * i} for i in range(60)]
    assert names(grown) == ["memory"]
    assert names([{"peak_memory_mb": min(row["peak_memory_mb"], 1400.0)} for row in grown]) == []
    jump = [{"peak_memory_mb": 1000.0}] * 30 + [{"peak_memory_mb": 2000.0}] * 30
    assert names(jump) == [], "a larger evaluation is no leak"


def test_waiting_for_data():
    fed, starved = ({"data_s": x, "rollout_s": 0.4, "update_s": 0.1} for x in (0.4, 0.6))
    assert names([fed] * 40) == []
    assert names([starved] * 40) == ["starved loader"]
    assert names([starved, *[fed] * 40]) == [], "the first iteration starts the workers"
    assert names([{"data_s": 6.0, "update_s": 1.0}] * 10) == [], "too few"
    quick = {"data_s": 0.006, "update_s": 0.094}
    assert names([*[quick] * 200, *[{"data_s": 0.3, "update_s": 0.1}] * 10]) == [], "a hiccup of seconds"


def evaluated(before, change, half_width=0.01, **others):
    """A row with a held-out L1 and reward that changed by this much."""
    interval = [change - half_width, change + half_width]
    values = {"eval_l1": before + change, "eval_reward": -before - change}
    return {"reward_mean": 0.1, **values, **others, **change_of("l1", change, *interval),
            **change_of("reward", -change, *sorted(-x for x in interval))}  # fmt: skip


def change_of(name, mean, low, high):
    return {f"eval_change/{name}": mean, f"eval_change/{name}/low": low, f"eval_change/{name}/high": high}


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ([0.02, 0.02], ["held-out worse"]),
        ([0.02], []),  # one evaluation may be chance
        ([0.02, 0.005], []),
        ([0.005, 0.02, 0.02], ["held-out worse"]),
        ([-0.02, -0.03], []),
        ([0.12], ["held-out worse"]),  # a wreck
    ],
)
def test_held_out(changes, found):
    assert names([evaluated(0.4, change) for change in changes]) == found


def test_held_out_says_which_way_training_went_and_what_got_better():
    rows = [{"iteration": i, "reward_mean": 0.1 * i} for i in range(1, 9)]
    for row in rows[-2:]:
        row |= evaluated(0.4, 0.05) | {"reward_mean": row["reward_mean"]}
        row["eval_motion_ratio"] = 0.8
        row |= change_of("motion_ratio", 0.2, 0.1, 0.3)
    found = findings(rows, CONFIG)[0].found
    assert "held-out reward got worse than the base, from -0.4 to -0.45" in found
    assert "reward in training went from 0.2 to 0.7; better: motion, of the expert's" in found
    by_motion = load_config("pusht", "evaluation.best_by=motion_ratio")
    assert findings(rows, by_motion) == []


def test_a_small_change_is_none_even_where_it_is_clear():
    assert names([evaluated(0.4, 0.003, half_width=0.001)] * 4) == []


def test_overfitting_of_likelihood_and_policies():
    for key in ("eval_l1", "eval_action_l1"):
        values = [0.5, 0.4, 0.41, 0.4, 0.43, 0.43]
        rows = [{key: value} for value in values]
        assert names(rows[:4]) == []
        assert names(rows) == ["overfitting"]


def test_pretraining_logs_what_the_checks_read(tmp_path, capsys):
    result = make_pretrainer(make_config(tmp_path)).train()
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert all(row["data_s"] >= 0 and row["update_s"] > 0 and row["peak_memory_mb"] > 0 for row in rows)
    difference, low, high = (rows[-1][f"eval_change/l1{end}"] for end in ("", "/low", "/high"))
    assert rows[-1]["eval_l1"] - difference == pytest.approx(result.before.l1.mean)
    assert low <= difference <= high
    assert "health" not in capsys.readouterr().err


def test_the_page_says_what_the_console_said():
    summary = policy_summary()
    assert "<h2>Health</h2>" not in render_policy(summary)
    rows = [{**row, "kl": 10.0} for row in summary.rows]
    page = render_policy(type(summary)(**{**vars(summary), "rows": rows}))
    (finding,) = findings(rows, summary.config)
    assert "<h2>Health</h2>" in page and finding.found[1:] in page and finding.remedy in page
    assert "<b>KL from the base</b>" in page


def test_remedies_name_settings_that_exist():
    sections = {key.partition(".")[0] for key in keys()}
    named = [word for check in CHECKS for word in re.findall(r"\b([a-z]+\.[a-z0-9_]+)\b", check.remedy)]
    assert len(named) > 20
    assert {word for word in named if word.partition(".")[0] in sections} <= set(keys())


def test_the_docs_have_every_check_with_its_threshold():
    rows = dict(re.findall(r"^\| ([^|]+?) \| ([^|]+?) \|", DOCS.read_text(), re.M))
    for check in CHECKS:
        assert f"{check.limit:g}" in rows[check.name], check.name
