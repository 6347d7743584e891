"""What the verbs of the command line do: the calls of :mod:`vampo_core.api`, with tables for people."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vampo_core.config import ConfigError, VampoConfig
from vampo_core.evaluation.metrics import share_of
from vampo_core.evaluation.predictor import EvalResult
from vampo_core.evaluation.statistics import outcome, paired_difference
from vampo_core.files.atomic import write_text
from vampo_core.training.loop import TrainResult

if TYPE_CHECKING:
    from vampo_core.evaluation.episodes import ClosedLoopResult, Comparison

INTERRUPTED = 130


def record(config: VampoConfig) -> None:
    """Record the episodes of ``data``."""
    from vampo_core.pipeline.prepare import open_dataset

    if config.data.env is None:
        raise ConfigError("data.env is None, expected the simulator to record from")
    dataset = open_dataset(config)
    print(f"{len(dataset.episodes)} episodes at {dataset.root}")


def encode(config: VampoConfig) -> None:
    """Encode the videos of ``data`` with the codec of ``model.pretrained``, or with a patch codec fitted to them."""
    from vampo_core.pipeline.prepare import load_predictor, prepare_clips, prepare_codec

    source = config.model.pretrained
    clips = prepare_clips(config, load_predictor(config, source).codec if source else prepare_codec(config))
    print(f"{sum(map(len, clips.train))} training clips and {len(clips.held_out)} held-out clips")


def pretrain(config: VampoConfig, *, resume_from: str | None) -> int:
    """Train a base predictor."""
    from vampo_core import api

    return _report(api.pretrain(config, resume_from=resume_from))


def train(config: VampoConfig, *, resume_from: str | None) -> int:
    """Post-train a predictor."""
    from vampo_core import api

    return _report(api.train(config, resume_from=resume_from))


def train_policy(config: VampoConfig, *, resume_from: str | None) -> int:
    """Train a policy."""
    from vampo_core import api

    result = api.train_policy(config, resume_from=resume_from)
    for name in ("action_l1", "action_mse"):
        old, new = getattr(result.before, name), getattr(result.after, name)
        print(f"  {name:10} {old.mean:9.4f} -> {new.mean:.4f}{new.interval('.4f', before='   ')}")
    return _ending(result, "least held-out action error")


def chain(config: VampoConfig, *, until: str | None) -> None:
    """Run the chain and write its page, or its first stages alone."""
    from vampo_core.pipeline.chain import DESCRIPTIONS, run_chain, run_stages
    from vampo_core.pipeline.pages import write_chain_page

    if until not in (None, "closed_loop"):
        run_stages(config, until=until)
        return
    result = run_chain(config)
    page = write_chain_page(config, result, DESCRIPTIONS)
    print(comparison_table(result.base, result.vampo))
    print(closed_loop_table(result.closed_loop))
    print(f"report: {_short(page)}")


def evaluate_policy(config: VampoConfig, *, checkpoint: str | None, against: str | None, output: str | None) -> None:
    """Let a policy act, and compare it with another on the same episodes."""
    from vampo_core import api
    from vampo_core.evaluation.episodes import compare
    from vampo_core.policy.vpp.policy import policy_folder

    for folder in (checkpoint, against):
        if folder is not None:
            policy_folder(folder)  # or the second is found missing once the first has acted
    result = api.evaluate_policy(checkpoint, config, output=output)
    print(closed_loop_table({"expert" if checkpoint is None else checkpoint: result}))
    if against is not None:
        before = api.evaluate_policy(against, config, output=output)
        print(closed_loop_table({against: before}))
        print(comparison_line(compare(before, result)))


def evaluate(config: VampoConfig, *, checkpoint: str, against: str | None, output: str | None) -> None:
    """Measure a predictor, and compare it with another on the same clips and noise."""
    from vampo_core import api
    from vampo_core.pipeline.prepare import predictor_folder

    if output is not None and not Path(output).resolve().parent.is_dir():
        raise ConfigError(f"output is {output!r}, expected a file in a folder that exists")
    for folder in (checkpoint, against):
        if folder is not None:
            predictor_folder(folder)  # or the second is found missing once the first is measured
    result = api.evaluate(checkpoint, config)
    before = None if against is None else api.evaluate(against, config)
    print(metrics_table(result) if before is None else comparison_table(before, result))
    if output is not None:
        write_text(Path(output), json.dumps(evaluation_record(result, before), indent=2) + "\n")


def sample(
    config: VampoConfig,
    *,
    checkpoint: str,
    output: str,
    image: str | None,
    video: str | None,
    instruction: str | None,
    num_samples: int,
    num_clips: int,
) -> None:
    """Predict videos."""
    from vampo_core import api

    path = api.sample(
        checkpoint,
        config,
        output=output,
        image=image,
        video=video,
        instruction=instruction,
        num_samples=num_samples,
        num_clips=num_clips,
    )
    print(f"video: {_short(path)}")


def report(config: VampoConfig) -> None:
    """Write the report of the run in ``run.dir``."""
    from vampo_core.pipeline.pages import write_report

    print(f"report: {_short(write_report(config))}")


def metrics_table(result: EvalResult) -> str:
    """Means and 95 % intervals of one predictor."""
    lines = [_clips(result), f"  {'':8} {'mean':>9}   95 % interval"]
    for name, metric in result.metrics.items():
        lines.append(f"  {name:8} {metric.mean:9.4f}{metric.interval('.4f', before='   ')}")
    return "\n".join(lines)


def comparison_table(before: EvalResult, after: EvalResult) -> str:
    """Before, after and their paired difference, with 95 % intervals."""
    lines = [
        _clips(after),
        f"  {'':8} {'before':>9} {'after':>9} {'change':>8}   paired difference, 95 % interval",
    ]
    for name in (name for name in after.metrics if name in before.metrics):
        old, new = before.metrics[name].mean, after.metrics[name].mean
        difference = paired_difference(before, after, name)
        verdict, share = outcome(before, after, name), share_of(name, new - old, old)
        change = "" if share is None else f"{share:+.1%}"
        lines.append(
            f"  {name:8} {old:9.4f} {new:9.4f} {change:>8}   "
            f"{difference:+.4f}  {verdict if verdict != 'unclear' else ''}".rstrip()
        )
    return "\n".join(lines)


def closed_loop_table(results: Mapping[str, "ClosedLoopResult"]) -> str:
    """Success, coverage, length and control rate of controllers, each with its simulators."""
    lines = []
    for name, result in results.items():
        lines.append(f"{name}: {len(result.episodes)} episodes")
        rates = result.success_by_env
        if len(rates) > 1:
            rates = {"all": result.success} | rates
        for env, rate in rates.items():
            lines.append(f"  {env:32} success {rate.mean:6.1%}{rate.interval('.1%', before='   ')}")
        if (coverage := result.max_coverage) is not None:
            interval = coverage.interval(".3f", before="   ")
            lines.append(f"  {'largest coverage':32} {coverage.mean:14.3f}{interval}")
        lines.append(f"  {'control steps':32} {result.length.mean:14.1f}")
        if (latency := result.latency) is not None:
            times = f"p50 {latency.p50_ms:.1f} ms, p99 {latency.p99_ms:.1f} ms, {latency.hz:.0f} Hz"
            lines.append(f"  {'an action, of all slots at once':32} {times}")
    return "\n".join(lines)


def comparison_line(comparison: "Comparison") -> str:
    """A paired comparison in words."""
    difference = comparison.max_coverage
    coverage = "" if difference is None else f"; largest coverage {difference:+.3f}"
    same = "" if comparison.num_only_before or comparison.num_only_after else ", none of which differs"
    return (
        f"success {comparison.success:+.1%} on the same {comparison.num_episodes} episodes{same}; "
        f"{comparison.num_only_after} solved by the first alone, {comparison.num_only_before} by the second "
        f"alone, McNemar p = {comparison.p_value:.2g}{coverage}"
    )


def evaluation_record(result: EvalResult, before: EvalResult | None) -> dict[str, Any]:
    """What ``vampo evaluate`` writes: the result, and with another one that and their paired differences."""
    if before is None:
        return {"result": result.to_dict()}
    names = [name for name in result.metrics if name in before.metrics]
    differences = {name: asdict(paired_difference(before, result, name)) for name in names}
    return {"result": result.to_dict(), "against": before.to_dict(), "difference": differences}


def _clips(result: EvalResult) -> str:
    episodes = len(set(result.episode_ids))
    what = "episodes" if episodes > 1 else "clips"
    samples = f"{result.num_samples} video{'s' if result.num_samples > 1 else ''} each"
    return f"{result.num_clips} held-out clips of {episodes} episodes, {samples}; intervals over {what}"


def _report(result: TrainResult[EvalResult]) -> int:
    print(comparison_table(result.before, result.after))
    return _ending(result, "best by held-out reward")


def _ending(result: TrainResult[Any], best: str) -> int:
    print(f"checkpoint: {_short(result.checkpoint)}, {best}: {_short(result.best_checkpoint)}")
    if result.interrupted:
        print(f"interrupted; continue with --resume-from {result.config.run.dir}")
        return INTERRUPTED
    return 0


def _short(path: Path) -> str:
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
