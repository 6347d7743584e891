"""OGBench: seeded, marked, solved by its oracles, and clear about what is missing."""

import importlib
import importlib.util
import os
import subprocess
import sys

import numpy as np
import pytest

import vampo_core
from vampo_core import envs
from vampo_core.data.record import Disturbance
from vampo_core.envs.ogbench_tasks import INSTRUCTIONS, split_task


def test_every_task_has_an_instruction_of_its_own():
    assert len(INSTRUCTIONS) == len(set(INSTRUCTIONS.values())) == 10
    assert split_task("visual-cube-single/2") == split_task("cube-single/2") == ("cube-single", 2)


@pytest.mark.parametrize(
    ("task", "hint"), [("", "scene/5"), ("scene", "; did you mean 'scene/1'?"), ("cube-singel/3", "'cube-single/3'?")]
)
def test_a_task_that_does_not_exist(task, hint):
    with pytest.raises(
        ValueError, match=rf"task is {task!r}, expected one of cube-single/1, .*{hint.replace('?', '.')}$"
    ):
        split_task(task)


def test_missing_extra_is_one_clear_error(monkeypatch):
    for module in [m for m in sys.modules if m.startswith("vampo_core.envs.ogbench")]:
        monkeypatch.delitem(sys.modules, module)
    real = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "ogbench" else real(name))
    with pytest.raises(ImportError, match=r"'ogbench' needs ogbench: `pip install vampo_core\[ogbench\]`"):
        envs.make("ogbench/scene/1")


def run(env, seed, max_steps=1000, disturb=lambda action: action):
    """Frames, simulator states and the last info of an expert's episode."""
    pixels, info = env.reset(seed=seed)
    expert = env.expert()
    frames, states = [pixels], [info["privileged_state"]]
    for _ in range(max_steps):
        pixels, _, terminated, truncated, info = env.step(disturb(expert()))
        frames.append(pixels)
        states.append(info["privileged_state"])
        if terminated or truncated:
            break
    return np.stack(frames), np.stack(states), info


@pytest.fixture
def ogbench():
    if importlib.util.find_spec("ogbench") is None:
        pytest.skip("OGBench tests need `pip install vampo_core[ogbench]`")
    return importlib.import_module("vampo_core.envs.ogbench")  # before mujoco, for which it chooses the renderer


@pytest.fixture
def make(ogbench, monkeypatch):
    """Make an environment, without pictures unless asked for: they take most of the time."""
    made = []

    def make(task, *, pictures=False, **kwargs):
        if not pictures:
            monkeypatch.setattr(ogbench.OGBench, "_look", lambda self: self._pixels.copy())
        made.append(envs.make(f"ogbench/{task}", **kwargs))
        return made[-1]

    yield make
    for env in made:
        env.close()


@pytest.mark.parametrize("task", INSTRUCTIONS)
def test_expert_solves_and_the_episode_stops(make, task):
    env = make(task)
    for seed in range(2):
        frames, states, info = run(env, seed)
        assert info["success"] and len(frames) < (75 if "cube" in task else 250)
        cube, goal = states[-1][19:22] / 10 + (0.425, 0, 0), states[-1][28:31] if "cube" in task else states[-1][40:43]
        assert np.linalg.norm(cube - goal) <= 0.04, "OGBench's tolerance in m"
    assert not np.array_equal(states[0], run(env, 0, 1)[1][0])
    assert env.instruction == INSTRUCTIONS[task] and env.fps == 20
    assert env.max_steps == (200 if "cube" in task else 750)


def test_expert_recovers_from_pushes_and_leaves_numpys_generator(make):
    env, before = make("scene/4"), np.random.get_state()[1].copy()  # noqa: NPY002 (what OGBench's oracles draw from)
    assert run(env, 0, disturb=Disturbance(env.action_space, 0.5, 0))[2]["success"]
    assert np.array_equal(np.random.get_state()[1], before)  # noqa: NPY002


def test_same_seed_same_pixels_in_a_fresh_environment_and_in_a_used_one(make):
    env = make("scene/2", pictures=True)
    run(env, 1, 20)  # until after a button is pressed
    frames, states, _ = run(env, 7, 8)
    fresh_frames, fresh_states, _ = run(make("visual-scene/2", pictures=True), 7, 8)
    assert np.array_equal(states, fresh_states)
    assert np.array_equal(frames, fresh_frames)
    assert frames.shape[1:] == (64, 64, 3) and frames.dtype == np.uint8


def test_a_reset_leaves_nothing_that_its_seed_does_not_determine(make):
    env, left = make("cube-single/4"), []
    for _ in range(2):  # OGBench takes two steps of random actions in a reset
        env.reset(seed=3)
        data = env._env.data
        left.append(np.concatenate([data.qpos, data.qacc_warmstart, data.ctrl, data.cfrc_ext.ravel()]))
    assert np.array_equal(*left)


def centre(mask):
    """Mean row and column of a mask [H, W], and its number of pixels."""
    rows, columns = mask.nonzero()
    return rows.mean(), columns.mean(), len(rows)


