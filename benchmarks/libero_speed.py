"""Speed of LIBERO: its own environment, and ours with its rendering and with the fast one, in turns.

    python benchmarks/libero_speed.py [--task libero_object/0] [--rounds 5] [--steps 10]

Every round steps each environment with the same actions from the same initial state, so that a slow moment of the
machine meets all of them. Its own environment draws two cameras, as it does by default, and one. CPU time, over all
threads, says what a step costs where other programs run too.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np

from vampo_core import envs


def main() -> None:
    """Print steps per second and the CPU time of a step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="libero_object/0")
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10, help="steps of an environment in a round")
    arguments = parser.parse_args()
    contenders = make_contenders(arguments.task, arguments.image_size)
    actions = np.random.default_rng(0).uniform(-1, 1, (arguments.steps, 7))
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    for _ in range(arguments.rounds):
        for name, (reset, step) in contenders.items():
            reset()
            start, cpu_start = time.perf_counter(), time.process_time()
            for action in actions:
                step(action)
            seconds[name].append((time.perf_counter() - start, time.process_time() - cpu_start))
    for name, rounds in seconds.items():
        wall, cpu = (statistics.median(times) / len(actions) for times in zip(*rounds, strict=True))
        print(f"{name:22} {1 / wall:5.1f} steps/s, {1000 * cpu:4.0f} ms of CPU time")


def make_contenders(task: str, image_size: int) -> dict[str, tuple[Callable, Callable]]:
    """Functions that reset and step each environment."""
    contenders: dict[str, tuple[Callable, Callable]] = {}
    for name, fast in (("ours", False), ("ours, fast rendering", True)):
        env = envs.make(f"libero/{task}", image_size=image_size, fast_rendering=fast)
        contenders[name] = (lambda env=env: env.reset(seed=0), env.step)
    from vampo_core.envs.libero_import import quiet

    with quiet():
        from libero.libero.envs import OffScreenRenderEnv
    for name, cameras in (
        ("LIBERO, one camera", ["agentview"]),
        ("LIBERO, two cameras", ["agentview", "robot0_eye_in_hand"]),
    ):
        with quiet():
            theirs = OffScreenRenderEnv(
                bddl_file_name=env._bddl_file,
                camera_names=cameras,
                camera_heights=image_size,
                camera_widths=image_size,
                hard_reset=False,
            )

        def reset(theirs=theirs, state=env.initial_states[0]) -> None:
            theirs.sim._render_context_offscreen.gl_ctx.make_current()  # it would draw with that of the one before
            theirs.reset()
            theirs.set_init_state(state)

        contenders[name] = (reset, theirs.step)
    return contenders


if __name__ == "__main__":
    main()
