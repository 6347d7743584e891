"""What ``vampo doctor`` looks at of a configuration: folders, extras, data, model, memory, simulators."""

import contextlib
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vampo_core import envs
from vampo_core.config import VampoConfig
from vampo_core.data.episode import Episode, EpisodeError, EpisodeSource, reason_of
from vampo_core.data.formats import open_dataset_of
from vampo_core.envs.slots import Lost
from vampo_core.envs.workers import Run, Workers
from vampo_core.pipeline.clips import check_recorded, dataset_options, expanded, split
from vampo_core.pipeline.diagnosis import Diagnosis, first_line
from vampo_core.pipeline.doctor_installation import disk, install, missing_modules
from vampo_core.pipeline.plan import MemoryPlan, memory_plan
from vampo_core.pipeline.predictor import predictor_folder
from vampo_core.training.checkpoint import Checkpoints

MANY_EPISODES = 16
"""Episodes that are read, spread evenly over a dataset."""
_GIB = 2**30


def run_folder(config: VampoConfig, plan: MemoryPlan | None) -> Iterator[Diagnosis]:
    """Whether ``run.dir`` is free, writable, and on a disk with room for its checkpoints."""
    folder = Path(config.run.dir)
    if Checkpoints(folder / "checkpoints").latest is not None and not config.run.overwrite:
        found = f"{folder} holds a run already"
        yield Diagnosis("warning", "run.dir", found, "--continue goes on with it; another run.dir begins a new one")
    # latest, best, and one that is being written: weights, two moments and a running mean
    size = 0 if plan is None else 3 * 4 * (plan.num_weights + 3 * plan.num_trained)
    yield disk("disk of run.dir", folder, needed=max(2 * _GIB, size))


def needed_extras(config: VampoConfig) -> Iterator[Diagnosis]:
    """Extras that the configuration cannot do without."""
    simulators = {name.partition("/")[0] for name in _simulators(config)}
    families = ("pusht", "metaworld", "ogbench", "libero")
    needed = {
        "lora": ("model.lora", config.model.lora > 0),
        "float8": ("sampler.tail_dtype", config.sampler.tail_dtype == "float8"),
        "lerobot": ("data.format", config.data.format == "lerobot"),
        "svd": ("model.text_encoder", config.model.text_encoder is not None),
        **{name: ("data.env and closed_loop.env", name in simulators) for name in families},
        **{name: ("run.trackers", name in config.run.trackers) for name in ("tensorboard", "wandb")},
    }
    for extra, (setting, is_needed) in needed.items():
        if is_needed and (missing := missing_modules(extra)):
            found = f"{', '.join(missing)} is not installed, which {setting} asks for"
            yield Diagnosis("broken", f"extra {extra}", found, install(extra))


def data(config: VampoConfig, root: str) -> Iterator[Diagnosis]:
    """Whether a folder of ``data.root`` is there, can be read, and makes clips. Nothing is recorded."""
    subject, data = f"data {root}", config.data
    try:
        folder = expanded(config, root)
        if data.env is not None and not (folder / "dataset.json").is_file():
            found = f"not there yet; {data.num_episodes} episodes of {data.env} are recorded first"
            yield Diagnosis("note", subject, found)
            yield disk(f"disk of {subject}", folder)
            return
        if data.env is not None:
            check_recorded(config, folder)
        source = _opened(config, root)
    except (ValueError, OSError, ImportError, EpisodeError) as error:
        yield Diagnosis("broken", subject, first_line(error), "correct data.root, data.format or data.camera")
        return
    yield from _episodes(config, source, subject)


