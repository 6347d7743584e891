"""Freed memory stays with the process: page faults after a few rounds, in processes of their own."""

import json
import platform
import subprocess
import sys

import pytest

PROGRAM = """
import json, resource, sys
import torch
from vampo_core.training.memory import keep_freed_memory
taken = keep_freed_memory() if sys.argv[1] == "kept" else None

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(3):
        x = torch.ones(16 << 20)  # 64 MiB
        y = x + 1
        del x, y
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

for _ in range(5):
    faults()
print(json.dumps([taken, faults()]))
"""


def run(what):
    return json.loads(subprocess.check_output([sys.executable, "-c", PROGRAM, what], text=True))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_freed_blocks_are_used_again():
    _, plain = run("plain")
    taken, kept = run("kept")
    assert taken
    assert kept < plain / 20


def test_other_libraries_are_left_alone(monkeypatch):
    from vampo_core.training import memory

    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: pytest.fail("another C library was touched"))
    assert not memory.keep_freed_memory()
