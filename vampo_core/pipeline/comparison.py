"""Gathers what is known of several runs, pairs their held-out metrics, and predicts held-out clips with all of them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from vampo_core.config import ConfigError, VampoConfig, load_config
from vampo_core.data.episode import EpisodeError
from vampo_core.data.formats.recorded import episode_folder, is_whole
from vampo_core.evaluation.episodes import EPISODES, ClosedLoopResult, compare, read_episodes
from vampo_core.evaluation.predictor import EvalResult
from vampo_core.evaluation.statistics import metrics_of, paired_difference
from vampo_core.pipeline.pairing import Measured, other_yardstick, why_unpaired, why_unpaired_policies
from vampo_core.pipeline.predictor import inference_predictor
from vampo_core.pipeline.shown_clips import predict_shown, shown_clips, videos_of
from vampo_core.policy.base import Policy
from vampo_core.policy.evaluation import PolicyEvalResult
from vampo_core.policy.inverse_dynamics.decoder import SETTINGS_FILE as DECODER_SETTINGS
from vampo_core.policy.settings import SETTINGS_FILE
from vampo_core.report.values import PRETRAINED, ClipVideo, ComparedRun, RunComparison, result_name
from vampo_core.training.checkpoint import Checkpoints, find_checkpoint, read_counters, step_of
from vampo_core.training.metrics import read_metrics

MOST_RUNS = 8
"""More curves than these can no longer be told apart by their colors."""
Made = Literal["predictor", "policy"]


@dataclass(frozen=True, kw_only=True)
class _Found:
    """A run folder."""

    name: str
    config: VampoConfig
    makes: Made
    best: Path
    """Its best checkpoint."""
    latest: Path


def check_runs(folders: Sequence[str | Path]) -> list[_Found]:
    """The runs in several folders.

    Raises:
        ConfigError: there are too few or too many, one is given twice, or they are of predictors and of policies.
        ValueError: a folder holds no run with a checkpoint.
    """
    paths = [Path(folder).expanduser() for folder in folders]
    if not 2 <= len(paths) <= MOST_RUNS:
        raise ConfigError(f"runs is {len(paths)} folders, expected 2 to {MOST_RUNS}")
    resolved = [path.resolve() for path in paths]
    twice = next((path for path, real in zip(paths, resolved, strict=True) if resolved.count(real) > 1), None)
    if twice is not None:
        raise ConfigError(f"runs has {str(twice)!r} twice, expected different folders")
    found = [_found(path, name) for path, name in zip(paths, _names(resolved), strict=True)]
    other = next((run for run in found if run.makes != found[0].makes), None)
    if other is not None:
        first = found[0]
        raise ConfigError(
            f"runs has {first.name!r}, the run of a {first.makes}, and {other.name!r}, the run of a {other.makes}: "
            "expected runs of predictors only, or of policies only"
        )
    return found


def gather_comparison(folders: Sequence[str | Path], page: Path) -> RunComparison:
    """Load the results of runs, pair them with those of the first one, and predict held-out clips where data is there.

    Args:
        folders: run folders, all of predictors or all of policies.
        page: path that the page will have.

    Raises:
        ConfigError, ValueError: as :func:`check_runs` raises them.
    """
    found = check_runs(folders)
    runs = [_loaded(run, found[0]) for run in found]
    videos: list[ClipVideo] = []
    decoded, reason = True, None
    if found[0].makes == "predictor":
        paired = [run for run, values in zip(found, runs, strict=True) if values.unpaired is None]
        videos, decoded, reason = _videos(paired)
    else:
        runs = _with_closed_loops(found, runs)
    configs = [run.config for run in found]
    return RunComparison(
        runs=runs, settings=_changed(configs), videos=videos, decoded=decoded, without_videos=reason, page=page
    )


def _found(path: Path, name: str) -> _Found:
    find_checkpoint(path)  # says what is wrong with the folder
    checkpoints = Checkpoints(path / "checkpoints")
    latest, best = checkpoints.latest, checkpoints.best
    if latest is None or best is None:
        raise ConfigError(f"runs has {str(path)!r}, expected a run folder with checkpoints in it")
    if (best / DECODER_SETTINGS).is_file():
        raise ConfigError(
            f"runs has {str(path)!r}, the run of an action decoder, expected one of a predictor or policy"
        )
    makes: Made = "policy" if (best / SETTINGS_FILE).is_file() else "predictor"
    return _Found(name=name, config=load_config(path), makes=makes, best=best.resolve(), latest=latest.resolve())


def _names(paths: Sequence[Path]) -> list[str]:
    """The last parts of paths, as many as tell them apart."""
    for length in range(1, max(len(path.parts) for path in paths)):
        names = ["/".join(path.parts[-length:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def _loaded(run: _Found, first: _Found) -> ComparedRun:
    """A run's results, paired with those of the first run."""
    rows = read_metrics(Path(run.config.run.dir) / "metrics.jsonl")
    kind: Literal["pretraining", "post-training", "policy"] = "policy"
    if run.makes == "predictor":
        kind = "pretraining" if result_name(rows) == PRETRAINED else "post-training"
    config = run.config
    lengths = {
        "policy": config.policy.num_steps,
        "pretraining": config.pretrain.num_steps,
        "post-training": config.grpo.num_iterations,
    }
    unpaired, differences, not_compared = None, {}, {}
    own = _measured(run)
    if run is not first:
        reference = _measured(first)
        unpaired = (why_unpaired_policies if run.makes == "policy" else why_unpaired)(reference, own)
        both = [name for name in metrics_of(reference.result) if name in metrics_of(own.result)]
        for metric in both if unpaired is None else ():
            if reason := other_yardstick(metric, reference, own):
                not_compared[metric] = reason
            else:
                differences[metric] = paired_difference(reference.result, own.result, metric)
    return ComparedRun(
        name=run.name,
        config=config,
        kind=kind,
        rows=rows,
        before=_result_type(run).from_dict(read_counters(run.best)["before"]),
        best=own.result,
        best_step=step_of(run.best),
        last_step=step_of(run.latest),
        num_steps=lengths[kind],
        unpaired=unpaired,
        differences=differences,
        not_compared=not_compared,
    )


