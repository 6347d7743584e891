"""Atomic writes: whole or absent, and only our own leftovers are removed."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from leftovers import leftover_of

from vampo_core.files import discard, point, publish, remove_leftovers, temporary_beside, write_text


def test_a_failed_write_leaves_the_old_text_and_nothing_else(tmp_path, monkeypatch):
    write_text(tmp_path / "a.txt", "old")

    def fail(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        write_text(tmp_path / "a.txt", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"] and (tmp_path / "a.txt").read_text() == "old"


def test_a_folder_replaces_another_one(tmp_path):
    for content in ("old", "new"):
        temporary = temporary_beside(tmp_path / "folder")
        temporary.mkdir()
        (temporary / content).touch()
        publish(temporary, tmp_path / "folder")
    assert [path.name for path in tmp_path.rglob("*")] == ["folder", "new"]


def test_links_are_replaced_and_folders_discarded(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        point(tmp_path / "latest", name)
    discard(tmp_path / "a")
    assert {path.name for path in tmp_path.iterdir()} == {"b", "latest"}
    assert (tmp_path / "latest").resolve() == tmp_path / "b"


def test_what_a_killed_process_left_is_removed(tmp_path):
    code = (
        "import os, signal, sys; from pathlib import Path; from vampo_core.files import temporary_beside\n"
        "temporary_beside(Path(sys.argv[1])).write_text('half'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "a.txt"], check=False)
    (left,) = tmp_path.iterdir()
    remove_leftovers(tmp_path)
    assert not left.exists()


def test_what_others_write_stays(tmp_path):
    (tmp_path / "sub").mkdir()
    theirs = [
        tmp_path / ".a.tmp",
        tmp_path / ".a.txt.0123456789ab.tmp",
        tmp_path / ".mine.vampo-tmp",
        tmp_path / "a.1-0123456789ab.vampo-tmp",
        leftover_of(tmp_path / "a.txt", pid=os.getppid()),  # being written
        leftover_of(tmp_path / "sub" / "a.txt"),  # under another lock
    ]
    for path in theirs:
        path.write_text("theirs")
    remove_leftovers(tmp_path)
    assert all(path.exists() for path in theirs)
    remove_leftovers(tmp_path, recursive=True)
    assert [path.exists() for path in theirs] == [True] * 5 + [False]
    remove_leftovers(tmp_path / "missing")


def test_folders_and_links_among_leftovers(tmp_path):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").touch()
    leftover_of(tmp_path / "link").symlink_to("kept")
    folder = leftover_of(tmp_path / "folder")
    (folder / "deep").mkdir(parents=True)
    remove_leftovers(tmp_path)
    assert {path.name for path in tmp_path.rglob("*")} == {"kept", "file"}


def test_what_an_ended_process_left_is_removed_before_its_parent_notices(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    while _state(process.pid) != "Z":
        time.sleep(0.01)
    leftover = leftover_of(tmp_path / "file", process.pid)
    leftover.write_text("half")
    remove_leftovers(tmp_path)
    assert not leftover.exists()
    process.wait()


def _state(pid):
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
