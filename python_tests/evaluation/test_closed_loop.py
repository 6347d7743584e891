"""Closed-loop evaluation: every episode once, the same in one process and in four, even if workers die."""

import importlib.util
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from leftovers import leftover_of
from scipy import stats

from vampo_core.cli.tables import closed_loop_table, comparison_line
from vampo_core.data import RecordedDataset
from vampo_core.data.video import count_frames
from vampo_core.envs import SimulatorError
from vampo_core.evaluation import closed_loop
from vampo_core.evaluation.closed_loop import evaluate_closed_loop, evaluation_seeds
from vampo_core.evaluation.episodes import (
    ClosedLoopResult,
    EpisodeResult,
    compare,
)
from vampo_core.evaluation.statistics import mcnemar_exact, wilson_interval
from vampo_core.files import locked

pytest.importorskip("gymnasium", reason="closed-loop tests need `pip install gymnasium`")

LINE = "simulators:line"


class Proportional:
    """Moves towards the middle, with a different pace in every episode."""

    def __init__(self, gain=0.5):
        self.gain, self.begun, self.batches = gain, [], []
        self.paces = {}

    def begin(self, slot, instruction, seed):
        self.begun.append((slot, instruction, seed))
        self.paces[slot] = 1 + seed % 7 / 10

    def act(self, observations):
        self.batches.append(sorted(observations))
        return {slot: -self.gain * self.paces[slot] * o["state"] for slot, o in observations.items()}


def evaluate(controller=None, env=LINE, num_episodes=6, num_workers=0, **kwargs):
    """In this process unless said otherwise: a new one takes seconds to import torch."""
    return evaluate_closed_loop(
        controller, env, num_episodes=num_episodes, num_workers=num_workers, progress=False, **kwargs
    )


def test_same_episodes_in_one_process_and_in_four_with_batches_of_slots():
    single, several = Proportional(), Proportional()
    one = evaluate(single, num_workers=1)
    four = evaluate(several, num_workers=4, num_envs=5)
    assert one.episodes == four.episodes
    assert [e.seed for e in one.episodes] == evaluation_seeds(0, 6)
    assert len({e.length for e in one.episodes}) > 1 and one.success.mean == 1
    assert single.batches[0] == [0] and several.batches[0] == [0, 1, 2, 3, 4]
    assert one.episodes == evaluate(Proportional(), num_envs=3).episodes
    assert {i for _, i, _ in several.begun} == {"move the point to the middle"}
    assert evaluate(Proportional(), seed=1).episodes != one.episodes
    assert all(len(e.latencies_ms) == e.length for e in one.episodes)
    assert 0 < one.latency.p50_ms <= one.latency.p99_ms and one.latency.hz > 0


def test_episodes_begin_in_step_so_that_chunks_are_predicted_in_one_batch(tmp_path):
    class Chunked(Proportional):
        def __init__(self):
            super().__init__()
            self.steps, self.due = {}, []

        def begin(self, slot, instruction, seed):
            super().begin(slot, instruction, seed)
            self.steps[slot] = 0

        def act(self, observations):
            self.due.append({slot for slot in observations if self.steps[slot] % 3 == 0})
            for slot in observations:
                self.steps[slot] += 1
            return super().act(observations)

    controller = Chunked()
    kill = {"kill_once": str(tmp_path / "killed")}  # what is repeated begins in step too
    result = evaluate(controller, num_episodes=20, num_workers=1, num_envs=4, begin_every=3, env_kwargs=kill)
    assert result.episodes == evaluate(Proportional(), num_episodes=20).episodes
    assert len(controller.begun) == 24 and len({e.length for e in result.episodes}) > 1
    batches = zip(controller.batches, controller.due, strict=True)
    assert all(due in (set(), set(observed)) for observed, due in batches)


def test_an_episode_is_what_the_simulator_alone_would_show():
    from simulators import line

    result = evaluate(Proportional(), num_episodes=1).episodes[0]
    env, controller = line(), Proportional()
    _, info = env.reset(seed=result.seed)
    controller.begin(0, env.instruction, result.seed)
    total, length, done = 0.0, 0, False
    while not done:
        _, reward, terminated, truncated, info = env.step(controller.act({0: {"state": info["state"]}})[0])
        total, length, done = total + reward, length + 1, terminated or truncated
    assert (result.length, result.episode_return, result.success) == (length, total, info["success"])


def test_expert_acts_in_the_workers_and_tasks_are_told_apart():
    result = evaluate(None, f"{LINE}, {LINE}/twice", num_episodes=2, num_envs=3)
    assert [e.env for e in result.episodes] == [LINE, LINE, f"{LINE}/twice", f"{LINE}/twice"]
    assert {name: rate.mean for name, rate in result.success_by_env.items()} == {LINE: 1, f"{LINE}/twice": 1}
    assert result.latency is None