def _measured(run: _Found) -> Measured:
    result = _result_type(run).from_dict(read_counters(run.best)["last"])
    return Measured(config=run.config, checkpoint=run.best, result=result)


def _result_type(run: _Found) -> Any:
    return PolicyEvalResult if run.makes == "policy" else EvalResult


def _changed(configs: Sequence[VampoConfig]) -> dict[str, list[Any]]:
    """Settings that differ, by key; where a run lies is none."""
    values = [config.to_dict() for config in configs]
    keys = [(section, name) for section, entries in values[0].items() for name in entries]
    found = {f"{section}.{name}": [value[section][name] for value in values] for section, name in keys}
    return {key: own for key, own in found.items() if key != "run.dir" and any(x != own[0] for x in own)}


def _videos(runs: Sequence[_Found]) -> tuple[list[ClipVideo], bool, str | None]:
    """Videos of clips that all these runs measured, whether they show frames, and otherwise why there are none."""
    missing = [_missing_data(run.config) for run in runs]
    if None not in missing:
        return [], True, missing[0]
    data = runs[missing.index(None)].config
    latents: dict[str, Tensor] = {}  # each [clips shown, num_samples, F, C, h, w]
    try:
        for run in runs:
            model = inference_predictor(run.config, run.best)
            if not latents:
                codec = model.codec
                clips = shown_clips(data, codec)
            latents[run.name] = predict_shown(run.config, model, clips)
            del model  # two large models need not fit the device together
        return videos_of(clips, latents, codec), codec.can_decode, None
    except (OSError, ValueError, ImportError, EpisodeError) as error:  # data or encoders that were moved or changed
        return [], True, str(error).partition("\n")[0]


def _missing_data(config: VampoConfig) -> str | None:
    """Why the clips of a run cannot be had without recording episodes again; None where they can."""
    data = config.data
    if data.format == "lerobot" and data.env is None:
        return None  # the name of a dataset on the hub, perhaps
    gone = next((root for root in data.roots if not Path(root).is_dir()), None)
    if gone is not None:
        return f"data.root is {gone!r}, where there is no folder any more"
    if data.env is None:
        return None
    missing = sum(not is_whole(episode_folder(Path(data.roots[0]), i)) for i in range(data.num_episodes))
    return f"{missing} of {data.num_episodes} episodes are missing in {data.roots[0]!r}" if missing else None


def _with_closed_loops(found: Sequence[_Found], runs: Sequence[ComparedRun]) -> list[ComparedRun]:
    """Runs of policies with the episodes in which they acted, paired with those of the first run."""
    acted = [_acted(run) for run in found]
    first, with_loops = acted[0], []
    for run, own in zip(runs, acted, strict=True):
        if own is None:
            with_loops.append(run)
            continue
        step, loop = own
        success = None
        if first is not None and own is not first and _episodes(loop) == _episodes(first[1]):
            success = compare(first[1], loop)
        with_loops.append(replace(run, closed_loop=loop, acted_step=step, success=success))
    return with_loops


def _acted(run: _Found) -> tuple[int, ClosedLoopResult] | None:
    """The checkpoint that acted, the best one if possible, and its episodes; the folder's name is the policy's."""
    folder = Path(run.config.run.dir).resolve()
    places = [folder / "closed_loop", *folder.parent.glob("closed_loop*"), *folder.parent.glob("*/closed_loop")]
    for checkpoint in dict.fromkeys((run.best, run.latest)):
        name = Policy.from_pretrained(checkpoint, dtype=run.config.model.dtype).fingerprint()
        files = [place / name / EPISODES for place in places if (place / name / EPISODES).is_file()]
        results = [ClosedLoopResult(read_episodes(file)) for file in files]
        longest = max(results, key=lambda result: len(result.episodes), default=None)
        if longest is not None and longest.episodes:
            return step_of(checkpoint), longest
    return None


def _episodes(result: ClosedLoopResult) -> set[tuple[str, int]]:
    return {episode.key for episode in result.episodes}
