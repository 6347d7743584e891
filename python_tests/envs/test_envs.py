"""Environments by name, gymnasium environments that were not made for us, and datasets of several tasks."""

import json
import warnings

import numpy as np
import pytest

from vampo_core import envs
from vampo_core.data import RecordedDataset, record
from vampo_core.data.formats.recorded import episode_folder, read_header
from vampo_core.envs.idle import MAX_ENVS, borrow_env, borrowed_env, close_envs, return_env
from vampo_core.evaluation.closed_loop import evaluate_closed_loop

gymnasium = pytest.importorskip("gymnasium", reason="these tests need `pip install gymnasium`")
simulators = pytest.importorskip("simulators")
gymnasium_env = pytest.importorskip("vampo_core.envs.gymnasium_env")

Line, line = simulators.Line, simulators.line
LINE = "simulators:line"


def adapt(env=None, **kwargs):
    return gymnasium_env.GymnasiumTask(Line() if env is None else env, **({"instruction": "go"} | kwargs))


def test_a_factory_outside_of_the_library_goes_by_module_and_name():
    env = envs.make(f"{LINE}/twice", image_size=16)
    assert env.instruction == "move the point to the middle twice" and env.fps == 10
    pixels, info = env.reset(seed=3)
    assert pixels.shape == (16, 16, 3) and info["state"].shape == (1,)
    expert, done = env.expert(), False
    while not done:
        pixels, reward, terminated, truncated, info = env.step(expert())
        done = terminated or truncated
    assert terminated and info["success"] and reward <= 0
    with pytest.raises(ValueError, match=r"env is 'nowhere', expected one of .*, pusht or 'module:factory'"):
        envs.make("nowhere")
    with pytest.raises(ValueError, match=r"'simulators:line', but line\(wheels=4\) cannot be called: .*'wheels'"):
        envs.make(LINE, wheels=4)
    with pytest.raises(ModuleNotFoundError, match=r"no module 'no_such_module': its folder has to be on PYTHONPATH"):
        envs.make("no_such_module:make")
    with pytest.raises(envs.SimulatorError, match=r"env 'simulators:broken' cannot be made: KeyError: 'wheels'"):
        envs.make("simulators:broken")


def test_frames_are_averaged_and_state_is_the_observation():
    env = adapt(image_size=32, state=lambda observation: np.array([observation[0], 1.0]))
    pixels, info = env.reset(seed=0)
    position = env.env.position
    columns = pixels[:, :, 0].mean(0)
    assert pixels.shape == (32, 32, 3) and abs((columns * np.arange(32)).sum() / columns.sum() - (position + 2) * 8) < 1
    assert info["state"] == pytest.approx([position, 1.0]) and info["state"].dtype == np.float32


def test_horizon_clipping_and_success_of_our_own():
    env = adapt(max_steps=2, success=lambda reward, terminated, info: False)
    env.reset(seed=0)
    before = env.env.position
    assert env.step([9.0])[2:4] == (False, False)
    assert env.env.position == pytest.approx(before + 0.2)
    assert env.step([0.0])[2:4] == (False, True)


class Odd(Line):
    """With one fault."""

    def __init__(self, **changes):
        super().__init__()
        for name, value in changes.items():
            setattr(self, name, value)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: adapt(Odd(action_space=gymnasium.spaces.Discrete(2))), r"action space Discrete\(2\), expected a Box"),
        (lambda: adapt(Line(render_mode=None)), "render_mode None, expected it made with render_mode='rgb_array'"),
        (lambda: adapt(Odd(metadata={})), "fps is None, expected the control steps per second"),
        (lambda: adapt(max_steps=0), "max_steps is 0, expected at least 1"),
        (lambda: adapt().expert(), "expert is None, expected a function"),
        (lambda: adapt(Odd(_observe=lambda: {"a": 1})).reset(seed=0), "observation is a dict .* give state"),
        (lambda: adapt(state=lambda o: np.zeros((2, 2))).reset(seed=0), r"state gives .* \(2, 2\), expected \[S\]"),
        (
            lambda: adapt(Odd(render=lambda: np.zeros((4, 4)))).reset(seed=0),
            r"renders float64 \(4, 4\), expected uint8",
        ),
    ],
)
def test_what_does_not_fit(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("action", [[np.nan], [0.0, 0.0], 0.0])
def test_bad_actions(action):
    env = adapt()
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"action is .*, expected finite numbers of shape \(1,\)"):
        env.step(action)


def test_an_environment_that_tells_no_success():
    class Silent(Line):
        def step(self, action):
            return (*super().step(action)[:4], {"energy": 1})

    env = adapt(Silent())
    env.reset(seed=0)
    with pytest.raises(ValueError, match="info holds energy, expected 'success': give success, a function"):
        env.step([0.0])


def contents(root):
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def record_both(root, num_episodes=5, **kwargs):
    names = f"{LINE}/once,{LINE}/twice"
    return record(names, root, num_episodes=num_episodes, progress=False, **kwargs)