def test_killed_worker_is_replaced_and_its_episodes_repeated_once(tmp_path):
    kill = {"kill_once": str(tmp_path / "killed")}
    controller = Proportional()
    result = evaluate(controller, num_workers=1, num_envs=3, env_kwargs=kill, output=tmp_path / "out")
    assert (tmp_path / "killed").exists()
    assert len(controller.begun) == 6 + 3, "the three episodes of the worker begin again"
    assert result.episodes == evaluate(Proportional()).episodes
    lines = (tmp_path / "out" / "episodes.jsonl").read_text().splitlines()
    assert sorted(json.loads(line)["seed"] for line in lines) == sorted(evaluation_seeds(0, 6))


def test_a_worker_that_dies_every_time_is_an_error(monkeypatch):
    monkeypatch.setattr(closed_loop, "MAX_ATTEMPTS", 1)
    with pytest.raises(SimulatorError, match=r"with seed \d+: its worker was lost 1 times \(it died: exit code -9\)"):
        evaluate(num_episodes=1, num_workers=1, env_kwargs={"kill_always": True})


def test_all_episodes_of_the_worker_are_named_as_any_may_be_at_fault(monkeypatch):
    monkeypatch.setattr(closed_loop, "MAX_ATTEMPTS", 1)
    names = " or ".join(f"'{LINE}' with seed {seed}" for seed in evaluation_seeds(0, 2))
    with pytest.raises(SimulatorError, match=f"episode of {names}: its worker was lost 1 times"):
        evaluate(num_episodes=2, num_workers=1, num_envs=2, env_kwargs={"kill_always": True})


def test_resumes_after_the_episodes_that_are_there(tmp_path, monkeypatch):
    whole = evaluate(Proportional(), output=tmp_path / "whole", num_episodes=5)
    evaluate(Proportional(), output=tmp_path / "part", num_episodes=3)
    path = tmp_path / "part" / "episodes.jsonl"
    path.write_text(path.read_text() + '{"env": "simulators:li')  # killed while it wrote
    controller = Proportional()
    assert evaluate(controller, output=tmp_path / "part", num_episodes=5).episodes == whole.episodes
    assert [seed for _, _, seed in controller.begun] == evaluation_seeds(0, 5)[3:]
    assert len(path.read_text().splitlines()) == 5
    again = Proportional()
    with monkeypatch.context() as patch:
        patch.setattr(closed_loop.envs, "make", lambda *_, **__: pytest.fail("no simulator is needed"))
        resumed = evaluate(again, output=tmp_path / "part", num_episodes=5)
    assert again.begun == [] and resumed.latency is not None
    with pytest.raises(ValueError, match=r"controller_id is 'other', but .*part holds episodes with ''"):
        evaluate(Proportional(), output=tmp_path / "part", num_episodes=5, controller_id="other")
    path.write_text("damaged\n" + path.read_text())
    with pytest.raises(ValueError, match=r"line 1 is 'damaged', expected an episode as JSON"):
        evaluate(Proportional(), output=tmp_path / "part", num_episodes=5)


