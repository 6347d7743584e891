"""What the verbs of the command line do: the calls of :mod:`vampo_core.api`, with tables for people."""

import json
import math
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vampo_core import api
from vampo_core.cli.tables import (
    closed_loop_table,
    comparison_line,
    comparison_table,
    evaluation_record,
    metrics_table,
    policy_table,
    runs_table,
)
from vampo_core.config import ConfigError, VampoConfig
from vampo_core.evaluation.episodes import compare
from vampo_core.files import write_text
from vampo_core.pipeline.clips import open_dataset, prepare_clips
from vampo_core.pipeline.codec import prepare_codec
from vampo_core.pipeline.export import export_dataset
from vampo_core.pipeline.pages import write_chain_page
from vampo_core.pipeline.plan import memory_plan, memory_table
from vampo_core.pipeline.predictor import load_encoders, predictor_folder
from vampo_core.pipeline.runs import POLICY, PRETRAINING, VAMPO, RunKind, find_continue_or_begin, is_complete
from vampo_core.policy.settings import policy_folder
from vampo_core.report.headline import headline
from vampo_core.report.page import count
from vampo_core.training.loop import TrainResult
from vampo_core.training.processes import new_accelerator
from vampo_core.training.sharding import is_sharding

INTERRUPTED = 130


def record(config: VampoConfig) -> None:
    """Record the episodes of ``data``."""
    if config.data.env is None:
        raise ConfigError("data.env is null, expected the simulator to record from")
    dataset = open_dataset(config)
    print(f"{len(dataset.episodes)} episodes at {dataset.root}")


def export(config: VampoConfig, *, to: str, output: str, encoding: str, failures: bool) -> None:
    """Write the episodes of ``data`` in another format."""
    folder = export_dataset(config, output, to=to, encoding=encoding, failures=failures)
    print(f"dataset: {_short(folder)}")


def encode(config: VampoConfig) -> None:
    """Encode the videos of ``data`` with the codec of ``model.pretrained``, or with a patch codec fitted to them."""
    text_encoder: Any = None
    if config.model.pretrained is None:
        codec: Any = prepare_codec(config)
    else:
        codec, text_encoder = load_encoders(config)
    clips = prepare_clips(config, codec)
    print(f"{sum(map(len, clips.train))} training clips and {len(clips.held_out)} held-out clips")
    if hasattr(text_encoder, "prepare"):
        instructions = {e.instruction for dataset in (*clips.train, clips.held_out) for e in dataset.episodes}
        text_encoder.prepare(sorted(instructions))
        print(count(len(instructions), "instruction"))


def pretrain(config: VampoConfig, *, resume_from: str | None, continue_: bool) -> int:
    """Train a base predictor."""
    result = _trained(PRETRAINING, api.pretrain, config, resume_from, continue_)
    print(comparison_table(result.before, result.after))
    return _ending(result, f"best by held-out {config.evaluation.best_by}")


def plan(config: VampoConfig) -> None:
    """Say how much memory a post-training will take, on each of the processes that the launcher started."""
    accelerator = new_accelerator()
    if accelerator.is_main_process:
        options = {"num_processes": accelerator.num_processes, "sharded": is_sharding(accelerator)}
        print(memory_table(memory_plan(config, **options), config))


def train(config: VampoConfig, *, resume_from: str | None, continue_: bool) -> int:
    """Post-train a predictor."""
    result = _trained(VAMPO, api.train, config, resume_from, continue_, has_report=True)
    print(comparison_table(result.before, result.after))
    return _ending(result, f"best by held-out {config.evaluation.best_by}")


def train_policy(config: VampoConfig, *, resume_from: str | None, continue_: bool) -> int:
    """Train a policy."""
    result = _trained(POLICY, api.train_policy, config, resume_from, continue_, has_report=True)
    print(policy_table(result.before, result.after))
    return _ending(result, "least held-out action error")


