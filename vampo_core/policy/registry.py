"""Kinds of policies by name. A new one is a folder beside ``vpp`` and a line here."""

import importlib
from typing import Any

KINDS = {
    "vpp": "vampo_core.policy.vpp.policy:VPPPolicy",
    "inverse_dynamics": "vampo_core.policy.inverse_dynamics.policy:InverseDynamicsPolicy",
}
"""Class of each kind, imported when it is needed."""
OLDEST = "vpp"
"""Kind of a folder whose ``policy.json`` names none."""


def policy_class(kind: str) -> Any:
    """The class of a kind, a subclass of :class:`vampo_core.Policy`.

    Raises:
        ValueError: there is no such kind.
    """
    if kind not in KINDS:
        raise ValueError(f"policy kind is {kind!r}, expected one of {', '.join(KINDS)}")
    module, _, attribute = KINDS[kind].partition(":")
    return getattr(importlib.import_module(module), attribute)
