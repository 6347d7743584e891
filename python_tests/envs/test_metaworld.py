"""MetaWorld: seeded, upright, solved by its experts, and clear about what is missing."""

import importlib.util
import os
import subprocess
import sys

import numpy as np
import pytest

import vampo_core
from vampo_core import envs
from vampo_core.envs.metaworld_tasks import INSTRUCTIONS, task_name

FIVE = ("reach", "button-press-topdown", "drawer-open", "door-open", "window-open")


def test_every_task_has_an_instruction_of_its_own():
    assert len(INSTRUCTIONS) == len(set(INSTRUCTIONS.values())) == 50
    assert task_name("reach-v3") == task_name("reach") == "reach"
    with pytest.raises(ValueError, match=r"task is 'drawer-opn', expected one of the 50 .* did you mean 'drawer-open'"):
        task_name("drawer-opn")


def test_missing_extra_is_one_clear_error(monkeypatch):
    for module in [m for m in sys.modules if m.startswith(("vampo_core.envs.metaworld", "vampo_core.envs.mujoco"))]:
        monkeypatch.delitem(sys.modules, module)
    real = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "metaworld" else real(name))
    with pytest.raises(ImportError, match=r"'metaworld' needs metaworld: `pip install vampo_core\[metaworld\]`"):
        envs.make("metaworld/reach")


def run(env, seed, max_steps=1000):
    """Frames, simulator states and the last info of an expert's episode."""
    pixels, info = env.reset(seed=seed)
    expert = env.expert()
    frames, states = [pixels], [info["privileged_state"]]
    for _ in range(max_steps):
        pixels, _, terminated, truncated, info = env.step(expert())
        frames.append(pixels)
        states.append(info["privileged_state"])
        if terminated or truncated:
            break
    return np.stack(frames), np.stack(states), info


@pytest.fixture
def metaworld():
    if importlib.util.find_spec("metaworld") is None:
        pytest.skip("MetaWorld tests need `pip install vampo_core[metaworld]`")
    return importlib.import_module("vampo_core.envs.metaworld")  # before mujoco, for which it chooses the renderer


@pytest.fixture
def make(metaworld, monkeypatch):
    """Make an environment, without pictures unless asked for: they take most of the time."""
    made = []

    def make(task, *, pictures=False, **kwargs):
        if not pictures:
            monkeypatch.setattr(metaworld.MetaWorld, "_look", lambda self: self._pixels.copy())
        made.append(envs.make(f"metaworld/{task}", **kwargs))
        return made[-1]

    yield make
    for env in made:
        env.close()


def test_the_tasks_are_metaworlds(metaworld):
    names = metaworld.ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE
    assert {name.removesuffix("-v3-goal-observable") for name in names} == set(INSTRUCTIONS)


@pytest.mark.parametrize("task", FIVE)
def test_expert_solves_and_the_episode_stops(make, task):
    env = make(task)
    for seed in range(2):
        frames, states, info = run(env, seed)
        assert info["success"] and len(frames) < 80 and states.shape[1] == 39
    assert not np.array_equal(states[0], run(env, 0, 1)[1][0])
    assert env.instruction == INSTRUCTIONS[task] and env.fps == 40


def test_door_is_opened_where_metaworlds_own_expert_fails(make):
    assert run(make("door-open"), 1192758757)[2]["success"]


def test_same_seed_same_pixels_in_a_fresh_environment_and_in_a_used_one(make):
    env = make("drawer-open-v3", pictures=True)
    run(env, 1, 5)
    frames, states, _ = run(env, 7, 6)
    fresh_frames, fresh_states, _ = run(make("drawer-open", pictures=True), 7, 6)
    assert np.array_equal(states, fresh_states)
    assert np.array_equal(frames, fresh_frames)
    assert frames.shape[1:] == (64, 64, 3) and frames.dtype == np.uint8


def test_pixels_are_upright_and_objects_in_sight(make):
    env = make("drawer-open", pictures=True)
    pixels, info = env.reset(seed=0)
    assert np.array_equal(env.render(), pixels)
    red, green, blue = pixels.astype(int).transpose(2, 0, 1)
    arm = ((red - green > 50) & (red - blue > 50)).nonzero()
    drawer = ((green - red > 20) & (green - blue > 20)).nonzero()
    assert arm[0].mean() < drawer[0].mean() - 5, "the arm hangs from above"
    assert len(drawer[0]) > 100, "the drawer is too small"
    before = pixels
    after, *_, moved = env.step(np.array([0, 0, 1, 0]))
    assert moved["state"][2] > info["state"][2], "a positive dz goes up"
    assert not np.array_equal(before, after), "motion of a step is visible"