def test_several_tasks_take_turns_in_one_dataset_whatever_the_workers(tmp_path):
    dataset = record_both(tmp_path / "one", env_kwargs={"image_size": 16})
    instructions = [e.instruction.split()[-1] for e in dataset.episodes]
    assert instructions == ["once", "twice", "once", "twice", "once"]
    assert [e.header.env for e in dataset.episodes[:2]] == [f"{LINE}/once", f"{LINE}/twice"]
    record_both(tmp_path / "two", 2, env_kwargs={"image_size": 16})
    record_both(tmp_path / "two", env_kwargs={"image_size": 16}, num_workers=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    with pytest.raises(ValueError, match=r"env is 'simulators:line', but the dataset at .* was recorded with"):
        record(LINE, tmp_path / "one", num_episodes=5, env_kwargs={"image_size": 16}, progress=False)


def test_a_name_for_several_tasks_is_recorded_and_evaluated_as_all_of_them(tmp_path, monkeypatch):
    monkeypatch.setattr(
        simulators, "members", lambda task: ["once", "twice"] if task == "all" else [task], raising=False
    )
    monkeypatch.setitem(envs._MEMBERS, LINE, "simulators:members")
    dataset = record(f"{LINE}/all", tmp_path / "data", num_episodes=3, progress=False)
    assert [e.header.env for e in dataset.episodes] == [f"{LINE}/once", f"{LINE}/twice", f"{LINE}/once"]
    result = evaluate_closed_loop(None, f"{LINE}/all", num_episodes=2, num_workers=0, progress=False)
    assert {name: rate.mean for name, rate in result.success_by_env.items()} == {f"{LINE}/once": 1, f"{LINE}/twice": 1}
    with pytest.raises(ValueError, match=r"env is 'simulators:line/once,simulators:line/all', expected a name, or dif"):
        record(f"{LINE}/once,{LINE}/all", tmp_path / "other", num_episodes=2, progress=False)


def test_tasks_of_one_dataset_are_alike(tmp_path, monkeypatch):
    monkeypatch.setattr(
        simulators, "slow", lambda **kwargs: setattr(env := line(**kwargs), "fps", 5) or env, raising=False
    )
    with pytest.raises(ValueError, match=r"env 'simulators:slow' has 5 frames per second .* expected 10.0 and \(1,\)"):
        record(f"{LINE},simulators:slow", tmp_path, num_episodes=2, progress=False)
    assert not list(tmp_path.iterdir())


def test_datasets_from_before_there_were_several_environments_are_read(tmp_path):
    from safetensors.numpy import load_file, save_file

    record(LINE, tmp_path, num_episodes=2, progress=False)
    path = episode_folder(tmp_path, 0) / "episode.safetensors"
    header = vars(read_header(path.parent)).copy()
    del header["env"]
    save_file(load_file(path), path, metadata={"vampo_core": json.dumps(header)})
    assert [e.header.env for e in RecordedDataset(tmp_path).episodes] == ["", LINE]
    assert len(record(LINE, tmp_path, num_episodes=3, progress=False)) == 3


def test_environments_are_kept_for_the_next_episode_but_not_too_many():
    close_envs()
    with borrowed_env(LINE, {}) as first:
        assert borrow_env(LINE, {}) is not first
    assert borrow_env(LINE, {"image_size": 16}) is not first
    assert borrow_env(LINE, {}) is first
    closed = []
    for i in range(MAX_ENVS + 2):
        env = line()
        env.close = lambda i=i: closed.append(i)
        return_env(env, LINE, {"max_steps": i + 1})
    assert closed == [0, 1]
    with pytest.raises(KeyError), borrowed_env(LINE, {"max_steps": 3}):
        raise KeyError
    assert closed == [0, 1, 2]
    for i in range(2):
        env = line()
        env.close = lambda i=i: closed.append(f"heavy {i}")
        env.idle_weight = MAX_ENVS - 1
        return_env(env, LINE, {"height": i})
    assert closed[3:] == [*range(3, MAX_ENVS + 2), "heavy 0"], "only what fits beside the last one is kept"
    close_envs()


@pytest.mark.parametrize("value", [True, np.True_, 1, 1.0, np.array([1.0]), np.float32(1)])
def test_success_as_a_bool_or_a_number(value):
    assert envs.is_success(value) is True and envs.is_success(np.logical_not(value)) is False


@pytest.mark.parametrize("value", ["False", "", None, 2, 0.5, np.nan, [0, 1], {}, b"1"])
def test_success_as_anything_else_is_refused(value):
    with pytest.raises(ValueError, match=r"success is .*, expected True or False"):
        envs.is_success(value)


def test_a_success_function_may_not_answer_in_words():
    env = adapt(success=lambda reward, terminated, info: "False")
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"success is 'False', expected True or False"):
        env.step([0.0])


def test_squeezed_frames_are_said_in_one_line():
    env = adapt(Line(height=48), image_size=32)
    with pytest.warns(envs.SimulatorWarning, match="renders 48x64 frames, which are squeezed to 32x32") as warned:
        for seed in range(3):
            env.reset(seed=seed)
    assert len(warned) == 1
    square = adapt(image_size=32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        square.reset(seed=0)
