"""Every kind of page in a real browser: no errors, charts of a readable size, videos that play."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import tiny_run as tiny
from page_values import chain_result, clip_videos, policy_summary, run_comparison

import vampo_core
from vampo_core.config import load_config
from vampo_core.pipeline.pages import write_report
from vampo_core.pipeline.summary import gather
from vampo_core.report.chain import render_chain
from vampo_core.report.comparison import render_comparison
from vampo_core.report.policy import render_policy

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs the browser Chromium (Debian: apt install chromium)")

CHECKS = """
<script>
for (const text of document.querySelectorAll("svg text")) {
  const height = text.getBoundingClientRect().height;
  if (height > 20) console.error(`a label of a chart is ${height} pixels high`);
}
const width = document.documentElement.scrollWidth;
if (width > innerWidth) console.error(`the page is ${width} pixels wide, the window ${innerWidth}`);
</script>
"""
"""What is looked at in a page once it is laid out."""


def open_page(folder: Path, text: str) -> tuple[list[str], str]:
    """Open a page for two seconds of simulated time.

    Returns:
        Errors on the console, and the page as its script left it.
    """
    path = folder / "page.html"
    path.write_text(text.replace("</body>", f"{CHECKS}</body>"))
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1200,900",
        f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=2000", "--enable-logging=stderr", "--v=0",
        "--dump-dom", path.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return re.findall(r":CONSOLE[:(]\d+\)?\] (.*)", done.stderr), done.stdout


def pages(tiny_run, tmp_path):
    """Pages by kind."""
    base = gather(tiny_run).base
    shutil.copytree(base, tmp_path / base.name, symlinks=True)
    tiny.write_latent_dataset(tmp_path / "data")
    vampo_core.train(tiny.settings(tmp_path, "data.format=vpp", "model.latent_channels=4"))
    return {
        "run": (Path(tiny_run.run.dir) / "report.html").read_text(),
        "pretraining": write_report(load_config(str(base), f"run.dir={tmp_path / base.name}")).read_text(),
        "latents": (tmp_path / "runs/tiny/report.html").read_text(),
        "policy": render_policy(policy_summary()),
        "chain": render_chain(load_config("pusht"), chain_result(coverage=0.2)),
        "chain with videos": render_chain(load_config("pusht"), chain_result(), clip_videos("Expert", "Base", "VAMPO")),
    }


def test_pages_open_without_errors(tiny_run, tmp_path):
    for kind, text in pages(tiny_run, tmp_path).items():
        errors, shown = open_page(tmp_path, text)
        assert errors == [], kind
        assert ("<h2>Configuration</h2>" in shown) and ('id="videos"' in shown) == (kind not in ("policy", "chain"))


@pytest.mark.parametrize("num_runs", [2, 8])
def test_comparisons_open_without_errors(num_runs, tmp_path):
    errors, shown = open_page(tmp_path, render_comparison(run_comparison(num_runs)))
    assert errors == [] and 'id="videos"' in shown and shown.count('<figcaption><b class="run run1">') == 2


def test_videos_play(tiny_run, tmp_path):
    """Every quarter of a second a frame, unless the visitor wants less motion."""
    _, shown = open_page(tmp_path, (Path(tiny_run.run.dir) / "report.html").read_text())
    (frame,) = re.findall(r'<section id="videos" style="--f: ?(\d+);?">', shown)
    assert f'<output id="frame">{int(frame) + 1} / 4</output>' in shown
    _, early = open_page(tmp_path, (Path(tiny_run.run.dir) / "report.html").read_text().replace("}, 250);", "}, 450);"))
    assert re.findall(r'style="--f: ?(\d+)', early)[0] != frame


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ("<script>document.getElementById('none').max</script>", "TypeError"),
        ('<svg viewBox="0 0 100 50" style="width: 1000px"><text y="20">large</text></svg>', "a label of a chart"),
        ('<div style="width: 3000px">wide</div>', "the page is"),
    ],
)
def test_a_broken_page_is_noticed(tmp_path, broken, message):
    errors, _ = open_page(tmp_path, f"<!doctype html><html><body>{broken}</body></html>")
    assert len(errors) == 1 and message in errors[0]
