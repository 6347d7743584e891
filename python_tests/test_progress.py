"""Progress off a terminal is a few lines, not a bar redrawn at every step."""

import sys
import time

from vampo_core import progress as module
from vampo_core.progress import progress


def test_a_log_gets_a_line_at_the_start_and_one_at_the_end(capsys):
    with progress(desc="work", total=1000) as bar:
        for _ in range(1000):
            bar.update()
            bar.set_postfix(loss=0.5)
    log = capsys.readouterr().err
    lines = log.splitlines()
    assert "\r" not in log
    assert 1 <= len(lines) <= 2
    assert "work" in lines[-1]
    assert "1000/1000" in lines[-1]
    assert "loss=0.5" in lines[-1]


def test_a_line_every_so_many_seconds(capsys, monkeypatch):
    monkeypatch.setattr(module, "SECONDS_BETWEEN_LINES", 0.05)
    for _ in progress(range(40), desc="work"):
        time.sleep(0.01)
    assert 4 <= len(capsys.readouterr().err.splitlines()) <= 12


def test_a_terminal_gets_a_bar(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    for _ in progress(range(3), desc="work"):
        pass
    assert "\r" in capsys.readouterr().err


def test_nothing_where_it_is_disabled(capsys):
    for _ in progress(range(3), desc="work", disable=True):
        pass
    assert capsys.readouterr().err == ""
