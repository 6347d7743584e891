"""What the verbs of the command line do: the calls of :mod:`vampo_core.api`, with tables for people."""

from pathlib import Path

from vampo_core.config import ConfigError, VampoConfig
from vampo_core.evaluation import EvalResult, paired_difference
from vampo_core.training_run import TrainResult

INTERRUPTED = 130


def record(config: VampoConfig) -> None:
    """Record the episodes of ``data``."""
    from vampo_core.prepare import open_dataset

    if config.data.env is None:
        raise ConfigError("data.env is None, expected the simulator to record from")
    dataset = open_dataset(config)
    print(f"{len(dataset.episodes)} episodes at {dataset.root}")


def encode(config: VampoConfig) -> None:
    """Encode the videos of ``data`` with the codec of ``model.pretrained``, or with a patch codec fitted to them."""
    from vampo_core.prepare import load_predictor, prepare_clips, prepare_codec

    source = config.model.pretrained
    clips = prepare_clips(config, load_predictor(config, source).codec if source else prepare_codec(config))
    print(f"{len(clips.train)} training clips and {len(clips.held_out)} held-out clips")


def pretrain(config: VampoConfig, *, resume_from: str | None) -> int:
    """Train a base predictor."""
    from vampo_core import api

    return _report(api.pretrain(config, resume_from=resume_from))


def train(config: VampoConfig, *, resume_from: str | None) -> int:
    """Post-train a predictor."""
    from vampo_core import api

    return _report(api.train(config, resume_from=resume_from))


def evaluate(config: VampoConfig, *, checkpoint: str, against: str | None) -> None:
    """Measure a predictor, and compare it with another on the same clips and noise."""
    from vampo_core import api

    result = api.evaluate(checkpoint, config)
    if against is None:
        print(metrics_table(result))
    else:
        print(comparison_table(api.evaluate(against, config), result))


def metrics_table(result: EvalResult) -> str:
    """Means and intervals of one predictor."""
    lines = [f"{result.num_clips} held-out clips of {len(set(result.episode_ids))} episodes, {result.num_samples} each"]
    for name in ("l1", "cosine", "reward"):
        metric = getattr(result, name)
        lines.append(f"  {name:8} {metric.mean:8.4f}   [{metric.ci95[0]:.4f}, {metric.ci95[1]:.4f}]")
    return "\n".join(lines)


def comparison_table(before: EvalResult, after: EvalResult) -> str:
    """Before, after and their paired difference, with 95 % intervals of the difference."""
    lines = [
        f"{after.num_clips} held-out clips of {len(set(after.episode_ids))} episodes, 95 % intervals over episodes",
        f"  {'':8} {'before':>9} {'after':>9} {'change':>8}   paired difference",
    ]
    for name in ("l1", "cosine", "reward"):
        old, new = getattr(before, name).mean, getattr(after, name).mean
        difference = paired_difference(before, after, name)
        lines.append(
            f"  {name:8} {old:9.4f} {new:9.4f} {(new - old) / abs(old):+8.1%}   "
            f"{difference.mean:+.4f} [{difference.ci95[0]:+.4f}, {difference.ci95[1]:+.4f}]"
        )
    return "\n".join(lines)


def _report(result: TrainResult) -> int:
    print(comparison_table(result.before, result.after))
    print(f"checkpoint: {_short(result.checkpoint)}, best by held-out reward: {_short(result.best_checkpoint)}")
    if result.interrupted:
        print(f"interrupted; continue with --resume-from {result.config.run.dir}")
        return INTERRUPTED
    return 0


def _short(path: Path) -> str:
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
