"""The page of a run that trained a video predictor."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from vampo_core.evaluation.metrics import METRICS, share_of
from vampo_core.evaluation.statistics import outcome, paired_difference
from vampo_core.report.charts import Series, bar_chart, line_chart, moving_average
from vampo_core.report.page import count, number, render, within_sentence
from vampo_core.report.sheet import shown_clip
from vampo_core.report.values import BASE, PRETRAINED, RESULT, RunSummary
from vampo_core.training.health import findings

FEW_EPISODES = 8
"""Fewer than these make a bootstrap interval rough."""
_STYLES = {"better": "good", "worse": "bad", "unclear": "even"}
_PHASES = {"rollout_s": "Rollout", "reward_s": "Reward", "update_s": "Update", "data_s": "Waiting for data"}
_DIAGNOSTICS = {
    "loss": "Loss",
    "grad_norm": "Gradient norm before clipping",
    "reward_std": "Spread of rewards within a group",
    "ratio_max_dev": "Largest deviation of a ratio from 1",
    "clip_fraction": "Share of clipped ratios",
    "approx_kl": "Approximate KL from the last policy",
    "zero_std_fraction": "Share of groups without spread",
    "rounding_fraction": "Share of groups whose spread is little more than rounding",
    "replay_max_dev": "Largest deviation of a replayed log-probability",
    "kl": "KL from the base",
    "anchor": "Squared distance from the base at the anchor's levels",
    "lr": "Learning rate",
}
_HISTORY_KEYS = {
    *("reward_mean", "iteration", "samples_per_s", "peak_memory_mb", "ratio_mean", "replay_mismatch"),
    *("loss_scale", "num_skipped", *_PHASES, *_DIAGNOSTICS),
}


def render_run(run: RunSummary) -> str:
    """The page as HTML."""
    rewards = column(run.rows, "reward_mean")
    diagnostic_charts, constant = _diagnostics(run)
    num_episodes = len(set(run.after.episode_ids))
    styles = {BASE: "base", RESULT: "vampo", PRETRAINED: "vampo"}
    return render(
        "run.html",
        run.config,
        kind="Pretraining" if run.result_name == PRETRAINED else "VAMPO post-training",
        facts=_facts(run),
        run=run,
        findings=findings(run.rows, run.config),
        base=BASE,
        clips=f"{count(run.after.num_clips, 'held-out clip')} of {count(num_episodes, 'episode')}",
        num_episodes=num_episodes,
        few_episodes=1 < num_episodes < FEW_EPISODES,
        verdict=_verdict(run),
        metrics=_metrics(run),
        num_frames=next(iter(run.videos[0].panels.values())).shape[0],
        videos=[shown_clip(video, styles) for video in run.videos],
        frame_charts=_frame_charts(run),
        training_charts=[*_held_out_charts(run), _reward_chart(rewards)],
        has_rewards=bool(rewards),
        diagnostic_charts=diagnostic_charts,
        constant=constant,
        timing=_timing(run),
    )


def _facts(run: RunSummary) -> list[str]:
    grpo, pretrain = run.config.grpo, run.config.pretrain
    if run.result_name == PRETRAINED:
        facts = [f"checkpoint {run.step} of {pretrain.num_steps} steps", f"{pretrain.batch_size} clips a step"]
    else:
        facts = [
            f"checkpoint {run.step} of {grpo.num_iterations} iterations",
            f"{grpo.batch_size} clips of {grpo.num_generations} generations",
        ]
    facts.append(f"denoiser of {run.num_parameters / 1e6:.3g} M parameters")
    if run.best_step != run.step:
        facts.append(f"best held-out {run.config.evaluation.best_by} at {run.best_step}")
    return facts


def _verdict(run: RunSummary) -> dict[str, Any]:
    """The outcome in a sentence that says no more than the interval of the paired difference supports."""
    difference, base = paired_difference(run.before, run.after, "l1"), run.before.l1.mean
    found = outcome(run.before, run.after, "l1")
    words = {
        "better": "Predictions are closer to the expert",
        "worse": "Predictions are further from the expert",
        "unclear": "No clear difference from the base",
    }[found]
    change = difference.mean / base if base else math.nan
    spec = ".1%" if abs(change) >= 0.005 else ".2%"
    if difference.ci95 is not None:
        low, high = (number(bound / base, spec, sign=True) for bound in difference.ci95)
        interval = f"95\N{NO-BREAK SPACE}% interval {low} to {high}"
    elif not math.isfinite(difference.mean):
        words, interval = "Predictions are not finite", "no interval"
    else:
        interval = "no clip differs" if not difference.mean else "too few for an interval"
    pairs = zip(run.before.per_clip["l1"], run.after.per_clip["l1"], strict=True)
    return {
        "style": _STYLES[found],
        "words": words,
        "change": number(change, spec, sign=True),
        "interval": interval,
        "num_closer": sum(after < before for before, after in pairs),
    }


def _metrics(run: RunSummary) -> list[dict[str, Any]]:
    """Each metric before and after, with the paired difference."""
    rows = []
    for name in (name for name in run.after.metrics if name in run.before.metrics):
        difference = paired_difference(run.before, run.after, name)
        rows.append(
            {
                "name": name,
                "info": METRICS[name],
                "before": run.before.metrics[name],
                "after": run.after.metrics[name],
                "difference": difference,
                "style": _STYLES[outcome(run.before, run.after, name)],
                "share": share_of(name, difference.mean, run.before.metrics[name].mean),
            }
        )
    return rows


def _frame_charts(run: RunSummary) -> list[Markup]:
    """Metrics over the frames of a clip, and the difference of L1 over the clips."""
    before, after = run.before.per_frame, run.after.per_frame
    charts = []
    for name in (name for name in METRICS if METRICS[name].in_charts and name in before and name in after):
        curves = [
            Series(label, _numbered(values[name]), style, dots=True)
            for label, values, style in ((BASE, before, "base"), (run.result_name, after, "vampo"))
        ]
        charts.append(line_chart(curves, title=f"{METRICS[name].title} by frame", x_label="frame"))
        if name == "l1":
            change = [100 * (b - a) / a if a else 0.0 for a, b in zip(before["l1"], after["l1"], strict=True)]
            curve = Series("change", _numbered(change), "vampo", dots=True)
            charts.append(line_chart([curve], title="Change of latent L1 by frame, %", x_label="frame", zero_line=True))
    differences = [b - a for a, b in zip(run.before.per_clip["l1"], run.after.per_clip["l1"], strict=True)]
    if len(differences) > 1:
        named = [
            (f"{episode}, clip {i + 1}", value)
            for i, (episode, value) in enumerate(zip(run.after.episode_ids, differences, strict=True))
        ]
        charts.append(
            bar_chart(
                named,
                title="Difference of latent L1, clip by clip",
                x_label="held-out clips, sorted",
                higher_is_better=METRICS["l1"].higher_is_better,
            )
        )
    return charts


def _held_out_charts(run: RunSummary) -> list[Markup]:
    """Held-out metrics over the iterations; the base is iteration 0."""
    charts = []
    for name, base in run.before.row().items():
        curve = Series(name, [(0.0, base), *column(run.rows, f"eval_{name}")], "vampo", dots=True)
        charts.append(line_chart([curve], title=f"Held out: {_metric_name(name)}", x_label="iteration"))
    return charts


def _reward_chart(rewards: list[tuple[float, float]]) -> Markup:
    curves, window = [Series("each", rewards, "raw")], max(3, len(rewards) // 10)
    if len(rewards) >= 8:
        curves.append(Series(f"mean of {window}", moving_average(rewards, window), "vampo"))
    return line_chart(curves, title="In training: reward of the batch", x_label="iteration")


def _diagnostics(run: RunSummary) -> tuple[list[Markup], list[str]]:
    """Charts of what helps when training goes wrong, and what never changed, in words."""
    parts = (
        [key for key in run.rows[-1] if key not in _HISTORY_KEYS and not key.startswith("eval_")] if run.rows else []
    )
    names = _DIAGNOSTICS | {key: f"In training: {_metric_name(key)}" for key in parts}
    charts, constant = [], []
    for key, title in names.items():
        points = column(run.rows, key)
        if len({y for _, y in points}) == 1 and len(points) > 1:
            constant.append(f"{within_sentence(title)}: {points[0][1]:.3g}")
        else:
            charts.append(line_chart([Series(key, points)], title=title, x_label="iteration"))
    return [chart for chart in charts if chart], constant


def _timing(run: RunSummary) -> dict[str, Any] | None:
    """Where the time of an iteration goes; None where no time was measured."""
    seconds = {title: _mean(points) for key, title in _PHASES.items() if (points := column(run.rows, key))}
    total = sum(seconds.values())
    if not total:
        return None
    facts = [(f"{total:.3g} s", "an iteration"), (f"{total * len(run.rows) / 60:.3g} min", "for all of them")]
    if speeds := column(run.rows, "samples_per_s"):
        facts.append((f"{_mean(speeds):.3g}", "videos a second"))
    if memory := column(run.rows, "peak_memory_mb"):
        facts.append((f"{max(y for _, y in memory) / 1024:.3g} GiB", "of memory at most"))
    phases = [{"title": title, "seconds": value, "share": value / total} for title, value in seconds.items()]
    return {"facts": facts, "phases": phases}


def _metric_name(key: str) -> str:
    return within_sentence(METRICS[key].title) if key in METRICS else f"reward {key!r}"


def _mean(points: Sequence[tuple[float, float]]) -> float:
    return sum(y for _, y in points) / len(points)


def _numbered(values: Sequence[float]) -> list[tuple[float, float]]:
    return [(i + 1.0, value) for i, value in enumerate(values)]


def column(rows: Sequence[Mapping[str, Any]], key: str) -> list[tuple[float, float]]:
    """A metric over the iterations, without gaps and without numbers that are not finite."""
    pairs = [(float(row["iteration"]), row.get(key)) for row in rows]
    return [(x, float(y)) for x, y in pairs if isinstance(y, int | float) and math.isfinite(y)]
