"""What a chain found, in one sentence."""

from dataclasses import dataclass
from typing import Literal

from vampo_core.config import VampoConfig
from vampo_core.config.chain_section import ArmName, PolicyName
from vampo_core.evaluation.episodes import ClosedLoopResult, Comparison, compare
from vampo_core.evaluation.metrics import METRICS
from vampo_core.evaluation.statistics import outcome as outcome_of
from vampo_core.evaluation.statistics import paired_difference
from vampo_core.report.page import count, within_sentence
from vampo_core.report.values import ArmResult, ChainResult

POLICY_TITLES: dict[PolicyName, str] = {
    "imagined": "Acts on its imagined video",
    "predictive": "Acts on predictive features",
    "latents": "Sees only the current frame",
}
"""Kinds of policies, for people."""
_NEWEST_FIRST: tuple[ArmName, ...] = ("vampo", "vampo_latent", "likelihood", "base_scaled")


@dataclass(frozen=True, kw_only=True)
class Headline:
    """The success rate before and after, with its interval."""

    sentence: str
    comparison: Comparison | None
    """Episodes of both; None where the chain has only the base, or no simulator."""
    change: str | None
    """The difference with its sign and unit, for a large figure; None where there is none."""
    outcome: Literal["better", "worse", "unclear"]


def headline(config: VampoConfig, result: ChainResult) -> Headline:
    """VAMPO against the base, by the first policy; another arm where there is no VAMPO.

    Without a simulator it is the error of the actions in held-out videos, or where that was not measured their L1.

    Args:
        config: configuration of the chain.
        result: its result.
    """
    chain, policy = config.chain, config.chain.policies[0]
    name_of = {arm: name for name, (arm, kind) in chain.controllers.items() if kind == policy}
    arm: ArmName | None = next((arm for arm in _NEWEST_FIRST if arm in name_of), None)
    if not result.closed_loop:
        return _of_videos(result, arm)
    before = result.closed_loop[name_of["base"]]
    robot = f"the robot that {within_sentence(POLICY_TITLES[policy])} succeeds in"
    if arm is None:
        sentence = f"{robot[0].upper()}{robot[1:]} {_successes(before)}."
        return Headline(sentence=sentence, comparison=None, change=None, outcome="unclear")
    after = result.closed_loop[name_of[arm]]
    found = compare(before, after)
    sentence, outcome = _ending(before, after, found)
    return Headline(
        sentence=f"{_beginning(result.arms[arm])} {robot} {sentence}.",
        comparison=found,
        change=f"{points(found.success.mean)} points",
        outcome=outcome,
    )


def _of_videos(result: ChainResult, arm: ArmName | None) -> Headline:
    """The headline of a chain without a simulator."""
    base = result.arms["base"].evaluation
    after = None if arm is None else result.arms[arm].evaluation
    metric = "action_error" if "action_error" in base.metrics and after and "action_error" in after.metrics else "l1"
    what = {"action_error": "the actions in held-out videos are off by", "l1": "held-out videos are off by"}[metric]
    old = f"{base.metrics[metric].mean:.3f}"
    if arm is None or after is None:
        sentence = f"{what[0].upper()}{what[1:]} {old} ({METRICS[metric].title}); there is no simulator."
        return Headline(sentence=sentence, comparison=None, change=None, outcome="unclear")
    difference = paired_difference(base, after, metric)
    share, new = difference.mean / base.metrics[metric].mean, f"{after.metrics[metric].mean:.3f}"
    sentence = (
        f"{_beginning(result.arms[arm])} {what} {new} instead of {old} ({100 * share:+.1f} %, difference "
        f"{difference.mean:+.3f}{difference.interval('+.3f', before=', 95 % interval ')}); there is no simulator."
    )
    return Headline(
        sentence=sentence, comparison=None, change=f"{100 * share:+.0f} %", outcome=outcome_of(base, after, metric)
    )


def _beginning(arm: ArmResult) -> str:
    if arm.unit is None:
        return "With actions as long as the expert's"
    if arm.num_steps == 0:
        return f"{arm.title} found nothing better than the base, with which"
    return f"After {count(arm.num_steps, arm.unit)} of {within_sentence(arm.title)}"


def _ending(
    before: ClosedLoopResult, after: ClosedLoopResult, found: Comparison
) -> tuple[str, Literal["better", "worse", "unclear"]]:
    """The end of the sentence, which says no more than the interval of the paired difference supports."""
    difference, new, old = found.success, _successes(after), _num_successes(before)
    if not found.num_only_before and not found.num_only_after:
        return f"{new}, as before: no episode ends differently", "unclear"
    if difference.ci95 is None:  # a single episode, or all of them differ in the same way
        return f"{new} instead of {old} ({points(difference.mean)} points, no interval)", "unclear"
    low, high = difference.ci95
    interval = f"{points(difference.mean)} points, 95 % interval {points(low)} to {points(high)}"
    if low > 0:
        return f"{new} instead of {old} ({interval})", "better"
    if high < 0:
        return f"only {new} instead of {old} ({interval})", "worse"
    return f"{new}, before in {old}: no clear difference ({interval})", "unclear"


def points(rate: float) -> str:
    """A difference of rates in points, with its sign."""
    value = 100 * rate
    return f"{value:+.0f}" if abs(value) >= 0.5 or value == 0 else f"{value:+.1f}"


def _successes(loop: ClosedLoopResult) -> str:
    return f"{_num_successes(loop)} of {count(len(loop.episodes), 'episode')}"


def _num_successes(loop: ClosedLoopResult) -> int:
    return sum(episode.success for episode in loop.episodes)
