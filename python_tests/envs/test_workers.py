"""Worker processes: replies, warnings and errors come back, and workers that die or hang are replaced."""

import multiprocessing
import os
import signal
import struct
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from vampo_core.envs import SimulatorError, SimulatorWarning, slots, workers

pytest.importorskip("gymnasium", reason="these tests need `pip install gymnasium`")

LINE = "simulators:line"


def test_a_worker_that_dies_in_the_middle_of_a_message_is_replaced():
    pool = workers.Workers(1, 1, {})
    try:
        pool.send(0, slots.Reset(LINE, seed=0))
        pool.receive(every=True)
        pool._processes[0].kill()
        pool._pipes[0].close()
        pool._pipes[0], theirs = multiprocessing.Pipe()
        os.write(theirs.fileno(), struct.pack("!i", 100) + b"the first bytes of a hundred")
        pool.send(0, slots.Step(None))
        theirs.recv()  # else closing resets the connection
        theirs.close()
        assert pool.receive(every=True) == {0: slots.Lost("it died: exit code -9")}
        pool.send(0, slots.Reset(LINE, seed=1))
        assert isinstance(pool.receive(every=True)[0], slots.Reply)
    finally:
        pool.close()


@pytest.fixture
def hanging(monkeypatch):
    """Make workers with two slots, of which slot 0 hangs, silent for longer than they may be."""
    made = []

    def hanging(num_workers, max_silence_s):
        pool = workers.Workers(num_workers, 2, {"hang": True})
        made.append(pool)
        for slot in (0, 1):
            pool.send(slot, slots.Reset(LINE, seed=slot))
        assert all(isinstance(reply, slots.Reply) for reply in pool.receive(every=True).values())
        for _ in range(2):
            pool.send(0, slots.Step(None))
            assert isinstance(pool.receive(every=True)[0], slots.Reply)
        monkeypatch.setattr(workers, "MAX_SILENCE_S", max_silence_s)
        pool.send(0, slots.Step(None))
        return pool

    yield hanging
    for pool in made:
        pool.close()


def test_a_worker_that_hangs_is_noticed_while_others_reply(hanging):
    pool = hanging(2, 5.0)
    replies, deadline = {}, time.monotonic() + 60
    while 0 not in replies and time.monotonic() < deadline:
        pool.send(1, slots.Reset(LINE, seed=1))
        replies = pool.receive(every=False)
        time.sleep(0.01)
    assert replies[0] == slots.Lost("it hung: no reply in 5 s")


def test_a_worker_that_hangs_is_replaced(hanging, monkeypatch):
    pool = hanging(1, 1.0)
    assert pool.receive(every=True) == dict.fromkeys((0, 1), slots.Lost("it hung: no reply in 1 s"))
    monkeypatch.undo()
    pool.send(1, slots.Reset(LINE, seed=1))
    assert isinstance(pool.receive(every=True)[1], slots.Reply)


def test_warnings_of_simulators_are_passed_on_once():
    pool = workers.Workers(2, 2, {"height": 32})
    try:
        with pytest.warns(SimulatorWarning, match="renders 32x64 frames, which are squeezed to 32x32") as warned:
            for seed in range(2):
                for slot in (0, 1):
                    pool.send(slot, slots.Reset(LINE, seed))
                pool.receive(every=True)
        assert len(warned) == 1
    finally:
        pool.close()


# run_each


def double(number, heartbeat):
    heartbeat()
    return 2 * number


def fail(heartbeat):
    raise ValueError("the motor is hot")


def lack(heartbeat):
    raise ImportError("`pip install wheels`")


def die(marker, heartbeat):
    """Die the first time."""
    if not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "done"


def stop(marker, heartbeat):
    """Hang the first time."""
    if not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGSTOP)
    return "done"


def take_long(heartbeat):
    for _ in range(40):
        time.sleep(0.1)
        heartbeat()
    return "done"


def runs(*functions):
    return [(f"run {i}", workers.Run(function)) for i, function in enumerate(functions)]


@pytest.mark.parametrize("num_workers", [1, 2, 5])
def test_every_run_gives_its_result(num_workers):
    found = list(workers.run_each(runs(*(partial(double, i) for i in range(3))), num_workers))
    assert sorted(found) == [0, 2, 4]
    assert list(workers.run_each([], num_workers)) == []


@pytest.mark.parametrize("num_workers", [1, 2])
def test_errors_come_back_with_their_traceback(num_workers):
    with pytest.raises(SimulatorError, match=r"^the motor is hot$") as error:
        list(workers.run_each(runs(fail, fail), num_workers))
    assert "in fail" in str(error.value.__cause__)
    with pytest.raises(ImportError, match="pip install wheels"):
        list(workers.run_each(runs(lack, lack), num_workers))


def test_a_run_whose_worker_dies_is_begun_again(tmp_path):
    functions = (partial(die, tmp_path / "a"), partial(double, 1), partial(die, tmp_path / "b"))
    assert sorted(map(str, workers.run_each(runs(*functions), 2))) == ["2", "done", "done"]


def test_a_run_whose_worker_hangs_is_begun_again(tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "MAX_SILENCE_S", 15.0)  # starting a process takes seconds
    assert list(workers.run_each(runs(partial(stop, tmp_path / "a"), partial(double, 3)), 2)) == [6, "done"]


@pytest.mark.parametrize(("heartbeat_s", "expected"), [(0.1, "done"), (60.0, slots.Lost("it hung: no reply in 1.5 s"))])
def test_signs_of_life_keep_a_long_run_from_being_taken_to_hang(monkeypatch, heartbeat_s, expected):
    monkeypatch.setattr(workers, "HEARTBEAT_S", heartbeat_s)
    pool = workers.Workers(1, 1)
    try:
        pool.send(0, workers.Run(partial(double, 1)))
        assert pool.receive(every=True) == {0: 2}
        monkeypatch.setattr(workers, "MAX_SILENCE_S", 1.5)
        pool.send(0, workers.Run(take_long))
        assert pool.receive(every=True) == {0: expected}
    finally:
        pool.close()


def test_ctrl_c_ends_the_workers(tmp_path):
    script = (
        "import signal, sys; from test_workers import take_long, runs; from vampo_core.envs import workers\n"
        "if __name__ == '__main__':\n"
        # a shell's background job starts with Ctrl-C ignored, and so would everything that it starts
        "    signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "    print('begun', flush=True)\n"
        "    list(workers.run_each(runs(*[take_long] * 200), 2))\n"
    )
    (tmp_path / "script.py").write_text(script)
    path = os.pathsep.join([str(Path(__file__).parent), *(p for p in sys.path if p)])
    process = subprocess.Popen(
        [sys.executable, tmp_path / "script.py"],
        env=os.environ | {"PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout.readline() == "begun\n"
    time.sleep(3)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers too
    _, error = process.communicate(timeout=120)
    assert process.returncode != 0 and error.count("KeyboardInterrupt") == 1
