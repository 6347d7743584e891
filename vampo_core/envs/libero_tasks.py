"""LIBERO's suites and the names of their tasks; nothing here needs LIBERO."""

import difflib
from collections.abc import Sequence
from typing import NamedTuple


class Suite(NamedTuple):
    """What the tasks of a suite share."""

    num_tasks: int
    max_steps: int
    """Actions after which published evaluations end an episode, without those that let the scene settle."""


SUITES = {
    "libero_spatial": Suite(10, 220),
    "libero_object": Suite(10, 280),
    "libero_goal": Suite(10, 300),
    "libero_10": Suite(10, 520),
    "libero_90": Suite(90, 400),
}


def split_task(task: str) -> tuple[str, str]:
    """Split ``"libero_object/3"`` into a suite and what is left, which is empty for a whole suite.

    Raises:
        ValueError: there is no such suite.
    """
    suite, _, rest = task.partition("/")
    if suite not in SUITES:
        near = difflib.get_close_matches(suite, SUITES, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"task is {task!r}, expected one of {', '.join(SUITES)} and a task of it{hint}")
    return suite, rest


def members(task: str) -> list[str]:
    """What a name stands for in a list of environments: all tasks of a suite, or one task."""
    suite, rest = split_task(task)
    return [task] if rest else [f"{suite}/{i}" for i in range(SUITES[suite].num_tasks)]


def task_index(suite: str, task: str, names: Sequence[str]) -> int:
    """Number of a task, given as its number or as one of LIBERO's ``names`` for the tasks of the suite.

    Raises:
        ValueError: there is no such task.
    """
    if task in names:
        return names.index(task)
    if task.isdecimal() and int(task) < len(names):
        return int(task)
    near = difflib.get_close_matches(task, names, n=2, cutoff=0.5)
    hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else f", such as {names[0]!r}"
    raise ValueError(
        f"task is {f'{suite}/{task}'!r}, expected {suite}/ and a number from 0 to {len(names) - 1} or the name of a "
        f"task{hint}"
    )
