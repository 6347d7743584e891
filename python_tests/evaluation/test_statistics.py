"""Intervals against scipy's and against plain loops, and nothing said where nothing can be."""

import json
import math
from dataclasses import asdict, dataclass

import numpy as np
import pytest
import scipy.stats

from vampo_core.evaluation.metrics import METRICS, share_of
from vampo_core.evaluation.statistics import Metric, bootstrap, metrics_of, outcome, paired_difference, success_rate


@dataclass
class Result:
    """A metric clip by clip."""

    per_clip: dict
    episode_ids: list


def result(*values, metric="l1", episodes=None):
    return Result({metric: list(values)}, [str(i) for i in range(len(values))] if episodes is None else episodes)


def test_interval_is_the_percentile_bootstrap():
    values = np.random.default_rng(0).gamma(2.0, size=60)
    metric = bootstrap(values.tolist(), [str(i) for i in range(60)])
    expected = scipy.stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=20000, rng=1
    ).confidence_interval
    width = expected.high - expected.low
    assert metric.mean == pytest.approx(values.mean())
    assert metric.ci95 == pytest.approx((expected.low, expected.high), abs=0.06 * width)


def test_interval_resamples_whole_episodes():
    """Ten copies of a clip say no more than one: the interval is that of six values, not of sixty."""
    values = np.random.default_rng(1).normal(size=6)
    copies, episodes = np.repeat(values, 10).tolist(), np.repeat(list("abcdef"), 10).tolist()
    assert bootstrap(copies, episodes).ci95 == pytest.approx(bootstrap(values.tolist(), list("abcdef")).ci95)
    assert np.ptp(bootstrap(copies, [str(i) for i in range(60)]).ci95) < 0.5 * np.ptp(bootstrap(copies, episodes).ci95)


def test_interval_of_episodes_of_different_lengths():
    """A plain loop: draw episodes, pool their clips, take the mean."""
    generator = np.random.default_rng(2)
    episodes = [str(number) for number, length in enumerate((1, 2, 3, 5, 8)) for _ in range(length)]
    values = generator.normal(size=len(episodes)) + np.array([float(e) for e in episodes])
    means = []
    for _ in range(4000):
        pool = [
            v for e in generator.integers(5, size=5) for v, name in zip(values, episodes, strict=True) if name == str(e)
        ]
        means.append(np.mean(pool))
    low, high = np.percentile(means, [2.5, 97.5])
    metric = bootstrap(values.tolist(), episodes)
    assert metric.mean == pytest.approx(values.mean())
    assert metric.ci95 == pytest.approx((low, high), abs=0.08 * (high - low))


def test_one_episode_falls_back_to_its_clips():
    values = [1.0, 2.0, 3.0, 4.0]
    assert bootstrap(values, ["a"] * 4) == bootstrap(values, list("abcd"))


@pytest.mark.parametrize(
    ("values", "episodes"),
    [
        ([1.0], ["a"]),
        ([0.1, 0.1, 0.1], ["a", "b", "c"]),
        ([0.1] * 7, list("aabbbcc")),
        ([0.0, 0.2, 0.1], ["a", "a", "b"]),  # both episodes have the same mean
        ([1.0, math.nan, 2.0], ["a", "b", "c"]),
        ([1.0, math.inf, 2.0], ["a", "b", "c"]),
    ],
)
def test_no_interval_where_nothing_varies_or_is_a_number(values, episodes):
    metric = bootstrap(values, episodes)
    assert metric.ci95 is None
    assert f"{metric:.2f}" == f"{np.mean(values):.2f}", "no brackets"


def test_metrics_survive_json_and_print_their_interval():
    for metric in (Metric(0.5, (0.41, 0.6)), Metric(0.5)):
        assert Metric.from_dict(json.loads(json.dumps(asdict(metric)))) == metric
    assert f"{Metric(0.5, (0.41, 0.6)):+.1f}" == "+0.5 [+0.4, +0.6]"
    assert Metric(0.5, (0.41, 0.6)).interval(".0%", before=" ") == " [41%, 60%]" and Metric(0.5).interval(".0%") == ""


@pytest.mark.parametrize("metric", METRICS)
def test_outcome_follows_the_direction_of_the_metric(metric):
    before, more = result(0.5, 0.6, 0.7, metric=metric), result(0.6, 0.71, 0.82, metric=metric)
    assert outcome(before, more, metric) == ("better" if METRICS[metric].higher_is_better else "worse")
    assert outcome(more, before, metric) == ("worse" if METRICS[metric].higher_is_better else "better")
    assert outcome(before, result(0.4, 0.7, 0.69, metric=metric), metric) == "unclear"


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_outcome_says_nothing_about_what_is_not_finite(bad):
    before = result(0.5, 0.6, 0.7)
    for after in (result(0.1, bad, 0.2), result(bad, bad, bad)):
        assert outcome(before, after, "l1") == outcome(after, before, "l1") == "unclear"


def test_outcome_needs_more_than_one_clip():
    assert outcome(result(0.5), result(0.1), "l1") == "unclear"
    assert paired_difference(result(0.5), result(0.1), "l1") == Metric(pytest.approx(-0.4), None)


def test_nothing_differs():
    assert paired_difference(result(0.5, 0.6), result(0.5, 0.6), "l1") == Metric(0.0, None)


def test_success_rates_have_an_interval_though_all_succeed():
    rate = success_rate([True] * 20)
    expected = scipy.stats.binomtest(20, 20).proportion_ci(method="wilson")
    assert rate.mean == 1 and rate.ci95 == pytest.approx((expected.low, expected.high))


def test_a_share_only_where_it_means_something():
    assert share_of("l1", -0.1, 0.5) == pytest.approx(-0.2) and share_of("cosine", 0.1, -0.5) == pytest.approx(0.2)
    assert share_of("psnr", 1.0, 20.0) is share_of("reward", 0.1, 0.01) is share_of("l1", 0.1, 0.0) is None


def test_results_tell_their_metrics_in_the_order_of_the_table():
    class Some:
        ssim, l1, psnr, other = Metric(1.0), Metric(2.0), None, Metric(3.0)

    assert metrics_of(Some()) == {"l1": Metric(2.0), "ssim": Metric(1.0)} and list(metrics_of(Some())) == ["l1", "ssim"]
