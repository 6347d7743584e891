"""Results as tables for people, with 95 % intervals."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from vampo_core.evaluation.episodes import ClosedLoopResult, Comparison
from vampo_core.evaluation.metrics import METRICS, share_of
from vampo_core.evaluation.predictor import EvalResult
from vampo_core.evaluation.statistics import metrics_of, outcome, paired_difference
from vampo_core.policy.evaluation import PolicyEvalResult
from vampo_core.report.page import count
from vampo_core.report.values import RunComparison


def metrics_table(result: EvalResult) -> str:
    """Means and 95 % intervals of one predictor."""
    width = _width(result)
    lines = [_clips(result), f"  {'':{width}} {'mean':>9}   95 % interval"]
    for name, metric in result.metrics.items():
        lines.append(f"  {name:{width}} {metric.mean:9.4f}{metric.interval('.4f', before='   ')}")
    return "\n".join([*lines, *_levels(result)])


def comparison_table(before: EvalResult, after: EvalResult) -> str:
    """Before, after and their paired difference, with 95 % intervals."""
    width = _width(after)
    lines = [
        _clips(after),
        f"  {'':{width}} {'before':>9} {'after':>9} {'change':>8}   paired difference, 95 % interval",
    ]
    for name in (name for name in after.metrics if name in before.metrics):
        old, new = before.metrics[name].mean, after.metrics[name].mean
        difference = paired_difference(before, after, name)
        verdict, share = outcome(before, after, name), share_of(name, new - old, old)
        change = "" if share is None else f"{share:+.1%}"
        lines.append(
            f"  {name:{width}} {old:9.4f} {new:9.4f} {change:>8}   "
            f"{difference:+.4f}  {verdict if verdict != 'unclear' else ''}".rstrip()
        )
    return "\n".join([*lines, *_levels(after)])


def policy_table(before: PolicyEvalResult, after: PolicyEvalResult) -> str:
    """Held-out action errors before and after a policy's training."""
    lines = []
    for name in ("action_l1", "action_mse"):
        old, new = getattr(before, name), getattr(after, name)
        lines.append(f"  {name:10} {old.mean:9.4f} -> {new.mean:.4f}{new.interval('.4f', before='   ')}")
    return "\n".join(lines)


def closed_loop_table(results: Mapping[str, ClosedLoopResult]) -> str:
    """Success, coverage, length and control rate of each controller, by simulator."""
    lines = []
    for name, result in results.items():
        lines.append(f"{name}: {count(len(result.episodes), 'episode')}")
        rates = result.success_by_env
        if len(rates) > 1:
            rates = {"all": result.success} | rates
        for env, rate in rates.items():
            lines.append(f"  {env:32} success {rate.mean:6.1%}{rate.interval('.1%', before='   ')}")
        if (coverage := result.max_coverage) is not None:
            interval = coverage.interval(".3f", before="   ")
            lines.append(f"  {'largest coverage':32} {coverage.mean:14.3f}{interval}")
        lines.append(f"  {'control steps':32} {result.length.mean:14.1f}")
        if (latency := result.latency) is not None:
            times = f"p50 {latency.p50_ms:.1f} ms, p99 {latency.p99_ms:.1f} ms, {latency.hz:.0f} Hz"
            lines.append(f"  {'one action for all slots':32} {times}")
    return "\n".join(lines)


def comparison_line(comparison: Comparison) -> str:
    """A paired comparison in words."""
    difference = comparison.max_coverage
    coverage = "" if difference is None else f"; largest coverage {difference:+.3f}"
    same = "" if comparison.num_only_before or comparison.num_only_after else ", none of which differs"
    return (
        f"success {comparison.success:+.1%} on the same {comparison.num_episodes} episodes{same}; "
        f"{comparison.num_only_after} solved only by the first, {comparison.num_only_before} only by the second, "
        f"McNemar p = {comparison.p_value:.2g}{coverage}"
    )


def runs_table(compared: RunComparison) -> str:
    """Held-out metrics of the best checkpoints of runs, each with its difference from the first run."""
    first, runs = compared.runs[0], compared.runs
    names, measured = max(len(run.name) for run in runs), [metrics_of(run.best) for run in runs]
    metrics = [name for name in METRICS if any(name in own for own in measured)]
    width = max(map(len, metrics))
    lines = [
        f"best checkpoints on {count(first.best.num_clips, 'held-out item')} of "
        f"{count(len(set(first.best.episode_ids)), 'episode')}",
        f"  {'':{width}} {'':{names}} {'value':>9}   paired difference from {first.name}, 95 % interval",
    ]
    for metric in metrics:
        title = metric
        for run, own in zip(runs, measured, strict=True):
            if metric not in own:
                continue
            line = f"  {title:{width}} {run.name:{names}} {own[metric].mean:9.4f}"
            title = ""
            if (difference := run.differences.get(metric)) is not None:
                found = outcome(first.best, run.best, metric)
                line += f"   {difference:+.4f}  {found if found != 'unclear' else ''}"
            lines.append(line.rstrip())
    lines += _success_lines(compared, names)
    lines += [f"  {run.name} is not compared: {run.unpaired}" for run in runs if run.unpaired is not None]
    if compared.without_videos is not None:
        lines.append(f"  no videos: {compared.without_videos}")
    return "\n".join(lines)


def _success_lines(compared: RunComparison, width: int) -> list[str]:
    lines = []
    for run in compared.runs:
        if run.closed_loop is None:
            continue
        line = f"  success {run.name:{width}} {run.closed_loop.success.mean:6.1%}"
        if (found := run.success) is not None:
            line += (
                f"   {found.success:+.1%} on the same {count(found.num_episodes, 'episode')}; {found.num_only_after} "
                f"solved only by it, {found.num_only_before} only by the first, McNemar p = {found.p_value:.2g}"
            )
        lines.append(line)
    return lines


def evaluation_record(result: EvalResult, before: EvalResult | None) -> dict[str, Any]:
    """What ``vampo evaluate`` writes as JSON: the result, and those of another predictor with the differences."""
    if before is None:
        return {"result": result.to_dict()}
    names = [name for name in result.metrics if name in before.metrics]
    differences = {name: asdict(paired_difference(before, result, name)) for name in names}
    return {"result": result.to_dict(), "against": before.to_dict(), "difference": differences}


def _clips(result: EvalResult) -> str:
    episodes = len(set(result.episode_ids))
    what = "episodes" if episodes > 1 else "clips"
    clips, samples = count(result.num_clips, "held-out clip"), count(result.num_samples, "video")
    return f"{clips} of {count(episodes, 'episode')}, {samples} each; intervals over {what}"


def _width(result: EvalResult) -> int:
    """Width of the longest metric's name."""
    return max(len(name) for name in result.metrics)


def _levels(result: EvalResult) -> list[str]:
    """What the action error would be of other videos, where it was measured."""
    if result.action_error_true is None or result.action_error_still is None:
        return []
    return [
        f"  action_error of the expert's own video {result.action_error_true:.4f}, of one that stands still "
        f"{result.action_error_still:.4f}"
    ]
