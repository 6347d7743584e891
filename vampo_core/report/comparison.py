"""The page that compares runs: curves, held-out metrics, settings, videos and success side by side."""

from collections.abc import Sequence
from typing import Any

import yaml
from markupsafe import Markup

from vampo_core.config import VampoConfig
from vampo_core.evaluation.metrics import METRICS
from vampo_core.evaluation.statistics import Metric, metrics_of, outcome
from vampo_core.report.charts import Series, line_chart, moving_average
from vampo_core.report.headline import points
from vampo_core.report.page import count, render_page, within_sentence
from vampo_core.report.run import column
from vampo_core.report.sheet import shown_clip
from vampo_core.report.values import ComparedRun, RunComparison

_KINDS = {"pretraining": "Pretraining", "post-training": "VAMPO post-training", "policy": "Policy training"}
_UNITS = {"pretraining": "update", "post-training": "iteration", "policy": "update"}
_STYLES = {"better": "good", "worse": "bad", "unclear": "even"}


def render_comparison(compared: RunComparison) -> str:
    """The page as HTML."""
    first, runs = compared.runs[0], compared.runs
    styles = {run.name: style(i) for i, run in enumerate(runs)}
    has_policies = first.kind == "policy"
    num_episodes = len(set(first.best.episode_ids))
    return render_page(
        "comparison.html",
        name=f"{first.name} and {count(len(runs) - 1, 'other run')}",
        kind="Comparison",
        facts=[count(len(runs), "run"), "policies" if has_policies else "video predictors"],
        first=first,
        runs=[_facts(run, styles[run.name]) for run in runs],
        metrics=_metrics(runs),
        measured=f"{count(first.best.num_clips, 'frame' if has_policies else 'clip')} of "
        f"{count(num_episodes, 'held-out episode')}",
        num_episodes=num_episodes,
        notes=_notes(runs),
        held_out_charts=_held_out_charts(runs),
        training_charts=[_training_chart(runs, *key) for key in _training_keys(runs)],
        rewards_differ=_rewards_differ(runs),
        success=_success(runs),
        settings=[(key, [_written(value) for value in values]) for key, values in compared.settings.items()],
        videos=[shown_clip(video, styles) for video in compared.videos],
        num_frames=next(iter(compared.videos[0].panels.values())).shape[0] if compared.videos else 0,
        decoded=compared.decoded,
        without_videos=compared.without_videos,
        not_shown=[run.name for run in runs if compared.videos and run.unpaired is not None],
    )


def style(number: int) -> str:
    """Classes in the style sheet for the run of this number: its colour."""
    return f"run run{number}"


def _facts(run: ComparedRun, style: str) -> dict[str, Any]:
    """A line of the table of runs."""
    unit = _UNITS[run.kind]
    done = f"{run.last_step} of {count(run.num_steps, unit)}"
    best = f"{unit} {run.best_step}" if run.best_step else "the start: nothing better was found"
    chosen = "action_l1" if run.kind == "policy" else run.config.evaluation.best_by
    return {
        "name": run.name,
        "style": style,
        "kind": _KINDS[run.kind],
        "done": done,
        "best": best,
        "chosen_by": METRICS[chosen].title,
    }


def _metrics(runs: Sequence[ComparedRun]) -> list[dict[str, Any]]:
    """Rows of the table of held-out metrics: a cell for each run."""
    first, rows = runs[0], []
    measured = [metrics_of(run.best) for run in runs]
    for name in METRICS:
        if not any(name in metrics for metrics in measured):
            continue
        cells = []
        for run, metrics in zip(runs, measured, strict=True):
            difference = run.differences.get(name)
            found = "unclear" if difference is None else outcome(first.best, run.best, name)
            cells.append(
                {
                    "value": metrics.get(name),
                    "difference": difference,
                    "style": _STYLES[found],
                    "words": _no_difference(first, run, name, difference),
                }
            )
        rows.append({"info": METRICS[name], "cells": cells})
    return rows


def _no_difference(first: ComparedRun, run: ComparedRun, metric: str, difference: Metric | None) -> str | None:
    """Why a cell has no difference, in as few words as fit there."""
    if run is first or difference is not None or metric not in metrics_of(run.best):
        return None
    return "not comparable" if run.unpaired is not None else run.not_compared.get(metric, "not measured in the first")


