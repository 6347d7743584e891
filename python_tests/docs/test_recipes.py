"""Recipes that need no large model run as they are written, at a small size."""

import contextlib
import io
import sys
from pathlib import Path

import pytest
import tiny_run as tiny
from doc_pages import ROOT, blocks, commands
from lerobot_dataset import make_episode, write
from test_commands import arguments
from tiny_chain import TINY

import vampo_core
from vampo_core import api
from vampo_core.cli import main

SMALL = [
    "data.resolution=32", "data.num_frames=4", "data.held_out_fraction=0.34", "model.block_out_channels=[32, 32]",
    "pretrain.num_steps=2", "pretrain.decay_steps=0", "grpo.num_iterations=1", "grpo.batch_size=2",
    "grpo.num_generations=2", "optim.decay_steps=0", "optim.warmup_steps=0", "evaluation.num_clips=5",
    "decoder.num_steps=2", "decoder.width=8", *(setting for setting in TINY if setting.split(".")[0] != "data"),
]  # fmt: skip


def recipe(name: str) -> Path:
    return ROOT / "docs" / "recipes" / f"{name}.md"


def run(page: Path, *overrides: str, without: tuple[str, ...] = ()) -> list[str]:
    """Run the page's commands of ours at a small size, each to its end; returns the verbs."""
    verbs = []
    for command in commands(page):
        given = arguments(command)
        if given is None or any(word in command for word in without):
            continue
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            code = main([*given, *SMALL, *overrides])
        assert code == 0, (command, out.getvalue())
        if ">" in command:
            Path(command.rpartition(">")[2].strip()).write_text(out.getvalue())
        verbs.append(given[0])
    return verbs


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_lerobot(tmp_path):
    write(tmp_path / "my_dataset", [make_episode(number, 9) for number in range(6)])
    verbs = run(recipe("lerobot"), "data.stride=1", without=("libero",))
    assert verbs == ["config", "pretrain", "train", "policy", "evaluate"]


def test_pusht(tmp_path):
    tiny.write_dataset(tmp_path / "data" / "pusht", action_dim=2)
    assert run(recipe("pusht"), "data.env=null") == ["train", "evaluate", "sample", "train"]
    assert (tmp_path / "pusht.mp4").is_file() and (tmp_path / "runs/pusht-actions/report.html").is_file()


def test_metaworld():
    small = ("data.env=simulators:line", "data.num_episodes=4", "data.num_workers=0", "data.stride=1")
    assert run(recipe("metaworld"), *small) == ["chain"]
    assert Path("runs/metaworld-chain.html").is_file()


def test_own_reward(tmp_path, monkeypatch, capsys):
    tiny.write_dataset(tmp_path / "data" / "pusht")
    monkeypatch.setattr(vampo_core, "train", lambda *given, **more: api.train(*given, *SMALL, "data.env=null", **more))
    (program,) = blocks(recipe("own-reward"), "python")
    exec(compile(program, "my_reward.py", "exec"), {"__name__": "__main__"})
    assert len(capsys.readouterr().out.splitlines()[-1].split()) >= 2
    assert "moving_parts" in Path("runs/moving/metrics.jsonl").read_text()


def test_own_simulator(tmp_path, monkeypatch):
    pytest.importorskip("pygame", reason="gymnasium's classic control needs pygame")
    (program,) = blocks(recipe("own-simulator"), "python")
    Path("mountain_car.py").write_text(program)
    monkeypatch.syspath_prepend(str(tmp_path))
    small = ("data.num_episodes=2", "data.num_workers=0", "closed_loop.num_episodes=1")
    assert run(recipe("own-simulator"), *small, without=("vampo chain",)) == ["policy", "record"]
    assert len(list(Path("data/car/episodes").glob("0*"))) == 2
    sys.modules.pop("mountain_car", None)