def test_a_folder_belongs_to_one_process_at_a_time(tmp_path):
    script = (
        "from vampo_core.evaluation.closed_loop import evaluate_closed_loop\n"
        f"evaluate_closed_loop(None, {LINE!r}, num_episodes=2, num_workers=0, output={str(tmp_path)!r}, progress=False)"
    )
    path = os.pathsep.join(p for p in sys.path if p)
    half_written = leftover_of(tmp_path / "video.mp4")
    with locked(tmp_path):
        half_written.touch()
        process = subprocess.Popen(
            [sys.executable, "-c", script], env=os.environ | {"PYTHONPATH": path}, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout.readline() == f"{tmp_path}: waiting for another process that writes there\n"
        assert half_written.exists() and not (tmp_path / "episodes.jsonl").exists()
    assert process.wait(timeout=120) == 0 and not half_written.exists()
    assert len((tmp_path / "episodes.jsonl").read_text().splitlines()) == 2


def test_videos_of_successes_and_failures_with_what_was_imagined(tmp_path):
    class Lazy(Proportional):
        def act(self, observations):
            return {slot: a * (self.paces[slot] < 1.3) for slot, a in super().act(observations).items()}

    seen = []
    result = evaluate(
        Lazy(),
        num_envs=2,
        output=tmp_path,
        num_videos=1,
        imagine=lambda *given: seen.append(given) or 1 - given[0],
    )
    shown = [e for e in result.episodes if e.video]
    assert sorted(e.success for e in shown) == [False, True]
    assert sorted(len(frames) for frames, _, _ in seen) == sorted(e.length + 1 for e in shown)
    assert {instruction for _, instruction, _ in seen} == {"move the point to the middle"}
    assert sorted(seed for _, _, seed in seen) == sorted(e.seed for e in shown)
    for episode in shown:
        assert count_frames(tmp_path / "videos" / episode.video) == episode.length + 1
    assert len(list((tmp_path / "videos").iterdir())) == 2


@pytest.mark.parametrize("num_workers", [0, 2])
def test_episodes_are_recorded_as_a_dataset(tmp_path, num_workers):
    """What the controller saw and did, failures included; a second call adds what was missing."""

    class Noted(Proportional):
        states, actions = [], []

        def act(self, observations):
            actions = super().act(observations)
            for slot, observation in observations.items():
                self.states.append(observation["state"].copy())
                self.actions.append(np.asarray(actions[slot], np.float32))
            return actions

    Noted.states, Noted.actions = [], []
    options = {"output": tmp_path, "record": True, "num_workers": num_workers, "env_kwargs": {}}
    evaluate(Noted(), num_episodes=2, **options)
    result = evaluate(Noted(), num_episodes=3, **options)
    dataset = RecordedDataset(tmp_path / "recorded", include_failures=True)
    assert [e.header.seed for e in dataset.episodes] == evaluation_seeds(0, 3)
    assert [e.length - 1 for e in dataset.episodes] == [e.length for e in result.episodes]
    assert [e.header.success for e in dataset.episodes] == [e.success for e in result.episodes]
    rows = sorted((*s, *a) for s, a in zip(Noted.states, Noted.actions, strict=True))
    recorded = [
        (*s, *a) for e in dataset.episodes for s, a in zip(e.states[:-1].tolist(), e.actions[:-1].tolist(), strict=True)
    ]
    np.testing.assert_array_equal(np.array(sorted(recorded)), np.array(rows))
    assert dataset.episodes[0].frames([0]).shape[-1] == 3 and dataset.episodes[0].instruction


def test_recorded_episodes_are_never_replaced(tmp_path):
    """Other numbers of episodes, another seed, and episodes that were run without being recorded."""
    evaluate(Proportional(), num_episodes=1, output=tmp_path)
    log = (tmp_path / "episodes.jsonl").read_text()
    evaluate(Proportional(), num_episodes=1, output=tmp_path, record=True)
    assert (tmp_path / "episodes.jsonl").read_text() == log  # it ran again, with the same result
    before = {path: path.read_bytes() for path in (tmp_path / "recorded").rglob("*") if path.is_file()}
    for options in ({"num_episodes": 3}, {"num_episodes": 2, "seed": 1}):
        evaluate(Proportional(), output=tmp_path, record=True, **options)
    assert {path: path.read_bytes() for path in before} == before
    dataset = RecordedDataset(tmp_path / "recorded", include_failures=True)
    assert [e.header.seed for e in dataset.episodes] == [*evaluation_seeds(0, 3), *evaluation_seeds(1, 2)]


class Wrong(Proportional):
    def __init__(self, change):
        super().__init__()
        self.change = change

    def act(self, observations):
        return self.change(super().act(observations))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda actions: {slot: a * np.nan for slot, a in actions.items()}, r"act returned array\(\[nan\]"),
        (lambda actions: {slot: np.zeros(3) for slot in actions}, r"act returned array\(\[0., 0., 0.\]\)"),
        (lambda actions: {}, "act returned None for slot 0"),
    ],
)
def test_wrong_actions(change, message):
    with pytest.raises(ValueError, match=message + r".*'simulators:line', seed \d+\), expected finite .* shape \(1,\)"):
        evaluate(Wrong(change), num_episodes=1)


def test_an_error_of_the_simulator_names_the_episode():
    seed = evaluation_seeds(0, 1)[0]
    with pytest.raises(SimulatorError, match=rf"'simulators:line' with seed {seed} failed: the motor is hot"):
        evaluate(num_episodes=1, env_kwargs={"fail": True})
    with pytest.raises(SimulatorError, match=rf"seed {seed} failed: reward is nan, expected a finite number"):
        evaluate(num_episodes=1, env_kwargs={"nan": True})


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"num_episodes": 0}, "num_episodes is 0, expected at least 1"),
        ({"num_workers": -1}, "num_workers is -1, expected at least 0"),
        ({"num_envs": 0}, "num_envs is 0, expected at least 1"),
        ({"begin_every": 0}, "begin_every is 0, expected at least 1"),
        ({"seed": -1}, "seed is -1, expected at least 0"),
        ({"num_videos": 1}, "num_videos is 1 with output = None, expected a folder"),
        ({"record": True}, "record is True with output = None, expected one"),
        ({"env": f"{LINE},{LINE}"}, "expected a name, or different names with commas"),
        ({"env": "simulators:circle"}, "expected 'circle' in module 'simulators'"),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        evaluate(**kwargs)


