"""Held-out action error of a policy."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from vampo_core.evaluation.statistics import Metric, bootstrap
from vampo_core.policy.learner import Learner
from vampo_core.policy.normalization import normalize


@dataclass(frozen=True)
class PolicyEvalResult:
    """Error of predicted chunks against the expert's, in units of half the range of the training actions."""

    action_l1: Metric
    """Mean absolute error."""
    action_mse: Metric
    """Mean squared error."""
    num_clips: int
    """Number of frames at which chunks were predicted."""
    num_samples: int
    """Number of chunks for each frame."""
    per_step: dict[str, list[float]]
    """Each metric by place in the chunk: H values."""
    per_clip: dict[str, list[float]]
    """Each metric by frame: ``num_clips`` values."""
    episode_ids: list[str]
    """Episode of each frame; intervals resample episodes."""

    @property
    def score(self) -> float:
        """The negative L1 error: higher is better."""
        return -self.action_l1.mean

    def row(self) -> dict[str, float]:
        """Values for a row of ``metrics.jsonl``."""
        return {"action_l1": self.action_l1.mean, "action_mse": self.action_mse.mean}

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain Python values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "PolicyEvalResult":
        """The inverse of :meth:`to_dict`."""
        metrics = {name: Metric.from_dict(values[name]) for name in ("action_l1", "action_mse")}
        return cls(**{**values, **metrics})


@torch.no_grad()
def evaluate_policy(
    policy: Learner,
    batch: Mapping[str, Any],  # collated held-out items of an ActionDataset
    *,
    num_samples: int = 1,
    seed: int = 0,
    batch_size: int = 16,
) -> PolicyEvalResult:
    """Action error on held-out frames under fixed noise, so that two policies can be paired.

    Args:
        policy: policy or action decoder on the device where it should run.
        batch: held-out frames with the expert's actions.
        num_samples: number of chunks for each frame.
        seed: seed of the noise.
        batch_size: number of frames predicted at once.
    """
    was_training, limits, errors = policy.training, policy.action_range, []
    policy.train(False)
    for start in range(0, len(batch["instruction"]), batch_size):
        part = {key: values[start : start + batch_size] for key, values in batch.items()}
        chunks = policy.predict_recorded(part, num_samples=num_samples, seed=seed, first_clip=start)
        expert = normalize(part["actions"].to(limits.device), limits).unsqueeze(1)  # [B, 1, H, A]
        errors.append((normalize(chunks, limits) - expert).cpu())
    policy.train(was_training)
    error, valid = torch.cat(errors), batch["valid"].float()  # [N, num_samples, H, A], [N, H]
    values = {"action_l1": error.abs().mean((1, 3)), "action_mse": error.square().mean((1, 3))}  # each [N, H]
    per_clip = {name: ((x * valid).sum(1) / valid.sum(1)).tolist() for name, x in values.items()}
    episodes = list(batch["episode_id"])
    return PolicyEvalResult(
        action_l1=bootstrap(per_clip["action_l1"], episodes),
        action_mse=bootstrap(per_clip["action_mse"], episodes),
        num_clips=len(episodes),
        num_samples=num_samples,
        per_step={name: ((x * valid).sum(0) / valid.sum(0).clamp_min(1)).tolist() for name, x in values.items()},
        per_clip=per_clip,
        episode_ids=episodes,
    )