def _notes(runs: Sequence[ComparedRun]) -> list[str]:
    """What a reader must know before reading values of different runs side by side, in whole sentences."""
    first = runs[0]
    notes = [
        f"{run.name} is not compared with {first.name}: it has {run.unpaired}."
        for run in runs
        if run.unpaired is not None
    ]
    noise = {(run.config.evaluation.seed, run.config.evaluation.num_samples) for run in runs if run.unpaired is None}
    if first.kind != "policy" and len(noise) > 1:
        notes.append("Predictions of different runs start from different noise (evaluation.seed or num_samples).")
    unfinished = [run.name for run in runs if run.last_step < run.num_steps]
    if unfinished:
        notes.append(f"Not finished: {', '.join(unfinished)}.")
    return notes


def _held_out_charts(runs: Sequence[ComparedRun]) -> list[Markup]:
    """Held-out metrics over the training; its start is 0."""
    charts = []
    for name in METRICS:
        curves = []
        for i, run in enumerate(runs):
            start, points = metrics_of(run.before).get(name), column(run.rows, f"eval_{name}")
            beginning = [] if start is None else [(0.0, start.mean)]
            curves.append(Series(run.name, [*beginning, *points], style(i), dots=True, short=str(i + 1)))
        if any(len(curve.points) > 1 for curve in curves):
            title = f"Held out: {within_sentence(METRICS[name].title)}"
            charts.append(line_chart(curves, title=title, x_label=_x_label(runs)))
    return charts


def _training_keys(runs: Sequence[ComparedRun]) -> list[tuple[str, str]]:
    """What is drawn of the training itself: rewards where there are some, losses where they are minimized."""
    kinds = {run.kind for run in runs}
    rewards = [("reward_mean", "reward of the batch")] if "post-training" in kinds else []
    return [*rewards, *([("loss", "loss")] if kinds - {"post-training"} else [])]


def _training_chart(runs: Sequence[ComparedRun], key: str, words: str) -> Markup:
    """Moving averages, as batches differ."""
    curves = []
    for i, run in enumerate(runs):
        if key == "loss" and run.kind == "post-training":  # a surrogate, around 0
            continue
        points = column(run.rows, key)
        curves.append(Series(run.name, moving_average(points, max(3, len(points) // 10)), style(i), short=str(i + 1)))
    return line_chart(curves, title=f"In training: {words}, smoothed", x_label=_x_label(runs))


def _x_label(runs: Sequence[ComparedRun]) -> str:
    return " or ".join(dict.fromkeys(_UNITS[run.kind] for run in runs))


def _rewards_differ(runs: Sequence[ComparedRun]) -> bool:
    """Whether the rewards of runs have different scales."""
    configs: list[VampoConfig] = [run.config for run in runs if run.kind == "post-training"]
    return any(config.reward != configs[0].reward for config in configs)


def _success(runs: Sequence[ComparedRun]) -> list[dict[str, Any]]:
    """Rows of the table of success; none where nobody acted."""
    if not any(run.closed_loop for run in runs):
        return []
    rows = []
    for i, run in enumerate(runs):
        loop, found = run.closed_loop, run.success
        rows.append(
            {
                "name": run.name,
                "style": style(i),
                "loop": loop,
                "checkpoint": None if loop is None else f"{_UNITS[run.kind]} {run.acted_step}",
                "found": found,
                "points": None if found is None else _points(found.success.mean),
                "interval": None
                if found is None or found.success.ci95 is None
                else " to ".join(map(_points, found.success.ci95)),
                "colour": "even" if found is None else _colour(found.success),
                "words": "other episodes" if loop and not found and i and runs[0].closed_loop else None,
            }
        )
    return rows


def _points(rate: float) -> str:
    return points(rate).replace("-", "\N{MINUS SIGN}")


def _colour(difference: Metric) -> str:
    """The class of a difference of which more is better."""
    if difference.ci95 is None or difference.ci95[0] <= 0 <= difference.ci95[1]:
        return "even"
    return "good" if difference.mean > 0 else "bad"


def _written(value: Any) -> str:
    """A setting's value as a YAML file has it."""
    return yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("\n...\n").strip()
