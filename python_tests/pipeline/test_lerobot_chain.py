"""The chain on the data of a real robot: a published LeRobot dataset, and no simulator."""

from dataclasses import replace
from pathlib import Path

from page_values import chain_result
from real_data import ROOT, needs
from tiny_chain import TINY
from tiny_run import settings

from vampo_core import api
from vampo_core.cli import main
from vampo_core.config import load_config
from vampo_core.report.headline import headline


def of_dataset(tmp_path: Path, *overrides: str):
    """The shared dataset, which is only read: latents go elsewhere."""
    return settings(
        tmp_path, *TINY, "data.env=null", "data.format=lerobot", f"data.root={ROOT / 'lerobot'}", "data.camera=wrist",
        f"data.cache={tmp_path / 'cache'}", "data.resolution=32", "data.stride=2", "reward.action_weight=1",
        "chain.arms=[base, likelihood, vampo]", "chain.policies=[predictive, imagined, latents]", *overrides,
    )  # fmt: skip


@needs("lerobot")
def test_it_ends_with_a_page_and_a_sentence(tmp_path, capsys):
    before = sorted((ROOT / "lerobot").rglob("*"))
    config = of_dataset(tmp_path)
    path = tmp_path / "config.yaml"
    path.write_text(config.to_yaml())
    assert main(["chain", "--config", str(path)]) == 0
    out = capsys.readouterr().out
    assert "closed loop: none, as closed_loop.env is null" in out
    result = api.run_chain(config)  # everything is found
    assert result.closed_loop == {} and set(result.policies) == {"base", "likelihood", "vampo", "latents"}
    sentence = headline(config, result).sentence
    assert "the actions in held-out videos are off by" in sentence and "there is no simulator" in sentence
    assert out.splitlines()[-1] == sentence
    page = next(tmp_path.rglob("*-chain.html")).read_text()
    assert "Held-out videos" in page and "Success in closed loop" not in page and "lerobot" in page
    assert sorted((ROOT / "lerobot").rglob("*")) == before  # nothing is written into it
    assert list((tmp_path / "cache").rglob("*.safetensors"))


@needs("lerobot")
def test_a_policy_needs_a_simulator_to_act_in(tmp_path, capsys):
    path = tmp_path / "config.yaml"
    path.write_text(of_dataset(tmp_path).to_yaml())
    assert main(["policy", "eval", "--config", str(path)]) == 2
    assert "closed_loop.env and data.env are null, expected the simulator to act in" in capsys.readouterr().err


def test_a_headline_says_no_more_than_was_found():
    config = load_config("pusht", "data.env=null", "data.format=vpp")
    found = headline(config, replace(chain_result(), closed_loop={}, policies={}))
    base, vampo = (chain_result().arms[name].evaluation.l1.mean for name in ("base", "vampo"))
    assert (
        f"<VAMPO> held-out videos are off by {vampo:.3f} instead of {base:.3f} (-20.0 %, difference" in found.sentence
    )
    assert found.outcome in ("better", "unclear") and found.change == "-20 %"
