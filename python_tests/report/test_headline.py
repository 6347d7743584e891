"""The sentence that a chain ends with: what it says, and that it says no more than was found."""

from dataclasses import replace

import pytest
from page_values import arm_result, chain_result, closed_loop

from vampo_core.config import load_config
from vampo_core.evaluation.episodes import compare
from vampo_core.report.headline import headline, points

IMAGINED = ("chain.policies=[imagined, predictive]",)


def found(before, after, *overrides, **arms):
    """The headline of two controllers."""
    config = load_config("pusht", *overrides)
    result = chain_result()
    loops = {name: before for name in config.chain.controllers}
    changed = [name for name, (arm, _) in config.chain.controllers.items() if arm != "base"]
    loops |= dict.fromkeys(changed, after)
    arms = {"base": arm_result("Base", 0.5, unit=None), "vampo": arm_result("VAMPO", 0.4, 150), **arms}
    kept = {name: arm for name, arm in arms.items() if name in config.chain.arms}
    return headline(config, replace(result, arms=kept, closed_loop=loops, policies={}))


def episodes(num_successes, num_episodes=100):
    return closed_loop(*[True] * num_successes, *[False] * (num_episodes - num_successes))


def test_a_gain():
    result = found(episodes(50), episodes(71), *IMAGINED)
    low, high = compare(episodes(50), episodes(71)).success.ci95
    assert result.sentence == (
        "After 150 iterations of VAMPO the robot that acts on its imagined video succeeds in 71 of 100 episodes "
        f"instead of 50 (+21 points, 95 % interval {100 * low:+.0f} to {100 * high:+.0f})."
    )
    assert 10 < 100 * low < 21 < 100 * high < 32 and result.outcome == "better"


def test_a_loss():
    result = found(episodes(50), episodes(30))
    assert (
        "acts on predictive features succeeds in only 30 of 100 episodes instead of 50 (-20 points" in result.sentence
    )
    assert result.outcome == "worse"


def test_chance():
    before = closed_loop(*[True, False] * 20)
    after = closed_loop(*[True, False] * 18, False, True, True, True)
    result = found(before, after)
    assert (
        "succeeds in 21 of 40 episodes, before in 20: no clear difference (+2 points, 95 % interval -"
        in result.sentence
    )
    assert result.outcome == "unclear"


def test_nothing_at_all():
    result = found(episodes(50), episodes(50), vampo=arm_result("VAMPO", 0.5, 0))
    assert result.sentence == (
        "VAMPO found nothing better than the base, with which the robot that acts on predictive features succeeds in "
        "50 of 100 episodes, as before: no episode ends differently."
    )
    assert result.outcome == "unclear"


def test_too_few_for_an_interval():
    result = found(episodes(0, 1), episodes(1, 1))
    assert result.sentence.endswith("succeeds in 1 of 1 episode instead of 0 (+100 points, no interval).")
    assert result.outcome == "unclear"


@pytest.mark.parametrize(
    ("arms", "beginning"),
    [
        (["likelihood", "vampo_latent", "vampo"], "After 150 iterations of VAMPO the robot"),
        (["likelihood", "vampo_latent"], "After 1 iteration of VAMPO with the paper's reward the robot"),
        (["likelihood", "base_scaled"], "After 9 updates of likelihood training the robot"),
        (["base_scaled"], "With actions as long as the expert's the robot"),
        ([], "The robot that acts on its imagined video succeeds in 50 of 100 episodes."),
    ],
)
def test_the_arm_that_leads(arms, beginning):
    made = {
        "base_scaled": arm_result("Scaled", 0.5, unit=None),
        "likelihood": arm_result("Likelihood training", 0.4, 9, "update"),
        "vampo_latent": arm_result("VAMPO with the paper's reward", 0.4, 1),
    }
    result = found(episodes(50), episodes(60), f"chain.arms=[{','.join(['base', *arms])}]", *IMAGINED, **made)
    assert result.sentence.startswith(beginning)


def test_points():
    assert [points(x) for x in (0.214, -0.05, 0, 0.002)] == ["+21", "-5", "+0", "+0.2"]
