"""The page of a chain: what changed in the robot's success, and in the video."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vampo_core.config import VampoConfig
from vampo_core.config.chain_section import ArmName
from vampo_core.evaluation.episodes import compare
from vampo_core.evaluation.metrics import METRICS
from vampo_core.evaluation.statistics import Metric, outcome, paired_difference
from vampo_core.report.headline import POLICY_TITLES, headline, points
from vampo_core.report.page import render, within_sentence
from vampo_core.report.sheet import shown_clip
from vampo_core.report.values import ChainResult, ClipVideo

EXPERT_TITLE = "The simulator's expert"
_STYLES = {"better": "good", "worse": "bad", "unclear": "even"}


def render_chain(
    config: VampoConfig, result: ChainResult, videos: Sequence[ClipVideo] = (), *, decoded: bool = True
) -> str:
    """The page as HTML.

    Args:
        config: configuration of the chain.
        result: its result.
        videos: held-out clips: the expert's, and what each arm predicts, by its title.
        decoded: whether videos show frames; otherwise they show latents in false colors.
    """
    chain, base = config.chain, result.arms["base"].evaluation
    first_loop = next(iter(result.closed_loop.values()), None)
    environments = [] if first_loop is None else list(first_loop.success_by_env)
    styles = {arm.title: "base" if name == "base" else "vampo" for name, arm in result.arms.items()}
    found = headline(config, result)
    return render(
        "chain.html",
        config,
        kind="Chain",
        facts=[*_origin(config), f"seed {config.run.seed}"],
        result=result,
        sentence=_with_minus(found.sentence).replace(" %", "\N{NO-BREAK SPACE}%"),
        comparison=found.comparison,
        change=None if found.change is None else _with_minus(found.change).split(),
        style=_STYLES[found.outcome],
        kinds=[POLICY_TITLES[kind] for kind in chain.policies if kind != "latents"],
        success=_success(config, result) if result.closed_loop else [],
        titles=titles(config, result),
        references={name: chain.reference(name) for name in chain.controllers},
        has_coverage=first_loop is not None and first_loop.max_coverage is not None,
        environments={name: name.rpartition("/")[2] for name in environments} if len(environments) > 1 else {},
        error_differences=_error_differences(config, result),
        action_error=METRICS["action_l1"],
        arms=_predicting(result),
        metrics=_metrics(result),
        num_episodes=len(set(base.episode_ids)),
        videos=[shown_clip(video, styles) for video in videos],
        num_frames=next(iter(videos[0].panels.values())).shape[0] if videos else 0,
        decoded=decoded,
    )


def _origin(config: VampoConfig) -> list[str]:
    """Where the episodes come from, and where policies act."""
    data = config.data
    if data.env is not None:
        return [str(config.simulator), f"{data.num_episodes} episodes recorded"]
    return [Path(data.roots[0]).name, config.simulator or "no simulator"]


def titles(config: VampoConfig, result: ChainResult) -> dict[str, str]:
    """Everything that acts, in words, by the name that results use."""
    found = {}
    for name in dict.fromkeys((*config.chain.controllers, *result.closed_loop)):
        if name not in config.chain.controllers:
            found[name] = EXPERT_TITLE
            continue
        arm, kind = config.chain.controllers[name]
        title = POLICY_TITLES[kind]
        found[name] = title if kind == "latents" else f"{result.arms[arm].title}: {within_sentence(title)}"
    return found


def _success(config: VampoConfig, result: ChainResult) -> list[dict[str, Any]]:
    """Rows of the table of success: an arm each, with a cell for each kind of policy, then what has no arm."""
    chain = config.chain
    columns = [kind for kind in chain.policies if kind != "latents"]
    name_of = {key: name for name, key in chain.controllers.items()}
    rows = []
    for arm, made in result.arms.items():
        names = [name_of.get((arm, kind)) for kind in columns]
        rows.append({"title": made.title, "cells": [name and _cell(config, result, name) for name in names], "span": 1})
    words = titles(config, result)
    of_arms = {name for name, (_, kind) in chain.controllers.items() if kind in columns}
    rows += [
        {"title": words[name], "cells": [_cell(config, result, name)], "span": len(columns)}
        for name in result.closed_loop
        if name not in of_arms
    ]
    return rows


def _cell(config: VampoConfig, result: ChainResult, name: str) -> dict[str, Any]:
    """The success of what acts, and how it differs from its reference in the same episodes."""
    acted = result.closed_loop[name]
    # nobody is to beat the expert, who has no action error either
    reference = config.chain.reference(name) if name in config.chain.controllers else None
    if reference is None:
        return {"success": acted.success, "comparison": None, "style": "even"}
    comparison = compare(result.closed_loop[reference], acted)
    difference, interval = comparison.success, comparison.success.ci95
    return {
        "success": acted.success,
        "comparison": comparison,
        "points": _with_minus(points(difference.mean)),
        "interval": None if interval is None else " to ".join(_with_minus(points(bound)) for bound in interval),
        "style": _style(difference),
    }


def _with_minus(text: str) -> str:
    """Text with real minus signs before its numbers."""
    return re.sub(r"-(?=\d)", "\N{MINUS SIGN}", text)


def _style(difference: Metric) -> str:
    """The class of a difference of which more is better."""
    if difference.ci95 is None or difference.ci95[0] <= 0 <= difference.ci95[1]:
        return "even"
    return "good" if difference.mean > 0 else "bad"


def _error_differences(config: VampoConfig, result: ChainResult) -> dict[str, Metric]:
    """Differences of held-out action errors from those of the reference, where both were measured."""
    differences = {}
    for name, errors in result.policies.items():
        reference = config.chain.reference(name)
        if reference is not None and reference in result.policies:
            differences[name] = paired_difference(result.policies[reference], errors, "action_l1")
    return differences


def _predicting(result: ChainResult) -> list[ArmName]:
    """Arms whose videos differ from those of others."""
    base = result.arms["base"].evaluation
    return [name for name, arm in result.arms.items() if name == "base" or arm.evaluation is not base]


def _metrics(result: ChainResult) -> list[dict[str, Any]]:
    """Rows of the table of held-out metrics: a cell for each arm, with its difference from the base."""
    base, rows = result.arms["base"].evaluation, []
    for metric, value in base.metrics.items():
        cells: list[dict[str, Any] | None] = [{"value": value, "difference": None, "style": "even"}]
        for name in _predicting(result)[1:]:
            after = result.arms[name].evaluation
            if metric not in after.metrics:
                cells.append(None)
                continue
            style = _STYLES[outcome(base, after, metric)]
            difference = paired_difference(base, after, metric)
            cells.append({"value": after.metrics[metric], "difference": difference, "style": style})
        rows.append({"info": METRICS[metric], "cells": cells})
    return rows
