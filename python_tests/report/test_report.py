"""The report of a run: whole, offline, right about what happened, and honest where it did not work."""

import base64
import io
import json
import math
import re
import shutil
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import av
import numpy as np
import pytest
import tiny_run as tiny
import torch
from PIL import Image

import vampo_core
from vampo_core import api
from vampo_core.cli import commands
from vampo_core.cli.parser import main
from vampo_core.data.video import count_frames, read_frames
from vampo_core.evaluation.predictor import EvalResult
from vampo_core.evaluation.statistics import Metric, bootstrap, outcome, paired_difference
from vampo_core.pipeline.pages import write_report
from vampo_core.pipeline.shown_clips import false_colours
from vampo_core.pipeline.summary import gather
from vampo_core.report import charts
from vampo_core.report.run import render_run
from vampo_core.report.sheet import make_sheet
from vampo_core.training.metrics import read_metrics

VOID = {"meta", "input", "img", "br", "link"}


class Page(HTMLParser):
    """Checks that elements are closed in order; gathers attributes, titles and text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.links, self.headings, self.words = [], [], [], []
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag, attributes):
        if tag not in VOID:
            self.open.append(tag)
        self.links += [value for name, value in attributes if name in ("src", "href")]

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, tag

    def handle_data(self, data):
        self.words.append(data)
        if self.open and self.open[-1] in ("h1", "h2"):
            self.headings.append(data)


@pytest.fixture(scope="module")
def text(tiny_run):
    """The report that training wrote."""
    return (Path(tiny_run.run.dir) / "report.html").read_text()


def test_training_leaves_a_report_that_needs_nothing_else(tiny_run, text):
    page = Page(text)
    expected = ["tiny", "Held-out metrics", "Predictions", "Frame by frame, clip by clip", "Training", "Diagnostics"]
    assert [h for h in page.headings if h in expected] == expected
    assert not page.links and not re.search(r"https?://|@import|url\((?!data:)", text)
    assert "cross &lt;the&gt; scene &amp; stop" in text and "<the>" not in text
    assert "num_generations: 2" in text and "VAMPO" in page.words
    for chart in re.findall(r"<svg.*?</svg>", text):
        ElementTree.fromstring(chart)


def test_it_shows_the_clips_that_were_predicted(tiny_run, text):
    run = gather(tiny_run)
    sheets = re.findall(r"--sheet:url\(data:image/webp;base64,([^)]*)\);--rows:(\d+);--frames:(\d+)", text)
    assert len(sheets) == len(run.videos) == 5
    for (data, rows, frames), video in zip(sheets, run.videos, strict=True):
        assert (rows, frames) == ("5", "4")
        picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))
        rimmed = picture.reshape(5, tiny.SIZE + 2, 4, tiny.SIZE + 2, 3).transpose(0, 2, 1, 3, 4)
        tiles = rimmed[:, :, 1:-1, 1:-1]
        assert np.array_equal(rimmed[:, :, 0, 1:-1], tiles[:, :, 0]) and np.array_equal(
            rimmed[:, :, -1, -1], tiles[:, :, -1, -1]
        )
        for tile, panel in zip(tiles, video.panels.values(), strict=True):
            assert np.abs(tile.astype(float) - panel.permute(0, 2, 3, 1).numpy() * 255).max() <= 0.51
    labels = ["Expert", "Base", "VAMPO", "Base error", "VAMPO error"]
    assert list(run.videos[0].panels) == labels
    panels = run.videos[0].panels
    assert (panels["Base"] - panels["VAMPO"]).abs().max() > 0
    assert len({video.clip_id for video in run.videos}) == 5


def test_before_is_the_base_and_after_is_the_newest_checkpoint(tiny_run, text):
    run, rows = gather(tiny_run), read_metrics(Path(tiny_run.run.dir) / "metrics.jsonl")
    state = json.loads((Path(tiny_run.run.dir) / "checkpoints/latest/trainer_state/state.json").read_text())
    assert run.step == 3 and run.base is not None and run.base.name.startswith("base-")
    for name in ("l1", "cosine", "reward"):
        assert getattr(run.before, name).mean == pytest.approx(state["counters"]["before"][name]["mean"], rel=1e-5)
        assert getattr(run.after, name).mean == pytest.approx(rows[-1][f"eval_{name}"], rel=1e-5)
    assert run.before.l1.mean != run.after.l1.mean
    assert f"{run.before.l1.mean:.4f}" in text and f"{run.after.psnr.mean:.2f}" in text
    assert run.videos[0].l1["VAMPO"] == pytest.approx(run.after.per_clip["l1"][0], rel=1e-5)


def test_samples_are_videos_that_players_show(tiny_run):
    files = sorted((Path(tiny_run.run.dir) / "samples").iterdir())
    assert [file.name for file in files] == [f"clip-{n:02d}.mp4" for n in range(1, 6)]
    assert count_frames(files[0]) == 4
    height, width = read_frames(files[0], [0]).shape[1:3]
    assert height % 2 == width % 2 == 0 and width > 5 * 192
    with av.open(str(files[0])) as container:
        codec = container.streams.video[0].codec_context
        assert (codec.name, codec.pix_fmt) == ("h264", "yuv420p")


@pytest.fixture
def copy_of_run(tiny_run, tmp_path):
    """The run in another folder, without its base."""
    folder = tmp_path / "moved"
    shutil.copytree(tiny_run.run.dir, folder, symlinks=True)
    (folder / "report.html").unlink()
    return folder


def test_report_by_command_and_without_a_base(tiny_run, copy_of_run, capsys):
    override = f"run.dir={copy_of_run}"
    assert main(["report", "--config", str(copy_of_run), override]) == 0
    assert str(copy_of_run / "report.html") in capsys.readouterr().out
    text = (copy_of_run / "report.html").read_text()
    Page(text)
    assert "base model is missing" in text and "Base error" not in text and "VAMPO error" in text
    run = gather(vampo_core.load_config(str(copy_of_run), override))
    assert run.base is None and run.before.psnr is None and run.after.psnr is not None
    assert run.before.l1.mean == pytest.approx(gather(tiny_run).before.l1.mean, rel=1e-5)


def test_report_of_the_base_itself(tiny_run, tmp_path):
    base = gather(tiny_run).base
    shutil.copytree(base, tmp_path / base.name, symlinks=True)
    config = vampo_core.load_config(str(base), f"run.dir={tmp_path / base.name}")
    run = gather(config)
    assert run.base is None and run.before.l1.mean != run.after.l1.mean
    text = write_report(config).read_text()
    Page(text)
    assert "checkpoint 2 of 2 steps" in text and "Pretrained error" in text and ">VAMPO" not in text


def test_no_run_no_report(tmp_path, capsys):
    assert main(["report", "--config", "pusht", f"run.dir={tmp_path / 'none'}"]) == 1
    assert "none" in capsys.readouterr().err


def test_a_report_that_fails_does_not_undo_the_training(tiny_run, copy_of_run, monkeypatch):
    def fail(config):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(api, "write_report", fail)
    config = vampo_core.load_config(tiny_run, f"run.dir={copy_of_run.parent / 'new'}")
    config = replace(config, model=replace(config.model, pretrained=str(Path(tiny_run.run.dir) / "checkpoints/latest")))
    with pytest.warns(RuntimeWarning, match=r"No space left on device.*vampo report"):
        result = vampo_core.train(config, "grpo.num_iterations=1")
    assert result.checkpoint.name == "step-1" and not (Path(result.config.run.dir) / "report.html").exists()


def test_latents_without_a_codec_are_shown_in_false_colours(tmp_path):
    tiny.write_latent_dataset(tmp_path / "data")
    config = tiny.settings(tmp_path, "data.format=vpp", "model.latent_channels=4")
    vampo_core.train(config)
    text = (tmp_path / "runs/tiny/report.html").read_text()
    Page(text)
    assert "no codec" in text and "PSNR" not in text and "Base error" in text
    assert len(re.findall("--sheet:", text)) == 5


def test_false_colours_follow_the_strongest_components():
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, 3, 6, 8, 8, generator=generator) * torch.tensor([9.0, 6, 3, 0.1, 0.1, 0.1]).view(6, 1, 1)
    rotation = torch.linalg.qr(torch.randn(6, 6, generator=generator))[0]
    colours = false_colours(torch.einsum("dc,...chw->...dhw", rotation, hidden))(
        torch.einsum("dc,...chw->...dhw", rotation, hidden)
    )
    assert colours.shape == (2, 3, 3, 8, 8) and colours.min() >= 0 and colours.max() <= 1
    for channel in range(3):
        pair = torch.stack([colours[:, :, channel].flatten(), hidden[:, :, channel].flatten()])
        assert torch.corrcoef(pair)[0, 1].abs() > 0.98


def result_of(l1, episodes=None):
    """An evaluation with these L1 distances of its clips."""
    episodes = [str(i) for i in range(len(l1))] if episodes is None else episodes
    values = {"l1": list(l1), "cosine": [0.5] * len(l1), "reward": [0.5 - x for x in l1]}
    metrics = {name: bootstrap(value, episodes) for name, value in values.items()}
    frames = {name: [sum(value) / len(value)] * 3 for name, value in values.items()}
    return EvalResult(
        **metrics, num_clips=len(l1), num_samples=1, per_frame=frames, per_clip=values, episode_ids=episodes
    )


BEFORE = result_of([0.50, 0.60, 0.70, 0.80])
BETTER, WORSE = result_of([0.40, 0.49, 0.58, 0.71]), result_of([0.60, 0.71, 0.82, 0.89])
UNCLEAR = result_of([0.40, 0.70, 0.65, 0.95])


@pytest.mark.parametrize(
    ("after", "expected", "words"),
    [
        (BETTER, "better", ["closer to the expert", "closer on 4 of 4"]),
        (WORSE, "worse", ["further from the expert", "closer on 0 of 4"]),
        (UNCLEAR, "unclear", ["No clear difference", "closer on 2 of 4"]),
    ],
)
def test_the_verdict_says_what_the_interval_says(tiny_run, after, expected, words):
    assert outcome(BEFORE, after, "l1") == expected
    assert outcome(BEFORE, after, "reward") == expected
    assert outcome(BEFORE, after, "cosine") == "unclear"
    text = render_run(replace(gather(tiny_run), before=BEFORE, after=after))
    text = text[text.index('class="verdict') : text.index("Held-out metrics")]
    assert all(word in text for word in words)
    change = (after.l1.mean - BEFORE.l1.mean) / BEFORE.l1.mean
    assert f"{abs(change):.1%}"[:-1] in text
    low = paired_difference(BEFORE, after, "l1").ci95[0] / BEFORE.l1.mean
    assert f"{abs(low):.1%}"[:-1] in text


def test_one_clip_proves_nothing(tiny_run):
    before, after = result_of([0.5]), result_of([0.1])
    assert outcome(before, after, "l1") == "unclear"
    run = replace(gather(tiny_run), before=before, after=after)
    text = render_run(run)
    assert "too few for an interval" in text
    table = text[text.index("<table>") : text.index("</table>")]
    assert "0.5000" in table and "<small>" not in table and not re.search('class="(good|bad)"', table)
    assert "Difference of latent L1" not in text


@pytest.mark.parametrize(
    ("after", "words"),
    [
        (BEFORE, "no clip differs; closer on 0 of 4"),
        (result_of([0.4, math.nan, 0.5, 0.6]), "Predictions are not finite"),
    ],
)
def test_nothing_is_said_where_nothing_differs_or_is_not_finite(tiny_run, after, words):
    text = render_run(replace(gather(tiny_run), before=BEFORE, after=after))
    Page(text)
    assert words in text and not re.search('class="(verdict )?(good|bad)"', text)


def test_the_table_on_the_command_line_and_its_json(tiny_run, tmp_path, capsys):
    lines = commands.comparison_table(BEFORE, BETTER).splitlines()
    assert "4 held-out clips of 4 episodes" in lines[0]
    row = next(line.split() for line in lines if line.split()[:1] == ["l1"])
    assert row[1:4] == ["0.6500", "0.5450", "-16.2%"] and row[-1] == "better"
    assert row[4:6] == ["-0.1050", "[-0.1150,"] and row[6].endswith("]")
    assert next(line for line in lines if "cosine" in line).endswith("+0.0000"), "no clip differs: no interval"

    output, base = tmp_path / "out.json", gather(tiny_run).base
    run = ["evaluate", "--config", tiny_run.run.dir, "--checkpoint", tiny_run.run.dir]
    assert main([*run, "--against", str(base), "--output", str(output)]) == 0
    printed, values = capsys.readouterr().out, json.loads(output.read_text())
    after, before = EvalResult.from_dict(values["result"]), EvalResult.from_dict(values["against"])
    assert f"{before.psnr.mean:.4f}" in printed and f"{after.ssim.mean:.4f}" in printed
    for name in after.metrics:
        difference = Metric(values["difference"][name]["mean"], tuple(values["difference"][name]["ci95"]))
        assert difference == paired_difference(before, after, name)

    assert main([*run, "--output", str(output)]) == 0
    values, printed = json.loads(output.read_text()), capsys.readouterr().out
    assert list(values) == ["result"] and EvalResult.from_dict(values["result"]) == after
    assert f"[{after.l1.ci95[0]:.4f}, {after.l1.ci95[1]:.4f}]" in printed
    assert main([*run, "--output", str(tmp_path / "none" / "out.json")]) == 2


def test_an_evaluation_that_is_not_finite_fails(tiny_run, monkeypatch, capsys):
    monkeypatch.setattr(commands.api, "evaluate", lambda *_: result_of([0.4, math.nan, 0.5, 0.6]))
    assert main(["evaluate", "--config", tiny_run.run.dir, "--checkpoint", tiny_run.run.dir]) == 1
    printed = capsys.readouterr()
    assert "nan" in printed.out and printed.err == f"vampo evaluate: predictions of {tiny_run.run.dir} are not finite\n"


def test_the_loop_measures_only_latents(tiny_run):
    state = json.loads((Path(tiny_run.run.dir) / "checkpoints/latest/trainer_state/state.json").read_text())
    assert state["counters"]["last"]["psnr"] is None


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 10, [0, 2, 4, 6, 8, 10]), (-0.013, 0.031, [-0.01, 0, 0.01, 0.02, 0.03]), (61, 99, [70, 80, 90])],
)
def test_ticks_are_round(low, high, expected):
    assert charts.ticks(low, high) == pytest.approx(expected)
    for power in range(-6, 7):
        marks = charts.ticks(low * 10.0**power, high * 10.0**power)
        assert marks == pytest.approx([mark * 10.0**power for mark in expected])


def test_lines_are_where_their_values_are():
    points = [(1.0, 10.0), (2.0, 30.0), (3.0, 20.0)]
    chart = charts.line_chart([charts.Series("a", points), charts.Series("b", points[:1])], title="<T>", x_label="x")
    assert "&lt;T&gt;" in chart
    svg = ElementTree.fromstring(re.search("<svg.*</svg>", chart)[0])
    path = next(p.get("d") for p in svg.iter("path") if p.get("class") == "line vampo")
    (x1, y1), (x2, y2), (x3, y3) = (map(float, p.split()) for p in path[1:].split("L"))
    assert x1 < x2 < x3 and x2 - x1 == pytest.approx(x3 - x2, abs=0.11)
    assert y2 < y3 < y1 and y1 - y3 == pytest.approx(y3 - y2, abs=0.11)
    readouts = [t.text for t in svg.iter("text") if t.get("class") == "readout"]
    assert readouts == ["x 1: a 10, b 10", "x 2: a 30", "x 3: a 20"]
    assert charts.line_chart([charts.Series("a", [])], title="t", x_label="x") == ""


def test_long_histories_are_thinned_and_keep_their_mean():
    points = [(float(i), float(i % 7)) for i in range(10_000)]
    chart = charts.line_chart([charts.Series("a", points)], title="t", x_label="x")
    assert len(chart) < 120_000 and 200 < chart.count('class="readout"') <= 240


def test_moving_average():
    points = [(float(i), y) for i, y in enumerate([0.0, 3.0, 6.0, 0.0, 0.0])]
    assert [y for _, y in charts.moving_average(points, 3)] == [1.5, 3.0, 3.0, 2.0, 0.0]


def test_bars_are_green_where_better():
    values = [("a", 0.2), ("b", -0.3), ("c", -0.1)]
    for higher_is_better, order in ((False, ["b", "c", "a"]), (True, ["a", "c", "b"])):
        chart = charts.bar_chart(values, title="t", x_label="x", higher_is_better=higher_is_better)
        assert re.findall(r'readout"[^>]*>(\w)', chart) == order
        colours = re.findall(r'class="bar (\w+)"', chart)
        assert colours == (["good", "good", "bad"] if not higher_is_better else ["good", "bad", "bad"])


@pytest.mark.parametrize(("size", "num_frames", "shown"), [((20, 30), 3, (20, 30)), ((640, 480), 2, (320, 240))])
def test_sheets_are_of_a_size_that_browsers_take(size, num_frames, shown):
    sheet = make_sheet([torch.rand(num_frames, 3, *size)] * 2)
    picture = Image.open(io.BytesIO(base64.b64decode(sheet.uri.partition(",")[2])))
    assert sheet.panel_size == shown and (sheet.num_panels, sheet.num_frames) == (2, num_frames)
    assert picture.size == (num_frames * (shown[1] + 2), 2 * (shown[0] + 2))


def test_writing_again_replaces_the_report(tiny_run, copy_of_run):
    config = replace(tiny_run, run=replace(tiny_run.run, dir=str(copy_of_run)))
    (copy_of_run / "report.html").write_text("old")
    assert write_report(config) == copy_of_run / "report.html"
    assert (copy_of_run / "report.html").stat().st_size > 10_000 and not list(copy_of_run.rglob("*.tmp"))
