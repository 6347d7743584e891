"""The page of a chain: what changed in the video, and in the robot's success."""

from collections.abc import Mapping
from typing import Any

from vampo_core.config import VampoConfig
from vampo_core.evaluation.episodes import compare
from vampo_core.evaluation.metrics import METRICS
from vampo_core.evaluation.statistics import paired_difference
from vampo_core.report.page import render
from vampo_core.report.values import ChainResult


def render_chain(config: VampoConfig, result: ChainResult, descriptions: Mapping[str, str]) -> str:
    """The page as HTML.

    Args:
        config: configuration of the chain.
        result: its result.
        descriptions: what each policy sees, and who the expert is, in words.
    """
    base_name, base = next(iter(result.closed_loop.items()))
    environments = list(base.success_by_env)
    return render(
        "chain.html",
        config,
        kind="Chain",
        facts=[config.simulator, f"{config.data.num_episodes} episodes recorded", f"seed {config.run.seed}"],
        result=result,
        descriptions=descriptions,
        base_name=base_name,
        # no policy is to beat the expert, who has no action error either
        comparisons={name: compare(base, result.closed_loop[name]) for name in result.policies if name != base_name},
        has_coverage=base.max_coverage is not None,
        environments={name: name.rpartition("/")[2] for name in environments} if len(environments) > 1 else {},
        error_differences={
            name: paired_difference(result.policies[base_name], errors, "action_l1")
            for name, errors in result.policies.items()
            if name != base_name
        },
        action_error=METRICS["action_l1"],
        metrics=_metrics(result),
        num_episodes=len(set(result.vampo.episode_ids)),
    )


def _metrics(result: ChainResult) -> list[dict[str, Any]]:
    return [
        {
            "info": METRICS[name],
            "before": before,
            "after": result.vampo.metrics[name],
            "difference": paired_difference(result.base, result.vampo, name),
        }
        for name, before in result.base.metrics.items()
        if name in result.vampo.metrics
    ]
