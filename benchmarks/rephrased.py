"""Simulators whose instruction is worded unlike those of the recorded episodes: ``rephrased:make/metaworld/reach``."""

from typing import Any

from vampo_core import envs

OTHER_WORDS = {
    "push the T-shaped block onto the green target": "slide the grey T until it covers the green area",
    "move the gripper to the goal": "bring the hand to the target",
    "press the button down from above": "push down on the button",
    "pull the drawer open": "open the drawer",
    "open the door by its handle": "pull the door open",
    "slide the window open": "open the window to the side",
}


def make(name: str, **kwargs: Any) -> envs.TaskEnv:
    """The simulator ``name`` with its instruction in other words.

    Raises:
        ValueError: its instruction has no other words here.
    """
    env = envs.make(name, **kwargs)
    if env.instruction not in OTHER_WORDS:
        raise ValueError(f"env is {name!r}, but rephrased.py has no other words for {env.instruction!r}")
    env.instruction = OTHER_WORDS[env.instruction]
    return env