def colours(pixels):
    """Masks of the red cube, the green mark and the purple gripper."""
    red, green, blue = pixels.astype(int).transpose(2, 0, 1)
    return (red - blue > 40) & (red - green > 60), green - red > 100, (blue - green > 40) & (red - green > 20)


@pytest.mark.parametrize(
    ("task", "down", "right"),
    [("cube-single/1", 0, -1), ("cube-single/2", 1, 0), ("cube-single/3", -1, 0), ("scene/3", 0, 1)],
)
def test_the_mark_is_in_sight_where_the_instruction_says(make, task, down, right):
    env = make(task, pictures=True)
    pixels, _ = env.reset(seed=1)
    assert np.array_equal(env.render(), pixels)
    cube, mark, _ = colours(pixels)
    if task == "scene/3":  # without the red button and handle
        cube[:, 35:] = False
    row, column, size = centre(cube)
    mark_row, mark_column, mark_size = centre(mark)
    assert size >= 8 and mark_size >= 12
    for way, found in ((down, mark_row - row), (right, mark_column - column)):
        assert way * found > 5 if way else abs(found) < 3  # px


def test_pixels_are_upright_and_motion_shows(make):
    env = make("cube-single/4", pictures=True)
    before, info = env.reset(seed=1)
    row = centre(colours(before)[2])[0]
    after, *_, moved = env.step(np.array([0, 0, -1, 0, 0]))
    assert moved["state"][2] < info["state"][2] and not np.array_equal(before, after)
    for _ in range(5):
        after = env.step(np.array([0, 0, -1, 0, 0]))[0]
    assert centre(colours(after)[2])[0] > row + 3, "the gripper goes down in the picture"


def test_no_mark_where_no_instruction_speaks_of_one(make):
    assert not colours(make("scene/1", pictures=True).reset(seed=0)[0])[1].any()


@pytest.mark.parametrize("task", ["cube-single/5", "scene/4"])
def test_the_first_frame_shows_the_layout_of_its_own_episode(make, task):
    env = make(task, pictures=True)
    for seed in range(2):
        pixels, info = env.reset(seed=seed)
        after, *_, later = env.step(np.zeros(5))
        assert np.abs(later["privileged_state"][19:22] - info["privileged_state"][19:22]).max() < 0.02, "the cube rests"
        changed = (np.abs(after.astype(int) - pixels).max(-1) > 60).sum()
        assert changed < 8, f"{changed} pixels change although nothing is done"


def test_state_is_hand_and_gripper(make):
    env = make("cube-single/1")
    _, info = env.reset(seed=0)
    assert info["state"].shape == (7,) and info["state"].dtype == np.float32
    for _ in range(10):
        info = env.step(np.array([1, 0, 0, 1, 1]))[-1]
    x, yaw, shut = info["state"][0], np.arctan2(*info["state"][[4, 3]]), info["state"][5]
    for _ in range(10):
        info = env.step(np.array([-1, 0, 0, -1, -1]))[-1]
    assert info["state"][0] < x - 0.1 and info["state"][5] < shut - 0.5
    assert np.sin(np.arctan2(*info["state"][[4, 3]]) - yaw) < 0


def test_horizon(make):
    env = make("cube-single/1", max_steps=2)
    env.reset(seed=0)
    assert [env.step(np.zeros(5))[2:4] for _ in range(2)] == [(False, False), (False, True)]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"image_size": 8}, "image_size is 8, expected 16 to 512"),
        ({"max_steps": 0}, "max_steps is 0, expected at least 1"),
    ],
)
def test_bad_arguments(make, kwargs, message):
    with pytest.raises(ValueError, match=message):
        make("scene/1", **kwargs)


def test_bad_actions(make):
    env = make("cube-single/1")
    with pytest.raises(RuntimeError, match="step was called before reset"):
        env.step(np.zeros(5))
    env.reset(seed=0)
    for action in (np.full(5, np.nan), np.zeros(4)):
        with pytest.raises(ValueError, match="expected five finite numbers"):
            env.step(action)


@pytest.mark.parametrize("settings", [{"MUJOCO_GL": "egl", "PYOPENGL_PLATFORM": "osmesa"}, {"NO_GL": "1"}])
def test_no_rendering_backend_names_the_packages(ogbench, settings):
    """In a fresh process, as MuJoCo decides once."""
    script = (
        "import os, sys, types, ctypes.util\n"
        f"package = types.ModuleType('vampo_core'); package.__path__ = {vampo_core.__path__!r}\n"
        "sys.modules['vampo_core'] = package  # only the simulators: torch takes seconds to import\n"
        "if 'NO_GL' in os.environ: ctypes.util.find_library = lambda name: None\n"
        "from vampo_core import envs\n"
        "try: envs.make('ogbench/scene/1').reset(seed=0)\n"
        "except ImportError as error: print(error)\n"
    )
    environment = {k: v for k, v in os.environ.items() if k not in ("MUJOCO_GL", "PYOPENGL_PLATFORM", "DISPLAY")}
    done = subprocess.run([sys.executable, "-c", script], env=environment | settings, capture_output=True, text=True)
    assert "environment 'ogbench' cannot render (MUJOCO_GL is " in done.stdout, done.stderr
    assert "apt-get install libegl1 libgl1" in done.stdout and done.stdout.count("\n") == 1
