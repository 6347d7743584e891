"""Pages of policies and chains, from made-up results."""

import re
from dataclasses import replace

import pytest
from page_values import action_errors, arm_result, chain_result, clip_videos, closed_loop, policy_summary

from vampo_core.config import load_config
from vampo_core.evaluation.episodes import compare
from vampo_core.pipeline.pages import write_chain_page
from vampo_core.report.chain import render_chain
from vampo_core.report.page import count, number, within_sentence
from vampo_core.report.policy import render_policy


@pytest.fixture
def config(tmp_path):
    return load_config("pusht", f"run.dir={tmp_path / 'run'}")


def cells(text, heading, number=0):
    """The cells of one of the table rows that begin with ``heading``, without marks."""
    row = [row for row in re.findall(r"<tr>(.*?)</tr>", text, re.DOTALL) if f">{heading}</th>" in row][number]
    found = re.findall(r"<td[^>]*>(.*?)</td>", row, re.DOTALL)
    return [re.sub(r"[ \n]+", " ", re.sub(r"<[^>]*>", "", cell)).strip() for cell in found]


def test_a_policys_page():
    run = policy_summary()
    text = render_policy(run)
    before, after, difference = cells(text, "Action L1")
    assert before.startswith(f"{run.before.action_l1.mean:.4f} ") and " to " in after
    assert difference.startswith("\N{MINUS SIGN}0.4533")
    assert "checkpoint 4 of" in text and "chunks of 4 actions, 2 executed" in text
    assert "3 frames of 2 held-out episodes, with\n1 sample each" in text
    assert "&lt;policy&gt;" in text and "<policy>" not in text
    titles = re.findall(r"<figcaption><b>(.*?)</b>", text)
    assert titles[:2] == ["Action L1 by place in the chunk", "Held out: action L1"] and "Learning rate" in titles


MINUS = "\N{MINUS SIGN}"


def test_a_chains_page(config):
    result = chain_result()
    text = render_chain(config, result)
    found = compare(result.closed_loop["base"], result.closed_loop["vampo"])
    (success,) = cells(text, "&lt;VAMPO&gt;")
    assert success.startswith("75\N{NARROW NO-BREAK SPACE}") and " +50" in success
    assert success.endswith(f"p = {found.p_value:.2g}")
    assert "p =" not in cells(text, "Base")[0] and "p =" not in cells(text, "The simulator&#39;s expert")[0]
    number_, steps, latency = cells(text, "&lt;VAMPO&gt;: acts on predictive features", -1)
    assert (number_, steps[:4]) == ("4", "17.5") and latency.endswith(" ms")
    assert "<th>task-a</th><th>task-b</th>" in text and "Largest coverage" not in text
    assert "&lt;VAMPO&gt;: iteration 7." in text and "<code>data/&lt;x&gt;</code>" in text
    base, vampo = cells(text, "Latent L1")
    assert base.startswith("0.5875 ") and vampo.startswith("0.4700 ") and f" {MINUS}0.1175" in vampo
    assert 'id="videos"' not in text and "<script>" not in text
    assert cells(text, "&lt;VAMPO&gt;: acts on predictive features", 1)[1].startswith(f"{MINUS}0.1133"), "action error"


def test_a_chains_page_leads_with_its_sentence(config):
    text = render_chain(config, chain_result())
    sentence = (
        "After 7 iterations of &lt;VAMPO&gt; the robot that acts on predictive features succeeds in 3 of 4 episodes, "
        "before in 1: no clear difference (+50 points, 95\N{NO-BREAK SPACE}% interval "
    )
    assert text.index(sentence) < text.index("<section>")
    assert '<div class="verdict even">\n<div class="big">+50 <small>points' in text


def test_a_chains_page_of_all_arms_and_policies(config):
    """The base with scaled actions has no video of its own and no policy on features."""
    arms = {
        "base": arm_result("Base", 0.5, unit=None),
        "likelihood": arm_result("Likelihood", 0.45, 9, "update"),
        "vampo": arm_result("VAMPO", 0.4, 0),
    }
    arms = {"base": arms["base"], "base_scaled": replace(arms["base"], title="Scaled"), **arms}
    fewer, all_ = closed_loop(*[False] * 20), closed_loop(*[True] * 18, False, False)
    chosen = load_config(
        config, f"chain.arms=[{','.join(arms)}]", "chain.policies=[imagined, predictive, latents]", "run.dir=runs/x"
    )
    loops = dict.fromkeys([*chosen.chain.controllers, "expert"], fewer) | {"imagined-vampo": all_, "latents": all_}
    result = replace(chain_result(), arms=arms, closed_loop=loops, policies={"latents": action_errors(0.3)})
    text = render_chain(chosen, result, clip_videos("Expert", "Base", "Likelihood", "VAMPO"))
    assert "<th>Acts on its imagined video</th><th>Acts on predictive features</th>" in text
    assert [cell[:2] for cell in cells(text, "Scaled")] == ["0\N{NARROW NO-BREAK SPACE}", ""]
    imagined, predictive = cells(text, "VAMPO")
    assert imagined.startswith("90") and "+90" in imagined and predictive.endswith("no episode differs")
    assert 'colspan="2"' in text and "+90" in cells(text, "Sees only the current frame")[0], "against the first policy"
    assert "Likelihood: update 9." in text and "VAMPO: the best checkpoint is the base itself." in text
    assert len(cells(text, "Latent L1")) == 3, "scaled actions leave the video as it is"
    assert text.count('aria-label="Likelihood"') == 2 and '<output id="frame">1 / 3</output>' in text
    assert '<div class="verdict good">' in text


def test_coverage_is_shown_where_a_simulator_reports_it(config):
    text = render_chain(config, chain_result(coverage=0.2))
    assert "Largest coverage" in text and cells(text, "Base: acts on predictive features", -1)[1].startswith("0.350")


def test_no_interval_where_no_episode_differs(config):
    result = chain_result()
    same = replace(result, closed_loop=result.closed_loop | {"vampo": result.closed_loop["base"]})
    assert cells(render_chain(config, same), "&lt;VAMPO&gt;")[0].endswith("no episode differs")


def test_a_chains_page_lies_beside_its_run(config, tmp_path):
    path = write_chain_page(config, chain_result())
    assert path == tmp_path / "run-chain.html" and path.read_text().startswith("<!doctype html>")


def test_numbers_and_words():
    assert number(-0.125, ".1%") == "\N{MINUS SIGN}12.5\N{NARROW NO-BREAK SPACE}%"
    assert number(0.5, ".2f", True) == "+0.50"
    assert (count(1, "clip"), count(2, "clip")) == ("1 clip", "2 clips")
    assert (within_sentence("Latent L1"), within_sentence("PSNR, dB")) == ("latent L1", "PSNR, dB")
