"""Writes pages of a run, of a chain and of several runs, each one file that opens offline."""

from collections.abc import Sequence
from pathlib import Path

from vampo_core.config import ConfigError, VampoConfig
from vampo_core.evaluation.panels import save_video, side_by_side
from vampo_core.files import write_text
from vampo_core.pipeline.comparison import check_runs, gather_comparison
from vampo_core.pipeline.summary import gather, gather_chain, gather_policy, is_policy_run
from vampo_core.report.chain import render_chain
from vampo_core.report.comparison import render_comparison
from vampo_core.report.policy import render_policy
from vampo_core.report.run import render_run
from vampo_core.report.values import ChainResult, RunComparison
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


_MARK = '<meta name="generator" content="vampo compare">'
"""What tells a page that compares runs from other files."""


def write_comparison(folders: Sequence[str | Path], output: str | Path | None = None) -> RunComparison:
    """Compare runs, and write the page about it.

    Args:
        folders: run folders; the first one is what the others are compared with.
        output: HTML file to write; ``<first run>-compare.html`` beside the first run by default.

    Raises:
        ConfigError: the runs do not go together, or ``output`` is somebody else's file.
        ValueError: a folder holds no run with a checkpoint.
    """
    check_runs(folders)
    first = Path(folders[0]).expanduser().resolve()
    path = first.parent / f"{first.name}-compare.html" if output is None else Path(output).expanduser()
    _check_page(path)
    compared = gather_comparison(folders, path)
    write_text(path, render_comparison(compared))
    return compared


def _check_page(path: Path) -> None:
    """Refuse a page that would replace another file, before any work.

    Raises:
        ConfigError: its folder is missing, or there is something else in its place.
    """
    if path.suffix not in (".html", ".htm") or not path.parent.is_dir():
        raise ConfigError(f"output is {str(path)!r}, expected an HTML file (.html) in a folder that exists")
    if not path.exists():
        return
    if not path.is_file() or _MARK.encode() not in path.read_bytes()[:4096]:
        raise ConfigError(
            f"output is {str(path)!r}, where there is something that vampo compare did not write: choose another file"
        )