def _episodes(config: VampoConfig, source: EpisodeSource, subject: str) -> Iterator[Diagnosis]:
    episodes, wanted = list(source.episodes), config.data.num_episodes
    found, remedy = f"{len(episodes)} episodes", ""
    if config.data.env is not None and len(episodes) < wanted:
        found += f"; {wanted - len(episodes)} more are recorded first"
    camera = getattr(source, "camera", None)
    found += f", camera {camera}" if camera else ""
    looked_at = [episodes[i] for i in np.unique(np.linspace(0, len(episodes) - 1, MANY_EPISODES).astype(int))]
    widths, damaged = _read(looked_at)
    damaged = {episode.episode_id: episode.reason for episode in source.skipped} | damaged
    if widths:
        found += f", {' or '.join(str(width) for width in sorted(widths))} actions a frame"
    found += f"; {len(looked_at)} of them read"
    if damaged:
        found += f", {len(damaged)} damaged: " + "; ".join(f"{name} ({reason})" for name, reason in damaged.items())
        remedy = "repair them or take them out; they are left out, unless data.strict is set"
        if config.data.env is not None:
            remedy = "nothing: damaged episodes are recorded again, in their place"
    is_broken = bool(damaged) and (config.data.strict or len(damaged) >= len(looked_at))
    yield Diagnosis("broken" if is_broken else "warning" if damaged else "ok", subject, found, remedy)
    if set(widths) == {0} and config.reward.action_weight:
        found = f"reward.action_weight is {config.reward.action_weight}, but the data has no actions"
        yield Diagnosis("broken", subject, found, "set reward.action_weight=0")
    try:
        train, held_out = split(config, episodes)
    except ValueError as error:
        yield Diagnosis("broken", subject, first_line(error), "use more episodes, or another data.held_out_fraction")
        return
    span = (config.data.num_frames - 1) * config.data.stride + 1 if config.data.sampling == "stride" else 2
    short = sum(episode.length < span for episode in episodes)
    if short == len(episodes):
        found = f"no episode has the {span} frames of a clip; the longest has {max(e.length for e in episodes)}"
        yield Diagnosis(
            "warning", subject, found, "lower data.num_frames or data.stride; otherwise last frames are repeated"
        )
    yield Diagnosis("ok", subject, f"{len(train)} episodes to train on, {len(held_out)} held out")


def _read(episodes: Sequence[Episode]) -> tuple[Counter[int], dict[str, str]]:
    """Widths of the actions, and the reason by episode of those that cannot be read."""
    widths, damaged = Counter[int](), {}

    def read(episode: Episode) -> None:
        try:
            ends = [0, episode.length - 1]
            _ = episode.latents(ends) if episode.has_latents else episode.frames(ends)
            widths[episode.actions.shape[1]] += 1
        except EpisodeError as error:
            damaged[episode.episode_id] = reason_of(error)

    for episode in episodes:
        read(episode)
    return widths, damaged


def own_latents(config: VampoConfig) -> tuple[int, ...] | None:
    """Shape ``(C, h, w)`` of latents that came with the data, or None."""
    for episode in _opened(config, config.data.roots[0]).episodes if config.data.env is None else ():
        with contextlib.suppress(EpisodeError):
            return episode.latents_shape
    return None


def _opened(config: VampoConfig, root: str) -> EpisodeSource:
    data = config.data
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # skipped episodes are counted
        return open_dataset_of(
            data.format,
            expanded(config, root),
            cache=data.cache,
            num_episodes=None if data.env is None else data.num_episodes,
            **dataset_options(config),
        )


def model(config: VampoConfig) -> Diagnosis:
    """Whether the model to start from is there."""
    pretrained = config.model.pretrained
    if pretrained is None:
        found = f"none yet: a small {config.model.backbone} is pretrained first, {config.pretrain.num_steps} updates"
        return Diagnosis("ok", "model", f"{found}, unless it is there already")
    try:
        return Diagnosis("ok", "model", str(predictor_folder(pretrained)))
    except (ValueError, OSError, ImportError) as error:
        return Diagnosis("broken", "model", first_line(error), "correct model.pretrained")


def given_folders(config: VampoConfig) -> Iterator[Diagnosis]:
    """Folders that the configuration names and that are not there."""
    decoders = config.reward.action_decoder or ()
    given = {
        "reward.action_decoder": (decoders,) if isinstance(decoders, str) else decoders,
        "policy.predictor": (config.policy.predictor,),
        "model.text_encoder": (config.model.text_encoder,),
    }
    for key, folders in given.items():
        for folder in folders:
            if folder is not None and not Path(folder).exists():
                yield Diagnosis("broken", key, f"there is nothing at {folder}", f"correct {key}, or leave it out")