def test_published_initial_states_are_taken_in_order():
    result = evaluate(Proportional(), num_episodes=3, first_seed=4)
    assert [episode.seed for episode in result.episodes] == [4, 5, 6]
    with pytest.raises(ValueError, match="first_seed is -1, expected at least 0"):
        evaluate(Proportional(), first_seed=-1)


def test_evaluation_shares_no_episode_with_recording():
    from vampo_core.data.record import episode_seed

    recorded = {episode_seed(seed, i) for seed in range(3) for i in range(500)}
    evaluated = {s for seed in range(3) for s in evaluation_seeds(seed, 500)}
    assert len(recorded | evaluated) == 3000


@pytest.mark.parametrize(("successes", "trials"), [(0, 10), (7, 10), (100, 100), (1, 1)])
def test_wilson_interval_is_scipys(successes, trials):
    expected = stats.binomtest(successes, trials).proportion_ci(method="wilson")
    assert wilson_interval(successes, trials) == pytest.approx((expected.low, expected.high), abs=1e-12)


@pytest.mark.parametrize(("before", "after"), [(0, 0), (1, 8), (5, 5), (12, 3), (0, 6)])
def test_mcnemar_is_the_binomial_test(before, after):
    expected = stats.binomtest(before, before + after).pvalue if before + after else 1.0
    assert mcnemar_exact(before, after) == pytest.approx(expected, abs=1e-12)


def made_up(successes, coverage=None):
    coverage = coverage or [None] * len(successes)
    return ClosedLoopResult(
        [
            EpisodeResult("pusht", i, bool(s), 10, 0.0, c)
            for i, (s, c) in enumerate(zip(successes, coverage, strict=True))
        ]
    )


def test_comparison_pairs_episodes():
    before = made_up([1, 1, 0, 0, 0, 0, 0, 0], [0.9] * 8)
    after = made_up([0, 1, 1, 1, 1, 1, 1, 1], [0.9 + i / 100 for i in range(8)])
    after = ClosedLoopResult(after.episodes[::-1])  # the order does not matter
    found = compare(before, after)
    assert (found.num_only_before, found.num_only_after, found.num_episodes) == (1, 6, 8)
    assert found.p_value == pytest.approx(stats.binomtest(1, 7).pvalue)
    assert found.success.mean == pytest.approx(5 / 8) and found.success.ci95[0] < 5 / 8 < found.success.ci95[1]
    assert found.max_coverage.mean == pytest.approx(0.035) and 0 < found.max_coverage.ci95[0] < 0.035
    assert compare(made_up([1, 0]), made_up([1, 0])).max_coverage is None
    with pytest.raises(ValueError, match=r"before has 8 episodes and after 2, 2 of them the same"):
        compare(before, made_up([1, 0]))


def test_what_the_command_says():
    several = evaluate(None, f"{LINE},{LINE}/twice", num_episodes=2)
    text = closed_loop_table({"expert": several})
    assert "all " in text and text.count("success 100.0%   [") == 3
    assert "all " not in closed_loop_table({"expert": evaluate(None, num_episodes=1)})
    before, after = made_up([1, 0, 0, 0], [0.5] * 4), made_up([1, 1, 1, 0], [0.75] * 4)
    text = comparison_line(compare(before, after))
    assert "success +50.0%" in text and "2 solved only by the first, 0 only by the second" in text
    assert text.endswith("largest coverage +0.250")
    text = comparison_line(compare(made_up([1, 0]), made_up([1, 0])))
    assert text.startswith("success +0.0% on the same 2 episodes, none of which differs; 0 ") and text.endswith(
        "McNemar p = 1"
    )


def test_pusht_expert_passes_through_the_harness():
    pytest.importorskip("gym_pusht", reason="needs `pip install vampo_core[pusht]`")
    result = evaluate(None, "pusht", num_episodes=20, num_workers=2)
    assert result.success.mean >= 0.95
    assert all(e.max_coverage > 0.95 and e.length < 300 for e in result.episodes if e.success)
    assert evaluate(None, "pusht", num_episodes=1).episodes == result.episodes[:1]


def test_metaworld_experts_pass_through_the_harness():
    if importlib.util.find_spec("metaworld") is None:  # imported before our module it would choose another renderer
        pytest.skip("needs `pip install vampo_core[metaworld]`")
    tasks = ("reach", "button-press-topdown", "drawer-open", "door-open", "window-open")
    env = ",".join(f"metaworld/{task}" for task in tasks)
    result = evaluate(None, env, num_episodes=4, num_workers=2)
    assert [rate.mean for rate in result.success_by_env.values()] == [1] * 5
    assert evaluate(None, "metaworld/drawer-open", num_episodes=1).episodes == result.episodes[8:9]
