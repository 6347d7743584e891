"""Locks between processes: one writer at a time, and none after it has died."""

import os
import signal
import subprocess
import sys

import pytest

from vampo_core.files import LOCK, LockedError, lock, locked

HOLDER = """
import os, sys
from pathlib import Path
from vampo_core.files import lock
held = lock(Path(sys.argv[1]))
child = os.fork() if "fork" in sys.argv else 1
if child:
    print(child, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Start a process that holds the lock of a folder."""
    started = []

    def start(*options):
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, tmp_path, *options], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        return process, int(process.stdout.readline())

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_one_process_at_a_time(tmp_path, holder):
    process, _ = holder()
    with pytest.raises(LockedError, match=f"{tmp_path} is locked by another process"):
        lock(tmp_path)
    process.communicate("")
    held = lock(tmp_path)
    with pytest.raises(LockedError):
        lock(tmp_path)
    held.release()
    lock(tmp_path).release()
    assert [path.name for path in tmp_path.iterdir()] == [LOCK]


def test_a_lock_dies_with_its_process_though_its_children_live(tmp_path, holder):
    process, child = holder("fork")
    process.kill()
    process.wait()
    os.kill(child, 0)  # it lives
    try:
        lock(tmp_path).release()
    finally:
        os.kill(child, signal.SIGKILL)


def test_waiting_is_announced(tmp_path, holder, capsys):
    process, _ = holder()
    waiting = subprocess.Popen(
        [sys.executable, "-c", "import sys; from pathlib import Path; from vampo_core.files import locked\n"
         "with locked(Path(sys.argv[1])): print('mine')", tmp_path], stdout=subprocess.PIPE, text=True
    )  # fmt: skip
    assert waiting.stdout.readline() == f"{tmp_path}: waiting for another process that writes there\n"
    process.communicate("")
    assert waiting.communicate(timeout=60)[0] == "mine\n"
    with locked(tmp_path / "new" / "folder"):
        assert (tmp_path / "new" / "folder" / LOCK).exists()
    assert capsys.readouterr().out == ""


def test_a_folder_that_cannot_be_locked(tmp_path):
    (tmp_path / LOCK).mkdir()
    with pytest.raises(OSError, match="directory") as caught:
        lock(tmp_path)
    assert not isinstance(caught.value, LockedError) and caught.value.strerror
