"""Held-out action error of a policy."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from vampo_core.evaluation.statistics import Metric


@dataclass(frozen=True)
class PolicyEvalResult:
    """Error of sampled chunks against the expert's, in units of half the range of the training actions."""

    action_l1: Metric
    action_mse: Metric
    num_clips: int  # frames at which chunks were predicted
    num_samples: int
    per_step: dict[str, list[float]]  # metric -> [H], by place in the chunk
    per_clip: dict[str, list[float]]  # metric -> [num_clips]
    episode_ids: list[str]  # of each frame: intervals resample episodes

    @property
    def score(self) -> float:
        """The negative L1 error: higher is better."""
        return -self.action_l1.mean

    def row(self) -> dict[str, float]:
        """What ``metrics.jsonl`` gets."""
        return {"action_l1": self.action_l1.mean, "action_mse": self.action_mse.mean}

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain Python values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "PolicyEvalResult":
        """The inverse of :meth:`to_dict`."""
        metrics = {name: Metric.from_dict(values[name]) for name in ("action_l1", "action_mse")}
        return cls(**{**values, **metrics})
