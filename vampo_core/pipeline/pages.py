"""``report.html``: what a run has come to, in numbers, curves and videos, as one file that opens offline."""

from pathlib import Path

from vampo_core.config import VampoConfig
from vampo_core.evaluation.panels import save_video, side_by_side
from vampo_core.files import write_text
from vampo_core.pipeline.summary import gather
from vampo_core.report.page import render
from vampo_core.report.policy import is_policy_run, render_policy
from vampo_core.training.checkpoint import TRAINER_STATE, find_checkpoint


def current_report(config: VampoConfig) -> Path | None:
    """The report in ``run.dir``, where it is newer than the newest checkpoint; else None."""
    folder = Path(config.run.dir)
    report, checkpoint = folder / "report.html", find_checkpoint(folder)
    written = (checkpoint / TRAINER_STATE).stat().st_mtime
    return report if report.is_file() and report.stat().st_mtime >= written else None


def write_report(config: VampoConfig) -> Path:
    """Write ``report.html`` of the run in ``run.dir``; returns its path.

    A video predictor's run gets ``samples/clip-NN.mp4`` too.

    Raises:
        ValueError: there is no run with a checkpoint.
    """
    folder = Path(config.run.dir)
    if is_policy_run(folder):
        write_text(folder / "report.html", render_policy(config))
        return folder / "report.html"
    run = gather(config)
    for number, video in enumerate(run.videos, start=1):
        frames = side_by_side([list(video.panels.values())], list(video.panels))
        save_video(folder / "samples" / f"clip-{number:02d}.mp4", frames)
    write_text(folder / "report.html", render(run))
    return folder / "report.html"
