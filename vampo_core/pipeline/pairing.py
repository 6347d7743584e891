"""Whether two runs measured the same thing, so that their held-out metrics may be paired clip by clip."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from vampo_core.config import VampoConfig, deciding
from vampo_core.evaluation.predictor import LEVELS
from vampo_core.models.fingerprint import files_summary
from vampo_core.policy.base import WEIGHTS
from vampo_core.policy.settings import policy_kind

_TRAINING_ONLY = ("data.weights",)
_OF_RECORDINGS = ("data.num_episodes", "data.action_noise")
"""Settings that say what is recorded in a simulator, and nothing without one."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The best checkpoint of a run, and what was measured of it."""

    config: VampoConfig
    checkpoint: Path
    result: Any
    """Held-out metrics, of a predictor or of a policy."""


def why_unpaired(first: Measured, other: Measured) -> str | None:
    """Why predictors of two runs cannot be compared clip by clip; None where they can."""
    changed = other_clips(first.config, other.config)
    if changed and not (changed == ["data.root"] and _same_levels(first.result, other.result)):
        return f"other held-out clips ({', '.join(changed)})"
    if _codec_files(first.checkpoint) != _codec_files(other.checkpoint):
        return "latents of another codec, whose distances have another scale"
    return _other_episodes(first, other)


def why_unpaired_policies(first: Measured, other: Measured) -> str | None:
    """Why policies of two runs cannot be compared frame by frame; None where they can."""
    if changed := other_clips(first.config, other.config):
        return f"other held-out frames ({', '.join(changed)})"
    old_kind, kind = policy_kind(first.checkpoint), policy_kind(other.checkpoint)
    if old_kind != kind:
        return f"a policy of another kind ({kind} instead of {old_kind})"
    old, new = (load_file(run.checkpoint / WEIGHTS)["action_range"] for run in (first, other))
    if old.shape != new.shape or not torch.allclose(old, new):
        return "errors in other units (another range of the training actions)"
    old_length, length = (len(run.result.per_step["action_l1"]) for run in (first, other))
    if old_length != length:
        return f"chunks of {length} actions instead of {old_length}"
    return _other_episodes(first, other)


def _other_episodes(first: Measured, other: Measured) -> str | None:
    return None if first.result.episode_ids == other.result.episode_ids else "other held-out episodes"


def other_clips(first: VampoConfig, other: VampoConfig) -> list[str]:
    """Settings by which the held-out clips of two runs differ.

    Where both were recorded in a simulator, the folders may differ: the settings decide what is in them.
    """
    old, new = _clip_settings(first), _clip_settings(other)
    return [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]


def other_yardstick(metric: str, first: Measured, other: Measured) -> str | None:
    """Why one metric of two paired results cannot be compared: something else measured it. None where it can."""
    if metric in ("action_error", "action_ratio") and not _same_levels(first.result, other.result):
        return "another judge"
    if metric == "decoder_error":
        old, new = (
            [run.config.reward.action_decoder, run.config.run.seed, deciding(run.config, "decoder")]
            for run in (first, other)
        )
        return None if old == new else "another decoder"
    return None


def _same_levels(first: Any, other: Any) -> bool:
    """Whether the same judge has seen the same clips: its errors on the expert's own videos depend on nothing else."""
    pairs = [(getattr(first, name, None), getattr(other, name, None)) for name in LEVELS]
    return all(old and new and math.isclose(old, new, rel_tol=1e-4) for old, new in pairs)


def _clip_settings(config: VampoConfig) -> dict[str, Any]:
    found = {**deciding(config, "data"), "evaluation.num_clips": config.evaluation.num_clips}
    ignored = {*_TRAINING_ONLY, *(_OF_RECORDINGS if config.data.env is None else ("data.root",))}
    found = {key: value for key, value in found.items() if key not in ignored}
    if "data.root" in found:
        found["data.root"] = [str(Path(root).resolve()) for root in config.data.roots]
    return found


def _codec_files(checkpoint: Path) -> list[str]:
    """What tells the weights of a checkpoint's codec from those of others."""
    folders = [checkpoint / name for name in ("codec", "vae") if (checkpoint / name).is_dir()]
    return [line for folder in folders for line in files_summary(folder) if ".json " not in line]
