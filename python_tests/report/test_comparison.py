"""The page that compares runs: values and differences, what cannot be compared, and what is said where data is gone."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_run as tiny
from page_values import action_errors, closed_loop, compared_run, video_result
from policy_runs import TINY_POLICY

import vampo_core
from vampo_core import Policy
from vampo_core.cli.parser import main
from vampo_core.config import ConfigError, load_config
from vampo_core.evaluation.episodes import compare
from vampo_core.evaluation.predictor import EvalResult
from vampo_core.evaluation.statistics import paired_difference
from vampo_core.pipeline.pairing import Measured, other_clips, other_yardstick, why_unpaired
from vampo_core.report.comparison import render_comparison
from vampo_core.report.values import RunComparison
from vampo_core.training.checkpoint import find_checkpoint, read_counters

RUNS = ("first", "second", "shorter")


@pytest.fixture(scope="module")
def runs(tiny_run, tmp_path_factory):
    """Folder of three short runs: the second differs in a learning rate, the third in the length of its clips."""
    folder = tmp_path_factory.mktemp("compared")
    shutil.copytree(Path(tiny_run.run.dir).parents[1], folder, symlinks=True, dirs_exist_ok=True)
    shutil.copytree(folder / "runs/tiny", folder / "runs/first", symlinks=True)
    load_config(folder / "runs/first", f"data.root={folder}/data").save(folder / "runs/first/config.yaml")
    vampo_core.train(tiny.settings(folder, "optim.lr=0.3", f"run.dir={folder}/runs/second"))
    vampo_core.train(tiny.settings(folder, "data.num_frames=3", f"run.dir={folder}/runs/shorter"))
    return folder / "runs"


def best_of(run):
    return EvalResult.from_dict(read_counters(find_checkpoint(run / "checkpoints/best"))["last"])


def test_two_runs_on_the_same_clips(runs, tmp_path, capsys):
    page = tmp_path / "page.html"
    assert main(["compare", str(runs / "first"), str(runs / "second"), "--output", str(page)]) == 0
    printed, text = capsys.readouterr().out, page.read_text()
    first, second = best_of(runs / "first"), best_of(runs / "second")
    difference = paired_difference(first, second, "l1")
    assert f"{second.l1.mean:9.4f}   {difference:+.4f}" in printed and str(page) in printed
    shown = f"{abs(difference.mean):.4f}"
    row = re.search(r"Latent L1\n.*?</tr>", text, re.DOTALL)[0]
    assert f"{first.l1.mean:.4f}" in row and f"{second.l1.mean:.4f}" in row and shown in row
    assert "<code>optim.lr</code>" in text and "<code>0.3</code>" in text
    assert "<code>run.dir</code>" not in text and "<code>run.seed</code>" not in text, "only what differs"
    assert text.count('aria-label="second"') == 5 and text.count('aria-label="Expert"') == 5
    assert not re.search(r"https?://|@import|url\((?!data:)", text)
    assert "run run0" in text and "run run1" in text and "2 · second" in text


def test_videos_are_the_predictions_of_the_best_checkpoints(runs, tmp_path):
    compared = vampo_core.compare_runs(runs / "second", runs / "first", output=tmp_path / "page.html")
    assert [run.name for run in compared.runs] == ["second", "first"] and compared.page == tmp_path / "page.html"
    assert list(compared.videos[0].panels) == ["Expert", "second", "first"]
    assert compared.runs[0].best_step < compared.runs[0].last_step, "such steps are too long"
    for run in compared.runs:
        measured = run.best.per_clip["l1"]
        assert [video.l1[run.name] for video in compared.videos] == pytest.approx(measured, rel=1e-5), run.name


def test_runs_on_other_clips_have_no_differences(runs, tmp_path, capsys):
    compared = vampo_core.compare_runs(*(runs / name for name in RUNS), output=tmp_path / "page.html")
    assert [run.unpaired for run in compared.runs] == [None, None, "other held-out clips (data.num_frames)"]
    assert compared.runs[1].differences and not compared.runs[2].differences
    text = (tmp_path / "page.html").read_text()
    assert "shorter is not compared with first: it has other held-out clips (data.num_frames)." in text
    assert "not comparable" in text and "Without videos, as their clips differ: shorter." in text
    assert 'aria-label="shorter"' not in text and f"{compared.runs[2].best.l1.mean:.4f}" in text
    assert main(["compare", *(str(runs / name) for name in RUNS), "--output", str(tmp_path / "page.html")]) == 0
    assert "shorter is not compared: other held-out clips" in capsys.readouterr().out


def test_another_codec_has_latents_of_another_scale(runs, tmp_path):
    for name in ("first", "second"):
        shutil.copytree(runs / name, tmp_path / name, symlinks=True)
    for weights in (tmp_path / "second").glob("checkpoints/*/codec/*.safetensors"):
        weights.write_bytes(weights.read_bytes() + b" ")
    compared = vampo_core.compare_runs(tmp_path / "first", tmp_path / "second")
    assert "another codec" in compared.runs[1].unpaired and not compared.runs[1].differences
    assert list(compared.videos[0].panels) == ["Expert", "first"]


def test_without_data_there_is_a_page_that_says_why(runs, tmp_path, capsys):
    for name in ("first", "second"):
        shutil.copytree(runs / name, tmp_path / name, symlinks=True)
        config = load_config(tmp_path / name, f"data.root={tmp_path}/gone", "data.env=pusht", "data.resolution=32")
        config.save(tmp_path / name / "config.yaml")
    assert main(["compare", str(tmp_path / "first"), str(tmp_path / "second")]) == 0
    text = (tmp_path / "first-compare.html").read_text()
    assert f"There are no videos: data.root is &#39;{tmp_path}/gone&#39;" in text and 'id="videos"' not in text
    assert "no videos: data.root is" in capsys.readouterr().out
    assert not (tmp_path / "gone").exists(), "nothing is recorded for a page"


def test_runs_that_do_not_go_together_are_refused_in_one_line(runs, tmp_path, capsys):
    shutil.copytree(runs / "first", tmp_path / "policy", symlinks=True)
    for checkpoint in (tmp_path / "policy/checkpoints").glob("step-*"):
        (checkpoint / "policy.json").write_text("{}")
    first = str(runs / "first")
    for arguments, words, code in (
        ([first, str(tmp_path / "policy")], "'first', the run of a predictor, and 'policy', the run of a policy", 2),
        ([first], "expected 2 to 8", 2),
        ([first, f"{runs}/../runs/first"], "twice", 2),
        ([first, str(tmp_path / "none")], "none", 1),
        ([first, str(runs / "second"), "--output", str(tmp_path / "x/y.html")], "a folder that exists", 2),
        ([first, str(runs / "second"), "--output", str(tmp_path / "page.pdf")], "(.html)", 2),
        ([first, str(runs / "second"), "--output", first + "/report.html"], "did not write", 2),
    ):
        assert main(["compare", *arguments]) == code
        error = capsys.readouterr().err
        assert error.startswith("vampo compare: ") and error.count("\n") == 1 and words in error


def test_an_own_page_is_replaced(runs, tmp_path):
    page = tmp_path / "page.html"
    for _ in range(2):
        vampo_core.compare_runs(runs / "first", runs / "second", output=page)
    page.write_text("<html>mine</html>")
    with pytest.raises(ConfigError, match="did not write"):
        vampo_core.compare_runs(runs / "first", runs / "second", output=page)
    assert page.read_text() == "<html>mine</html>"


def test_policies_with_their_episodes(runs, tmp_path):
    tiny.write_dataset(tmp_path / "data", action_dim=2)
    base = f"policy.predictor={runs / 'first'}"
    for name, rate in (("one", "1e-3"), ("two", "1e-2")):
        config = tiny.settings(tmp_path, *TINY_POLICY, base, f"policy.lr={rate}", f"run.dir={tmp_path}/runs/{name}")
        vampo_core.train_policy(config)
    loops = {"one": closed_loop(True, False, False, False), "two": closed_loop(True, True, True, False)}
    for name, loop in loops.items():
        checkpoint = tmp_path / "runs" / name / "checkpoints/best"
        folder = tmp_path / "runs/closed_loop-1" / Policy.from_pretrained(checkpoint).fingerprint()
        folder.mkdir(parents=True)
        rows = (json.dumps(vars(episode)) for episode in loop.episodes)
        (folder / "episodes.jsonl").write_text("".join(f"{row}\n" for row in rows))
    compared = vampo_core.compare_runs(tmp_path / "runs/one", tmp_path / "runs/two")
    one, two = compared.runs
    assert one.success is None and two.success == compare(loops["one"], loops["two"])
    assert two.differences["action_l1"] == paired_difference(one.best, two.best, "action_l1")
    text = compared.page.read_text()
    assert "+50 points" in text and "2 / 0, p = 0.5" in text and "Held-out videos" not in text
    assert "<code>policy.lr</code>" in text


def test_names_are_escaped_and_what_is_missing_stays_empty():
    first = compared_run("<a>", video_result(0.5))
    better, reason = video_result(0.3), {"cosine": "another judge"}
    other = compared_run(
        "b", better, differences={"l1": paired_difference(first.best, better, "l1")}, not_compared=reason, last_step=3
    )
    text = render_comparison(RunComparison(runs=[first, other], settings={}, videos=[], page=Path("x.html")))
    assert "&lt;a&gt;" in text and "<a>" not in text
    assert '<div class="good"><b>\N{MINUS SIGN}0.2350</b>' in text and "another judge" in text
    assert "None: the runs have the same configuration." in text and "Not finished: b." in text
    assert "Success in closed loop" not in text and "Held-out videos" not in text


def test_episodes_that_are_not_the_same_are_not_compared():
    loops = closed_loop(True, False), closed_loop(True, True, True)
    runs = [
        compared_run(name, action_errors(0.5), kind="policy", before=action_errors(0.9), closed_loop=loop, acted_step=7)
        for name, loop in zip("ab", loops, strict=True)
    ]
    runs.append(replace(runs[0], name="c", closed_loop=None))
    text = render_comparison(RunComparison(runs=runs, settings={}, videos=[], page=Path("x.html")))
    assert "other episodes" in text and "no episodes of this policy were found" in text and "p = " not in text


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (["data.stride=5"], ["data.stride"]),
        (["evaluation.num_clips=8", "data.num_episodes=3"], ["data.num_episodes", "evaluation.num_clips"]),
        (["data.root=elsewhere"], []),
        (["data.weights=[1.0]", "data.num_workers=2", "grpo.batch_size=4"], []),
    ],
)
def test_settings_that_decide_the_clips(changes, expected):
    assert other_clips(load_config("pusht"), load_config("pusht", *changes)) == expected


def test_without_a_simulator_the_folder_decides_the_clips():
    config = load_config("pusht", "data.env=null")
    assert other_clips(config, load_config(config, "data.root=elsewhere", "data.num_episodes=3")) == ["data.root"]
    assert other_clips(config, load_config(config, "data.root=./data/pusht")) == []


def measured(level, *overrides):
    """A run whose judge has this error on the expert's own videos."""
    result = replace(video_result(0.5), action_error_true=level, action_error_still=level)
    return Measured(config=load_config("pusht", *overrides), checkpoint=Path(), result=result)


def test_metrics_of_another_judge_are_not_compared():
    one = measured(0.031)
    assert other_yardstick("action_error", one, measured(0.0310001)) is None
    assert other_yardstick("action_error", one, measured(0.04)) == "another judge"
    assert other_yardstick("action_ratio", one, measured(None)) == "another judge"
    assert other_yardstick("l1", one, measured(None)) is None
    assert other_yardstick("decoder_error", one, measured(0.031, "run.seed=1")) == "another decoder"
    assert other_yardstick("decoder_error", one, measured(0.04)) is None


def test_a_dataset_that_was_moved_is_known_by_its_judge():
    one = measured(0.031, "data.env=null")
    assert why_unpaired(one, measured(0.031, "data.env=null", "data.root=elsewhere")) is None
    for other in (measured(0.032, "data.env=null", "data.root=elsewhere"), measured(0.031, "data.stride=2")):
        assert "other held-out clips" in why_unpaired(one, other)
    unknown = measured(0.0, "data.env=null")
    assert "data.root" in why_unpaired(unknown, measured(0.0, "data.env=null", "data.root=elsewhere"))
