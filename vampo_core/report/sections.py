"""The sections of a report, each from the run to HTML."""

import math
from collections.abc import Sequence
from html import escape

from vampo_core.evaluation.predictor import HIGHER_IS_BETTER, EvalResult, outcome, paired_difference
from vampo_core.pipeline.summary import BASE, PRETRAINED, RESULT, ClipVideo, RunSummary
from vampo_core.report.charts import Series, bar_chart, line_chart, moving_average
from vampo_core.report.sheet import make_sheet
from vampo_core.report.tables import figure, number

METRIC_NAMES = {"l1": "Latent L1", "cosine": "Latent cosine", "reward": "Reward", "psnr": "PSNR, dB", "ssim": "SSIM"}
FEW_EPISODES = 8
_PHASES = {"rollout_s": "Rollout", "reward_s": "Reward", "update_s": "Update"}
_DIAGNOSTICS = {
    "loss": "Loss",
    "grad_norm": "Gradient norm before clipping",
    "reward_std": "Spread of rewards within a group",
    "ratio_max_dev": "Largest deviation of a ratio from 1",
    "clip_fraction": "Share of clipped ratios",
    "approx_kl": "Approximate KL from the last policy",
    "zero_std_fraction": "Share of groups without spread",
    "lr": "Learning rate",
}
_HISTORY_KEYS = {"reward_mean", "iteration", "samples_per_s", "peak_memory_mb", "ratio_mean", *_PHASES, *_DIAGNOSTICS}


def verdict(run: RunSummary) -> str:
    """The outcome in a sentence, as far as the interval of the paired difference supports it."""
    difference = paired_difference(run.before, run.after, "l1")
    change = (run.after.l1.mean - run.before.l1.mean) / run.before.l1.mean
    style, words = {
        "better": ("good", "Predictions are closer to the expert"),
        "worse": ("bad", "Predictions are further from the expert"),
        "unclear": ("even", "No clear difference from the base"),
    }[outcome(run.before, run.after, "l1")]
    differences = zip(run.before.per_clip["l1"], run.after.per_clip["l1"], strict=True)
    closer = sum(after < before for before, after in differences)
    spec = ".1%" if abs(change) >= 0.005 else ".2%"
    bounds = [number(bound / run.before.l1.mean, spec, sign=True) for bound in difference.ci95]
    interval = (
        f"95&nbsp;% interval {bounds[0]} to {bounds[1]}" if run.after.num_clips > 1 else "too few for an interval"
    )
    return (
        f'<div class="verdict {style}"><div class="big">{number(change, spec, sign=True)}</div><div><h2>{words}</h2>'
        f"<p>Latent L1 on {_clips(run.after)}, {interval}; closer on {closer} of {run.after.num_clips}.</p></div></div>"
    )


def metrics_table(run: RunSummary) -> str:
    """Before, after, paired difference, each with its interval."""
    rows = []
    for name in (name for name in run.after.metrics if name in run.before.metrics):
        before, after = run.before.metrics[name], run.after.metrics[name]
        difference = paired_difference(run.before, run.after, name)
        arrow = "↑" if HIGHER_IS_BETTER[name] else "↓"
        hint = "higher is better" if HIGHER_IS_BETTER[name] else "lower is better"
        style = {"better": "good", "worse": "bad", "unclear": "even"}[outcome(run.before, run.after, name)]
        # a share of a reward, which is a difference and may be near 0, or of a logarithm, means nothing
        share = number(difference.mean / abs(before.mean), ".1%", sign=True) if name in ("l1", "cosine", "ssim") else ""
        spec = ".2f" if name == "psnr" else ".4f"
        rows.append(
            f'<tr><th scope="row">{METRIC_NAMES[name]} <span class="muted" title="{hint}">{arrow}</span></th>'
            f"<td>{figure(before, spec)}</td><td>{figure(after, spec)}</td>"
            f'<td class="{style}">{figure(difference, spec, sign=True)}</td>'
            f'<td class="{style}">{share}</td></tr>'
        )
    num_episodes = len(set(run.after.episode_ids))
    rough = f" {num_episodes} episodes are few: the intervals are rough." if 1 < num_episodes < FEW_EPISODES else ""
    return (
        f'<div class="scroll"><table><thead><tr><th></th><th>{BASE}</th><th>{run.result_name}</th>'
        f"<th>Difference, paired</th><th>Change</th></tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
        f'<p class="muted">Means over {_clips(run.after)}, {_count(run.after.num_samples, "video")} each, '
        "both models from the same noise. 95&nbsp;% bootstrap intervals that resample "
        f"{'episodes' if num_episodes > 1 else 'clips'}; coloured where that of the difference "
        f"excludes 0.{rough}{_decoding_note(run)}</p>"
    )


