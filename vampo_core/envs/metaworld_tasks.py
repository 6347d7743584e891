"""MetaWorld's fifty tasks in words."""

import difflib

INSTRUCTIONS = {
    "assembly": "pick up the nut and put it on the peg",
    "basketball": "dunk the basketball into the hoop",
    "bin-picking": "pick up the block and move it to the other bin",
    "box-close": "pick up the lid and close the box with it",
    "button-press-topdown": "press the button down from above",
    "button-press-topdown-wall": "reach over the wall and press the button down from above",
    "button-press": "press the button on the front of the box",
    "button-press-wall": "reach around the wall and press the button on the front of the box",
    "coffee-button": "press the button of the coffee machine",
    "coffee-pull": "pull the mug away from the coffee machine",
    "coffee-push": "push the mug under the coffee machine",
    "dial-turn": "turn the dial",
    "disassemble": "lift the nut off the peg",
    "door-close": "close the door",
    "door-lock": "lock the door by turning the lock down",
    "door-open": "open the door by its handle",
    "door-unlock": "unlock the door by turning the lock to the side",
    "hand-insert": "put the block into the hole with the gripper",
    "drawer-close": "push the drawer shut",
    "drawer-open": "pull the drawer open",
    "faucet-open": "turn the faucet on",
    "faucet-close": "turn the faucet off",
    "hammer": "pick up the hammer and drive the nail into the box",
    "handle-press-side": "press the handle down from the side",
    "handle-press": "press the handle down",
    "handle-pull-side": "pull the handle up from the side",
    "handle-pull": "pull the handle up",
    "lever-pull": "swing the lever up",
    "pick-place-wall": "pick up the puck, carry it over the wall and place it on the goal",
    "pick-out-of-hole": "pick the puck out of the hole and lift it to the goal",
    "pick-place": "pick up the puck and place it on the goal",
    "plate-slide": "slide the plate forward into the cabinet",
    "plate-slide-side": "slide the plate sideways into the cabinet",
    "plate-slide-back": "slide the plate back out of the cabinet",
    "plate-slide-back-side": "slide the plate sideways out of the cabinet",
    "peg-insert-side": "pick up the peg and insert it into the hole in the side of the box",
    "peg-unplug-side": "pull the peg out of the hole sideways",
    "soccer": "push the ball into the goal",
    "stick-push": "grasp the stick and push the thermos with it",
    "stick-pull": "grasp the stick and pull the thermos with it",
    "push": "push the puck to the goal",
    "push-wall": "push the puck around the wall to the goal",
    "push-back": "pull the block back to the goal",
    "reach": "move the gripper to the goal",
    "reach-wall": "move the gripper past the wall to the goal",
    "shelf-place": "pick up the block and place it on the shelf",
    "sweep-into": "sweep the block into the hole in the table",
    "sweep": "sweep the block off the table",
    "window-open": "slide the window open",
    "window-close": "slide the window shut",
}
"""Task -> instruction, without MetaWorld's version suffix."""


def task_name(task: str) -> str:
    """Remove a task's version suffix.

    Raises:
        ValueError: there is no such task.
    """
    name = task.removesuffix("-v3")
    if name not in INSTRUCTIONS:
        near = difflib.get_close_matches(name, INSTRUCTIONS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"task is {task!r}, expected one of the {len(INSTRUCTIONS)} of MetaWorld, such as 'metaworld/reach'{hint}"
        )
    return name
