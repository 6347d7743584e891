"""PushT: seeded, upright, solved by its expert, and clear about what is missing."""

import builtins
import sys

import numpy as np
import pytest

from vampo_core import envs

pytest.importorskip("gym_pusht", reason="PushT tests need `pip install vampo_core[pusht]`")


@pytest.fixture
def env():
    made = envs.make("pusht")
    yield made
    made.close()


def run_expert(env, seed):
    """Return the simulator's states, the actions and whether the episode succeeded."""
    _, info = env.reset(seed=seed)
    expert = env.expert()
    states, actions, done = [info["privileged_state"]], [], False
    while not done:
        actions.append(expert())
        _, _, terminated, truncated, info = env.step(actions[-1])
        states.append(info["privileged_state"])
        done = terminated or truncated
    return np.stack(states), np.stack(actions), info["success"]


def test_expert_solves_every_seed(env):
    num_steps = []
    for seed in range(10):
        _, actions, success = run_expert(env, seed)
        assert success, f"the expert failed on seed {seed}"
        num_steps.append(len(actions))
    assert np.mean(num_steps) < 150


def test_expert_waits_where_it_cannot_reach_the_block(env):
    _, info = env.reset(seed=0)
    env._env.unwrapped.block.position = (580, 560)  # disturbed experts push it through the wall now and then
    expert = env.expert()
    for _ in range(3):
        assert np.allclose(expert(), info["state"])
        *_, info = env.step(expert())


def test_same_seed_same_episode_in_a_fresh_environment(env):
    states, actions, _ = run_expert(env, 7)
    again_states, again_actions, _ = run_expert(envs.make("pusht"), 7)
    assert np.array_equal(states, again_states)
    assert np.array_equal(actions, again_actions)
    assert not np.array_equal(states[0], run_expert(env, 8)[0][0])


def test_pixels_are_upright_and_where_the_state_says(env):
    pixels, info = env.reset(seed=0)
    assert pixels.shape == (64, 64, 3) and pixels.dtype == np.uint8
    blue = (pixels[..., 2].astype(int) - pixels[..., 0] > 60).nonzero()  # the agent is the only blue thing
    row, column = blue[0].mean(), blue[1].mean()
    x, y = info["state"]
    assert abs((column + 0.5) * 8 - x) < 6 and abs((row + 0.5) * 8 - y) < 6
    assert np.array_equal(env.render(), pixels)


def test_motion_below_a_pixel_is_visible(env):
    before, info = env.reset(seed=0)
    after, *_ = env.step(info["state"] + 8)  # a pixel is 8 px wide; one step covers a quarter of the way
    assert not np.array_equal(before, after)


def test_image_size_and_horizon():
    small = envs.make("pusht", image_size=32, max_steps=3)
    pixels, info = small.reset(seed=0)
    assert pixels.shape == (32, 32, 3)
    outcomes = [small.step(info["state"])[2:4] for _ in range(3)]
    assert outcomes == [(False, False), (False, False), (False, True)]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: envs.make("pushd"),
            "env is 'pushd', expected one of libero, .*, ogbench, pusht or 'module:factory'; did you mean 'pusht'",
        ),
        (lambda: envs.make("pusht", image_size=2), "image_size is 2, expected 16 to 512"),
        (lambda: envs.make("pusht", max_steps=0), "max_steps is 0, expected at least 1"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_bad_action(env):
    env.reset(seed=0)
    with pytest.raises(ValueError, match="expected two finite numbers"):
        env.step(np.array([np.nan, 1.0]))


def test_missing_extra_is_one_clear_error(monkeypatch):
    real_import = builtins.__import__

    def without_pusht(name, *args, **kwargs):
        if name.startswith("gym_pusht"):
            raise ModuleNotFoundError("No module named 'gym_pusht'")
        return real_import(name, *args, **kwargs)

    for module in [m for m in sys.modules if m.startswith("vampo_core.envs.pusht")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setattr(builtins, "__import__", without_pusht)
    with pytest.raises(ImportError, match=r"needs gym-pusht .*pip install vampo_core\[pusht\]"):
        envs.make("pusht")
