"""Pages of policies and chains, from made-up results."""

import re
from dataclasses import replace

import pytest
from page_values import DESCRIPTIONS, chain_result, policy_summary

from vampo_core.config import load_config
from vampo_core.evaluation.episodes import compare
from vampo_core.pipeline.pages import write_chain_page
from vampo_core.report.chain import render_chain
from vampo_core.report.page import count, number, within_sentence
from vampo_core.report.policy import render_policy


@pytest.fixture
def config(tmp_path):
    return load_config("pusht", f"run.dir={tmp_path / 'run'}")


def cells(text, heading):
    """The cells of the table row that begins with ``heading``, without marks."""
    row = next(row for row in re.findall(r"<tr>(.*?)</tr>", text, re.DOTALL) if f">{heading}</th>" in row)
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


def test_a_chains_page(config):
    result = chain_result()
    text = render_chain(config, result, DESCRIPTIONS)
    found = compare(result.closed_loop["base"], result.closed_loop["vampo"])
    number_, success, difference, steps, latency = cells(text, "features &lt;after&gt; VAMPO")
    assert (number_, success[:3], steps[:4]) == ("4", "75\N{NARROW NO-BREAK SPACE}", "17.5") and latency.endswith(" ms")
    assert difference.startswith("+50") and difference.endswith(f"p = {found.p_value:.2g}")
    assert cells(text, "features of the base")[2] == "" == cells(text, "the simulator&#39;s expert")[2]
    assert "<th>task-a</th><th>task-b</th>" in text and "Largest coverage" not in text
    assert "iteration 7" in text and "<code>data/&lt;x&gt;</code>" in text
    assert cells(text, "Latent L1")[2].startswith("\N{MINUS SIGN}0.1175")


def test_coverage_is_shown_where_a_simulator_reports_it(config):
    text = render_chain(config, chain_result(coverage=0.2), DESCRIPTIONS)
    assert "Largest coverage" in text and cells(text, "features of the base")[3].startswith("0.350")


def test_no_interval_where_no_episode_differs(config):
    result = chain_result()
    same = replace(result, closed_loop=result.closed_loop | {"vampo": result.closed_loop["base"]})
    text = render_chain(config, same, DESCRIPTIONS)
    assert cells(text, "features &lt;after&gt; VAMPO")[2] == "no episode differs"
    assert "VAMPO's best checkpoint is the base itself" in render_chain(
        config, replace(result, best_iteration=0), DESCRIPTIONS
    )


def test_a_chains_page_lies_beside_its_run(config, tmp_path):
    path = write_chain_page(config, chain_result(), DESCRIPTIONS)
    assert path == tmp_path / "run-chain.html" and path.read_text().startswith("<!doctype html>")


def test_numbers_and_words():
    assert number(-0.125, ".1%") == "\N{MINUS SIGN}12.5\N{NARROW NO-BREAK SPACE}%"
    assert number(0.5, ".2f", True) == "+0.50"
    assert (count(1, "clip"), count(2, "clip")) == ("1 clip", "2 clips")
    assert (within_sentence("Latent L1"), within_sentence("PSNR, dB")) == ("latent L1", "PSNR, dB")