def videos(run: RunSummary) -> str:
    """Clips side by side, in step."""
    num_frames = next(iter(run.videos[0].panels.values())).shape[0]
    legend = f"black: no difference, yellow: {run.error_scale:.2g} and more, the mean absolute difference " + (
        "of colours in [0, 1]" if run.decoded else "of the false colours"
    )
    note = "" if run.decoded else " This model has no codec: latents are shown, their principal components as colours."
    missing = "" if run.base else " The base model is not there, so its videos are missing."
    return (
        '<div class="player"><button id="play" aria-label="Play or pause">Pause</button>'
        f'<input id="seek" type="range" min="0" max="{num_frames - 1}" value="0" step="1" aria-label="Frame">'
        f'<output id="frame">1 / {num_frames}</output></div>'
        + "".join(_clip(video) for video in run.videos)
        + f'<p class="muted">{_count(len(run.videos), "clip")} spread evenly over the held-out ones, the first video '
        f"predicted of each; none was picked by result. The first frame is given. Errors: {legend}.{note}{missing}</p>"
    )


def frame_charts(run: RunSummary) -> str:
    """Error over the frames of a clip, and over the clips."""
    before, after = run.before.per_frame, run.after.per_frame
    charts = []
    for name in ("l1", "cosine", "psnr", "ssim"):
        if name in before and name in after:
            curves = [
                Series(label, _numbered(values[name]), style, dots=True)
                for label, values, style in ((BASE, before, "base"), (run.result_name, after, "vampo"))
            ]
            charts.append(line_chart(curves, title=f"{METRIC_NAMES[name]} by frame", x_label="frame"))
        if name == "l1":
            change = [100 * (b - a) / a if a else 0.0 for a, b in zip(before["l1"], after["l1"], strict=True)]
            curve = Series("change", _numbered(change), "vampo", dots=True)
            charts.append(line_chart([curve], title="Change of latent L1 by frame, %", x_label="frame", zero_line=True))
    differences = [b - a for a, b in zip(run.before.per_clip["l1"], run.after.per_clip["l1"], strict=True)]
    named = [
        (f"{episode}, clip {i + 1}", value)
        for i, (episode, value) in enumerate(zip(run.after.episode_ids, differences, strict=True))
    ]
    title = "Difference of latent L1, clip by clip"
    if len(named) > 1:
        charts.append(bar_chart(named, title=title, x_label="held-out clips in order", higher_is_better=False))
    return _grid(charts)


