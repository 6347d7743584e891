"""Writes pages: ``report.html`` of a run, and the page of a chain, each one file that opens offline."""

from pathlib import Path

from vampo_core.config import VampoConfig
from vampo_core.evaluation.panels import save_video, side_by_side
from vampo_core.files import write_text
from vampo_core.pipeline.summary import gather, gather_chain, gather_policy, is_policy_run
from vampo_core.report.chain import render_chain
from vampo_core.report.policy import render_policy
from vampo_core.report.run import render_run
from vampo_core.report.values import ChainResult
from vampo_core.training.checkpoint import TRAINER_STATE, find_checkpoint


def current_report(config: VampoConfig) -> Path | None:
    """The report in ``run.dir`` if it is newer than the newest checkpoint; otherwise None."""
    folder = Path(config.run.dir)
    report, checkpoint = folder / "report.html", find_checkpoint(folder)
    written = (checkpoint / TRAINER_STATE).stat().st_mtime
    return report if report.is_file() and report.stat().st_mtime >= written else None


def write_report(config: VampoConfig) -> Path:
    """Write ``report.html`` of the run in ``run.dir``; returns its path.

    For a run of a video predictor, ``samples/clip-NN.mp4`` are written too.

    Raises:
        ValueError: there is no run with a checkpoint.
    """
    folder = Path(config.run.dir)
    if is_policy_run(folder):
        page = render_policy(gather_policy(config))
    else:
        run = gather(config)
        for number, video in enumerate(run.videos, start=1):
            frames = side_by_side([list(video.panels.values())], list(video.panels))
            save_video(folder / "samples" / f"clip-{number:02d}.mp4", frames)
        page = render_run(run)
    write_text(folder / "report.html", page)
    return folder / "report.html"


def write_chain_page(config: VampoConfig, result: ChainResult) -> Path:
    """Write ``<run.dir>-chain.html`` beside ``run.dir``; returns its path.

    Args:
        config: configuration of the chain.
        result: its result.
    """
    folder = Path(config.run.dir)
    path = folder.parent / f"{folder.name}-chain.html"
    videos, decoded = gather_chain(config, result)
    write_text(path, render_chain(config, result, videos, decoded=decoded))
    return path
