"""What a chain compares: names, their order, what is refused."""

from typing import get_args

import pytest

from vampo_core.config import ChainConfig, ConfigError, VampoConfig, deciding, load_config
from vampo_core.config.chain_section import ArmName
from vampo_core.config.vampo import keys


def test_by_default_todays_chain_with_todays_names():
    chain = VampoConfig().chain
    assert chain == load_config("metaworld").chain == ChainConfig(arms=("base", "vampo"))
    assert chain.controllers == {
        "base": ("base", "predictive"), "vampo": ("vampo", "predictive"), "latents": ("base", "latents"),
    }  # fmt: skip
    assert [chain.reference(name) for name in chain.controllers] == [None, "base", "base"]


def test_names_of_all_arms_and_policies():
    chain = load_config(
        "pusht",
        "chain.arms=[vampo, likelihood, base, vampo_latent, base_scaled]",
        "chain.policies=[latents, predictive, imagined]",
    ).chain
    assert list(chain.controllers) == [
        *("imagined-base", "imagined-base_scaled", "imagined-likelihood", "imagined-vampo_latent", "imagined-vampo"),
        *("base", "likelihood", "vampo_latent", "vampo", "latents"),
    ]
    assert chain.arms == get_args(ArmName), "in the order of the registry, the base first"
    assert chain.reference("imagined-vampo") == chain.reference("latents") == "imagined-base"
    assert chain.reference("likelihood") == "base"
    assert chain.reference("base") is None is chain.reference("imagined-base"), "each is what others are compared with"


def test_an_arm_or_the_control_may_be_missing():
    chain = load_config("pusht", "chain.arms=[vampo_latent, base]", "chain.policies=[predictive]").chain
    assert list(chain.controllers) == ["base", "vampo_latent"]
    assert list(load_config("pusht", "chain.arms=[base]").chain.controllers) == ["base", "latents"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("chain.arms=[vampo]", r"chain.arms is \['vampo'\], expected base among them"),
        ("chain.arms=[]", r"chain.arms is \[\], expected base"),
        ("chain.arms=[base, vampo, vampo]", r"\['base', 'vampo', 'vampo'\], expected each name once: vampo"),
        ("chain.arms=[base, vamp]", r"chain.arms\[1\] is 'vamp', expected one of .*; did you mean 'vampo'"),
        ("chain.arms=base", r"chain.arms is 'base', expected a list"),
        ("chain.policies=[latents]", r"chain.policies is \['latents'\], expected imagined or predictive"),
        ("chain.policies=[imagine]", r"chain.policies\[0\] is 'imagine', expected .*did you mean 'imagined'"),
        ("chain.arms=[base, base_scaled]", "chain.arms .* expected no base_scaled without imagined"),
    ],
)
def test_what_is_refused(override, message):
    with pytest.raises(ConfigError, match=message) as caught:
        load_config("pusht", override)
    assert "\n" not in str(caught.value)


def test_what_is_compared_decides_nothing_that_is_made():
    config = load_config("pusht")
    other = load_config(config, "chain.arms=[base, likelihood]", "chain.policies=[predictive]")
    for product in ("data", "codec", "base", "evaluation", "vampo", "policy"):
        assert deciding(other, product) == deciding(config, product)
    assert {key for key in keys() if key.startswith("chain.")} == {"chain.arms", "chain.policies"}