@pytest.mark.parametrize("task", FIVE)
def test_the_first_frame_shows_the_layout_of_its_own_episode(make, task):
    env = make(task, pictures=True)
    for seed in range(3):
        pixels, info = env.reset(seed=seed)
        after, *_, later = env.step(np.zeros(4))
        moved = np.abs(later["privileged_state"] - info["privileged_state"])
        assert moved[[4, 5, 6, 36, 37, 38]].max() < 0.01, "object and goal are where they were"  # meters
        before = info["privileged_state"][:18]
        assert np.array_equal(info["privileged_state"][18:36], before), "the frame before the first is the first"
        changed = (np.abs(after.astype(int) - pixels).max(-1) > 60).sum()
        assert changed < 8, f"{changed} pixels change although nothing is done"


def test_state_is_hand_and_gripper(make):
    env = make("reach")
    _, info = env.reset(seed=0)
    assert info["state"].shape == (4,) and info["state"].dtype == np.float32
    for _ in range(10):
        info = env.step(np.array([1, 0, 0, 1]))[-1]
    x, gripper = info["state"][0], info["state"][3]
    for _ in range(10):
        info = env.step(np.array([-1, 0, 0, -1]))[-1]
    assert info["state"][0] < x - 0.1 and info["state"][3] > gripper  # meters; -1 opens


def test_horizon_and_action_repeat(make):
    env = make("reach", max_steps=3, action_repeat=4)
    env.reset(seed=0)
    up = np.array([0, 0, 1, 0])
    assert [env.step(up)[2:4] for _ in range(3)] == [(False, False), (False, False), (False, True)]
    assert env.fps == 20


@pytest.mark.parametrize(
    ("task", "kwargs", "message"),
    [
        ("", {}, "task is '', expected one of the 50 of MetaWorld, such as 'metaworld/reach'"),
        ("reach", {"image_size": 8}, "image_size is 8, expected 16 to 512"),
        ("reach", {"max_steps": 0}, "max_steps is 0, expected at least 1"),
        ("reach", {"action_repeat": 0}, "action_repeat is 0, expected at least 1"),
    ],
)
def test_bad_arguments(make, task, kwargs, message):
    with pytest.raises(ValueError, match=message):
        make(task, **kwargs)


def test_bad_actions(make):
    env = make("reach")
    with pytest.raises(RuntimeError, match="step was called before reset"):
        env.step(np.zeros(4))
    env.reset(seed=0)
    for action in (np.full(4, np.nan), np.zeros(2)):
        with pytest.raises(ValueError, match="expected four finite numbers"):
            env.step(action)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"MUJOCO_GL": "nonsense"}, "cannot render (MUJOCO_GL is nonsense: "),
        ({"MUJOCO_GL": "egl", "PYOPENGL_PLATFORM": "osmesa"}, "cannot render (MUJOCO_GL is egl: "),
        ({"NO_GL": "1"}, "cannot render (MUJOCO_GL is unset: neither libEGL nor libOSMesa is installed"),
    ],
)
def test_no_rendering_backend_names_the_packages(metaworld, settings, message):
    """In a fresh process, as MuJoCo decides once."""
    script = (
        "import os, sys, types, ctypes.util\n"
        f"package = types.ModuleType('vampo_core'); package.__path__ = {vampo_core.__path__!r}\n"
        "sys.modules['vampo_core'] = package  # only the simulators: torch takes seconds to import\n"
        "if 'NO_GL' in os.environ: ctypes.util.find_library = lambda name: None\n"
        "from vampo_core import envs\n"
        "try: envs.make('metaworld/reach').reset(seed=0)\n"
        "except ImportError as error: print(error)\n"
    )
    environment = {k: v for k, v in os.environ.items() if k not in ("MUJOCO_GL", "PYOPENGL_PLATFORM", "DISPLAY")}
    done = subprocess.run([sys.executable, "-c", script], env=environment | settings, capture_output=True, text=True)
    assert message in done.stdout, done.stderr
    assert "apt-get install libegl1 libgl1" in done.stdout and "libosmesa6" in done.stdout
    assert done.stdout.count("\n") == 1
