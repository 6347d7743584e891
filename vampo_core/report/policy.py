"""The report of a policy's training: held-out action error, and curves."""

from html import escape
from pathlib import Path
from typing import Any

from vampo_core.config import VampoConfig
from vampo_core.evaluation.predictor import paired_difference
from vampo_core.policy.vpp.evaluation import PolicyEvalResult
from vampo_core.policy.vpp.settings import SETTINGS_FILE, PolicySettings
from vampo_core.report.charts import Series, line_chart
from vampo_core.report.page import details, document, section, versions
from vampo_core.report.tables import figure, table
from vampo_core.training.checkpoint import find_checkpoint, read_counters, step_of
from vampo_core.training.metrics import read_metrics

_METRICS = {"action_l1": "Action L1", "action_mse": "Action MSE"}
_CURVES = {
    "eval_action_l1": "Held out: action L1",
    "eval_action_mse": "Held out: action MSE",
    "loss": "In training: denoising loss",
    "grad_norm": "Gradient norm before clipping",
    "lr": "Learning rate",
}


def is_policy_run(folder: Path) -> bool:
    """Whether the newest checkpoint of a run is a policy's."""
    return (find_checkpoint(folder) / SETTINGS_FILE).is_file()


def render_policy(config: VampoConfig) -> str:
    """The report as HTML; nothing is computed anew.

    Raises:
        ValueError: there is no run with a checkpoint.
    """
    checkpoint = find_checkpoint(config.run.dir)
    counters, settings = read_counters(checkpoint), PolicySettings.load(checkpoint)
    before, after = (PolicyEvalResult.from_dict(counters[name]) for name in ("before", "last"))
    rows = read_metrics(Path(config.run.dir) / "metrics.jsonl")
    seen = f"predictive features of {config.policy.predictor or 'the base'}"
    facts = [
        f"checkpoint {step_of(checkpoint)} of {config.policy.num_steps} steps",
        f"{config.policy.batch_size} frames a step",
        seen if settings.features == "predictive" else "the current frame's latents",
        f"chunks of {settings.action_horizon} actions, {settings.num_executed_steps} executed",
    ]
    parts = [
        section("Held-out action error", _errors(before, after) + _by_step(after)),
        section("Training", _curves(rows)),
        details("Configuration", f"<pre>{escape(config.to_yaml())}</pre>"),
    ]
    name = escape(Path(config.run.dir).resolve().name)
    return document(name, "Policy training", escape(" · ".join(facts)), parts, versions())


def _errors(before: PolicyEvalResult, after: PolicyEvalResult) -> str:
    rows = [
        [title, *(figure(metric, ".4f") for metric in (getattr(before, name), getattr(after, name))),
         figure(paired_difference(before, after, name), ".4f", sign=True)]
        for name, title in _METRICS.items()
    ]  # fmt: skip
    note = (
        "Sampled chunks against the expert's, in units of half the range of each action, at "
        f"{after.num_clips} frames of {len(set(after.episode_ids))} held-out episodes, {after.num_samples} of each; "
        "95&nbsp;% bootstrap intervals that resample episodes."
    )
    return table(["", "Untrained", "Trained", "Difference, paired"], rows, note)


def _by_step(after: PolicyEvalResult) -> str:
    points = [(i + 1.0, value) for i, value in enumerate(after.per_step["action_l1"])]
    chart = line_chart([Series("L1", points, dots=True)], title="Action L1 by place in the chunk", x_label="step")
    return f'<div class="charts">{chart}</div>'


def _curves(rows: list[dict[str, Any]]) -> str:
    charts = []
    for key, title in _CURVES.items():
        points = [(float(row["iteration"]), float(row[key])) for row in rows if row.get(key) is not None]
        charts.append(line_chart([Series(key, points, dots=key.startswith("eval_"))], title=title, x_label="step"))
    return f'<div class="charts">{"".join(charts)}</div>'