def memory(config: VampoConfig) -> tuple[Diagnosis, MemoryPlan | None]:
    """Whether the device has the memory that ``vampo plan`` counts, and the plan."""
    try:
        plan = memory_plan(config)
    except (ValueError, RuntimeError, ImportError, OSError) as error:
        return Diagnosis("warning", "memory", f"not planned ({first_line(error)})", "see the lines above"), None
    is_gpu = torch.cuda.is_available()
    capacity = torch.cuda.get_device_properties(0).total_memory if is_gpu else available_memory()
    found = f"{plan.total / _GIB:.1f} GiB"
    found += "" if capacity is None else f" of {capacity / _GIB:.1f} GiB that {'the GPU has' if is_gpu else 'are free'}"
    if capacity is None or plan.total <= 0.9 * capacity:
        return Diagnosis("ok", "memory", found), plan
    level = "broken" if plan.total > capacity else "warning"
    return Diagnosis(level, "memory", found, f"to take less: {plan.advice(config)}"), plan  # type: ignore[arg-type]


def available_memory() -> int | None:
    """Bytes of the machine that a new process can have; None where Linux does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    sizes = {name: int(value.split()[0]) * 1024 for name, _, value in (line.partition(":") for line in lines)}
    free = sizes.get("MemAvailable")
    try:
        limit, used = (int(Path(f"/sys/fs/cgroup/memory.{name}").read_text()) for name in ("max", "current"))
    except (OSError, ValueError):  # no container, or one without a limit
        return free
    return limit - used if free is None else min(free, limit - used)


def simulators(config: VampoConfig) -> Iterator[Diagnosis]:
    """Whether every simulator can be made, reset, stepped by its expert and rendered, in a process of its own."""
    try:
        names = _simulators(config)
    except ValueError as error:
        yield Diagnosis("broken", "simulators", first_line(error), "correct data.env or closed_loop.env")
        return
    if not names:
        return
    recorded = [] if config.data.env is None else envs.expand_names(config.data.env)
    options = {"image_size": config.data.resolution}
    workers = Workers(1, 1)
    try:
        for name in names:
            workers.send(0, Run(partial(_try_simulator, name, options, name in recorded)))
            try:
                reply = workers.receive(every=True)[0]
            except (ImportError, envs.SimulatorError) as error:
                is_missing = isinstance(error, ImportError)
                remedy = (
                    "install what it names" if is_missing else "correct data.env or closed_loop.env, or the simulator"
                )
                yield Diagnosis("broken", f"simulator {name}", first_line(error), remedy)
                if is_missing:
                    return  # the others of its kind fail alike
                continue
            if isinstance(reply, Lost):
                remedy = "see whether it renders outside of vampo; try MUJOCO_GL=osmesa"
                yield Diagnosis("broken", f"simulator {name}", f"its process died: {reply.reason}", remedy)
                return
            yield Diagnosis("ok", f"simulator {name}", reply)
    finally:
        workers.close()


def _simulators(config: VampoConfig) -> list[str]:
    given = (config.data.env, config.closed_loop.env)
    return list(dict.fromkeys(name for text in given if text for name in envs.expand_names(text)))


def _try_simulator(name: str, options: Mapping[str, Any], is_recorded: bool, heartbeat: Any) -> str:
    """Run in a worker process."""
    env = envs.make(name, **options)
    try:
        pixels, _ = env.reset(seed=0)
        heartbeat()
        if is_recorded or envs.has_expert(env):
            action = env.expert()()
        else:
            action = np.zeros(env.action_space.shape, env.action_space.dtype)
        env.step(action)
    finally:
        env.close()
    if pixels.min() == pixels.max():
        raise ValueError("it renders one color only")
    return f"renders {pixels.shape[0]} by {pixels.shape[1]} pixels, {env.action_space.shape[0]} actions"