def training_charts(run: RunSummary) -> str:
    """Held-out metrics and rewards over the iterations."""
    charts = []
    for name in ("reward", "l1", "cosine"):
        points = [(0.0, run.before.metrics[name].mean), *_column(run, f"eval_{name}")]
        curve = Series(name, points, "vampo", dots=True)
        charts.append(line_chart([curve], title=f"Held out: {_metric_name(name)}", x_label="iteration"))
    rewards = _column(run, "reward_mean")
    window = max(3, len(rewards) // 10)
    curves = [Series("each", rewards, "raw")]
    if len(rewards) >= 8:
        curves.append(Series(f"mean of {window}", moving_average(rewards, window), "vampo"))
    charts.append(line_chart(curves, title="In training: reward of the batch", x_label="iteration"))
    note = "Batches are of different clips, some easier than others; held-out clips and their noise stay the same."
    return _grid(charts) + (f'<p class="muted">{note}</p>' if rewards else "")


def diagnostic_charts(run: RunSummary) -> str:
    """What one looks at when training goes wrong; what never changed is told in words."""
    parts = (
        [key for key in run.rows[-1] if key not in _HISTORY_KEYS and not key.startswith("eval_")] if run.rows else []
    )
    names = _DIAGNOSTICS | {key: f"In training: {_metric_name(key)}" for key in parts}
    charts, constant = [], []
    for key, title in names.items():
        points = _column(run, key)
        if len({y for _, y in points}) == 1 and len(points) > 1:
            constant.append(f"{_lower(title)}: {points[0][1]:.3g}")
        else:
            charts.append(line_chart([Series(key, points)], title=title, x_label="iteration"))
    unchanged = f'<p class="muted">The same in every iteration: {escape("; ".join(constant))}.</p>' if constant else ""
    return _grid(charts) + unchanged


def timing(run: RunSummary) -> str:
    """Where an iteration's time goes."""
    seconds = {
        label: sum(y for _, y in points) / len(points)
        for key, label in _PHASES.items()
        if (points := _column(run, key))
    }
    total = sum(seconds.values())
    if not total:
        return ""
    bars = "".join(
        f'<span class="part phase{i}" style="flex:{value / total:.4f}" title="{label}: {value:.3g} s"></span>'
        for i, (label, value) in enumerate(seconds.items())
    )
    legend = "".join(
        f'<li><span class="key phase{i}">{label}</span> <b>{value:.3g} s</b> '
        f'<span class="muted">{value / total:.1%}</span></li>'
        for i, (label, value) in enumerate(seconds.items())
    )
    facts = [f"<b>{total:.3g} s</b> an iteration", f"<b>{total * len(run.rows) / 60:.3g} min</b> for all of them"]
    if speeds := _column(run, "samples_per_s"):
        facts.append(f"<b>{sum(y for _, y in speeds) / len(speeds):.3g}</b> videos a second")
    if memory := _column(run, "peak_memory_mb"):
        facts.append(f"<b>{max(y for _, y in memory) / 1024:.3g} GiB</b> of memory at most")
    return (
        f'<p>{" · ".join(facts)}</p><div class="share">{bars}</div><ul class="legend">{legend}</ul>'
        '<p class="muted">Means over the iterations, without evaluation and saving.</p>'
    )


def _clip(video: ClipVideo) -> str:
    sheet = make_sheet(video.panels.values())
    height, width = sheet.panel_size
    panels = "".join(
        f'<figure><div class="panel" style="--row:{row}" role="img" aria-label="{escape(label)}"></div>'
        f"<figcaption>{_panel_label(label, video)}</figcaption></figure>"
        for row, label in enumerate(video.panels)
    )
    return (
        f'<article class="clip" style="--sheet:url({sheet.uri});--rows:{sheet.num_panels};--frames:{sheet.num_frames};'
        f'--width:{width};--height:{height}">'
        f'<header><h3>{escape(video.instruction) or "No instruction"}</h3><span class="muted">{escape(video.clip_id)}'
        f'</span></header><div class="panels">{panels}</div>'
        f'<details><summary>All frames</summary><div class="strip"></div></details></article>'
    )


def _panel_label(label: str, video: ClipVideo) -> str:
    value = f' <span class="muted">L1 {video.l1[label]:.4f}</span>' if label in video.l1 else ""
    style = {BASE: "base", RESULT: "vampo", PRETRAINED: "vampo"}.get(label, "")
    return f'<b class="{style}">{escape(label)}</b>{value}'


def _decoding_note(run: RunSummary) -> str:
    if "psnr" not in run.after.metrics or "psnr" not in run.before.metrics:
        return ""
    return " PSNR and SSIM compare decoded predictions with the expert's decoded latents."


def _clips(result: EvalResult) -> str:
    return f"{_count(result.num_clips, 'held-out clip')} of {_count(len(set(result.episode_ids)), 'episode')}"


def _metric_name(key: str) -> str:
    return _lower(METRIC_NAMES[key]) if key in METRIC_NAMES else f"reward {key!r}"


def _lower(title: str) -> str:
    return title[0].lower() + title[1:]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _numbered(values: Sequence[float]) -> list[tuple[float, float]]:
    return [(i + 1.0, value) for i, value in enumerate(values)]


def _column(run: RunSummary, key: str) -> list[tuple[float, float]]:
    """A metric over the iterations; gaps, and what was not finite, left out."""
    pairs = [(float(row["iteration"]), row.get(key)) for row in run.rows]
    return [(x, float(y)) for x, y in pairs if isinstance(y, int | float) and math.isfinite(y)]


def _grid(charts: Sequence[str]) -> str:
    return f'<div class="charts">{"".join(charts)}</div>'
