"""OGBench's evaluation tasks in words: left, right, near and far as seen in the frames."""

import difflib

INSTRUCTIONS = {
    "cube-single/1": "move the red cube left to the green mark",
    "cube-single/2": "move the red cube nearer, to the green mark",
    "cube-single/3": "move the red cube farther away, to the green mark",
    "cube-single/4": "move the red cube to the green mark on the right",
    "cube-single/5": "move the red cube to the green mark on the left",
    "scene/1": "open the drawer and the window",
    "scene/2": "unlock, close and lock the drawer and the window",
    "scene/3": "move the red cube right to the green mark, open the drawer, then unlock and close the window",
    "scene/4": "unlock the drawer, put the red cube into it and close it",
    "scene/5": "unlock the drawer and the window, put the red cube into the drawer and close it, open the window, "
    "then lock both",
}
"""Environment and number of the task -> instruction."""


def members(task: str) -> list[str]:
    """What a name stands for in a list of environments: all tasks of ``"scene"``, or one task."""
    return [name for name in INSTRUCTIONS if name.startswith(f"{task.removeprefix('visual-')}/")] or [task]


def split_task(task: str) -> tuple[str, int]:
    """Split a task into OGBench's environment and the number of the task: ``"scene/2"`` -> ``("scene", 2)``.

    Raises:
        ValueError: there is no such task.
    """
    name = task.removeprefix("visual-")
    if name not in INSTRUCTIONS:
        near = [f"{name}/1"] if f"{name}/1" in INSTRUCTIONS else difflib.get_close_matches(name, INSTRUCTIONS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"task is {task!r}, expected one of {', '.join(INSTRUCTIONS)}{hint}")
    family, _, number = name.partition("/")
    return family, int(number)