def chain(config: VampoConfig, *, until: str | None) -> None:
    """Run the chain and write its page, or run only its first stages."""
    if until not in (None, "closed_loop"):
        api.run_stages(config, until=until)
        return
    result = api.run_chain(config)
    page = write_chain_page(config, result)
    for name, arm in result.arms.items():
        if arm.unit is not None:
            print(f"{name}: {comparison_table(result.base, arm.evaluation)}")
    if result.closed_loop:
        print(closed_loop_table(result.closed_loop))
    print(f"report: {_short(page)}")
    print(headline(config, result).sentence)


def evaluate_policy(config: VampoConfig, *, checkpoint: str | None, against: str | None, output: str | None) -> None:
    """Let a policy act, and compare it with another on the same episodes."""
    for folder in (checkpoint, against):
        if folder is not None:
            policy_folder(folder)  # a missing second one would only be noticed after the first has acted
    result = api.evaluate_policy(checkpoint, config, output=output)
    print(closed_loop_table({"expert" if checkpoint is None else checkpoint: result}))
    if against is not None:
        before = api.evaluate_policy(against, config, output=output)
        print(closed_loop_table({against: before}))
        print(comparison_line(compare(before, result)))
    place = Path(config.run.dir) / "closed_loop" if output is None else Path(output)
    print(f"episodes and videos: {_short(place)}")


def evaluate(config: VampoConfig, *, checkpoint: str, against: str | None, output: str | None) -> None:
    """Measure a predictor, and compare it with another on the same clips and noise."""
    if output is not None and not Path(output).resolve().parent.is_dir():
        raise ConfigError(f"output is {output!r}, expected a file in a folder that exists")
    for folder in (checkpoint, against):
        if folder is not None:
            predictor_folder(folder)  # a missing second one would only be noticed after the first is measured
    result = api.evaluate(checkpoint, config)
    before = None if against is None else api.evaluate(against, config)
    print(metrics_table(result) if before is None else comparison_table(before, result))
    if output is not None:
        write_text(Path(output), json.dumps(evaluation_record(result, before), indent=2) + "\n")
    if not math.isfinite(result.reward.mean):
        raise FloatingPointError(f"predictions of {checkpoint} are not finite")


def sample(config: VampoConfig, *, checkpoint: str, **options: Any) -> None:
    """Predict videos."""
    print(f"video: {_short(api.sample(checkpoint, config, **options))}")


def show_config(config: VampoConfig) -> None:
    """Show every setting with its value and its meaning."""
    print(config.to_annotated_yaml(), end="")


def report(config: VampoConfig) -> None:
    """Write the report of the run in ``run.dir``."""
    print(f"report: {_short(api.write_report(config))}")


def compare_runs(runs: Sequence[str], *, output: str | None) -> None:
    """Compare runs with the first one, and write the page about it."""
    compared = api.compare_runs(*runs, output=output)
    print(runs_table(compared))
    print(f"page: {_short(compared.page.resolve())}")


def _trained(
    kind: RunKind[Any],
    call: Callable[..., TrainResult[Any]],
    config: VampoConfig,
    resume_from: str | None,
    continue_: bool,
    *,
    has_report: bool = False,
) -> TrainResult[Any]:
    if not continue_:
        return call(config, resume_from=resume_from)
    if resume_from is not None:
        raise ConfigError(f"resume_from is {resume_from!r} with --continue, expected one of them")
    is_found = is_complete(kind, config)
    result = find_continue_or_begin(kind, config, call, label="run")
    if is_found and has_report:  # the process that completed the run may have been stopped before it wrote the report
        api.report_result(result)
    return result


def _ending(result: TrainResult[Any], best: str) -> int:
    print(f"checkpoint: {_short(result.checkpoint)}, {best}: {_short(result.best_checkpoint)}")
    if result.interrupted:
        print(f"interrupted; continue with --continue, or with --resume-from {shlex.quote(result.config.run.dir)}")
        return INTERRUPTED
    return 0


def _short(path: Path) -> str:
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
