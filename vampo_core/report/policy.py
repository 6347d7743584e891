"""The page of a policy's training."""

from markupsafe import Markup

from vampo_core.evaluation.metrics import METRICS
from vampo_core.evaluation.statistics import metrics_of, paired_difference
from vampo_core.report.charts import Series, line_chart
from vampo_core.report.page import render, within_sentence
from vampo_core.report.values import PolicySummary
from vampo_core.training.health import findings

_CURVES = {
    **{f"eval_{name}": f"Held out: {within_sentence(info.title)}" for name, info in METRICS.items()},
    "loss": "In training: loss",
    "grad_norm": "Gradient norm before clipping",
    "lr": "Learning rate",
}


def render_policy(run: PolicySummary) -> str:
    """The page as HTML."""
    after = metrics_of(run.after)
    policy = run.config.policy
    return render(
        "policy.html",
        run.config,
        kind="Policy training",
        facts=[f"checkpoint {run.step} of {policy.num_steps} steps", f"{policy.batch_size} frames a step", *run.facts],
        run=run,
        findings=findings(run.rows, run.config),
        metrics=[
            {
                "info": METRICS[name],
                "before": before,
                "after": after[name],
                "difference": paired_difference(run.before, run.after, name),
            }
            for name, before in metrics_of(run.before).items()
        ],
        num_episodes=len(set(run.after.episode_ids)),
        by_step=_by_step(run),
        curves=_curves(run),
    )


def _by_step(run: PolicySummary) -> Markup:
    points = [(i + 1.0, value) for i, value in enumerate(run.after.per_step["action_l1"])]
    title = f"{METRICS['action_l1'].title} by place in the chunk"
    return line_chart([Series("L1", points, dots=True)], title=title, x_label="step")


def _curves(run: PolicySummary) -> list[Markup]:
    charts = []
    for key, title in _CURVES.items():
        points = [(float(row["iteration"]), float(row[key])) for row in run.rows if row.get(key) is not None]
        charts.append(line_chart([Series(key, points, dots=key.startswith("eval_"))], title=title, x_label="step"))
    return charts
