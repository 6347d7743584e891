"""What pages show, gathered by :mod:`vampo_core.pipeline.summary`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from torch import Tensor

from vampo_core.config import VampoConfig
from vampo_core.config.chain_section import ArmName
from vampo_core.evaluation.episodes import ClosedLoopResult, Comparison
from vampo_core.evaluation.predictor import EvalResult
from vampo_core.evaluation.statistics import Metric, PerClip

EXPERT, BASE, RESULT, PRETRAINED = "Expert", "Base", "VAMPO", "Pretrained"
"""Labels of videos, and of columns and curves about them."""


@dataclass(frozen=True, kw_only=True)
class ClipVideo:
    """Videos of one held-out clip."""

    clip_id: str
    instruction: str
    panels: dict[str, Tensor]  # each [F, 3, H, W] in [0, 1]
    """Videos by label, in the order in which they are shown."""
    l1: dict[str, float]
    """Latent L1 of each prediction, by its label."""


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """A finished or interrupted training of a video predictor."""

    config: VampoConfig
    rows: Sequence[Mapping[str, Any]]
    """Lines of ``metrics.jsonl``."""
    before: EvalResult
    after: EvalResult
    videos: list[ClipVideo]
    error_scale: float
    """Error at which the error map is brightest."""
    decoded: bool
    """Whether videos show frames; otherwise they show latents in false colors."""
    step: int
    """Iteration or update of the checkpoint that is shown."""
    best_step: int
    num_parameters: int
    base: Path | None
    """Folder of the base model; None where it is missing, so that there are no predictions of it."""

    @property
    def result_name(self) -> str:
        """Label of the predictions of the trained model."""
        return result_name(self.rows)


def result_name(rows: Sequence[Mapping[str, Any]]) -> str:
    """Label of what a run trained, from its lines of ``metrics.jsonl``."""
    return PRETRAINED if rows and "rollout_s" not in rows[-1] else RESULT


class ActionErrors(PerClip, Protocol):
    """Held-out errors of a policy; its metrics are attributes, with the names of ``evaluation.metrics.METRICS``."""

    @property
    def action_l1(self) -> Metric:
        """The error that is always measured."""
        ...

    @property
    def num_clips(self) -> int:
        """Number of frames at which actions were predicted."""
        ...

    @property
    def num_samples(self) -> int:
        """Number of chunks for each frame."""
        ...

    @property
    def per_step(self) -> dict[str, list[float]]:
        """Errors by metric, one for each place in the chunk."""
        ...


@dataclass(frozen=True, kw_only=True)
class PolicySummary:
    """A finished or interrupted training of a policy."""

    config: VampoConfig
    rows: Sequence[Mapping[str, Any]]
    """Lines of ``metrics.jsonl``."""
    before: ActionErrors
    after: ActionErrors
    step: int
    """Update of the checkpoint that is shown."""
    facts: list[str]
    """What the policy sees and how it acts, in a few words each."""


@dataclass(frozen=True, kw_only=True)
class ArmResult:
    """A predictor of a chain."""

    title: str
    """Name for people."""
    predictor: Path | None
    """Folder of the checkpoint that policies use, the best one; None where only its results are known."""
    evaluation: EvalResult
    """Its held-out metrics."""
    num_steps: int = 0
    """Iterations or updates of training up to that checkpoint; 0 for the base itself."""
    unit: Literal["iteration", "update"] | None = None
    """What training counts; None where the base was not trained any further."""


@dataclass(frozen=True, kw_only=True)
class ChainResult:
    """What a chain found."""

    folders: dict[str, Path]
    """Folders by stage; each arm and each policy has its own."""
    arms: Mapping[ArmName, ArmResult]
    """Predictors by arm, the base first."""
    policies: Mapping[str, ActionErrors]
    """Held-out action errors of the policies that were trained."""
    closed_loop: dict[str, ClosedLoopResult]
    """Episodes by policy, the one on the base first, and those of the simulator's expert."""

    @property
    def base(self) -> EvalResult:
        """Held-out metrics of the base."""
        return self.arms["base"].evaluation

    @property
    def vampo(self) -> EvalResult:
        """Held-out metrics of VAMPO's best checkpoint, in a chain that has this arm."""
        return self.arms["vampo"].evaluation

    @property
    def best_iteration(self) -> int:
        """Iteration of that checkpoint; 0 for the base itself."""
        return self.arms["vampo"].num_steps


@dataclass(frozen=True, kw_only=True)
class ComparedRun:
    """One of several runs that a page compares; its differences are those from the first of them."""

    name: str
    """Its folder, as short as tells it from the others."""
    config: VampoConfig
    kind: Literal["pretraining", "post-training", "policy"]
    rows: Sequence[Mapping[str, Any]]
    """Lines of ``metrics.jsonl``."""
    before: EvalResult | ActionErrors
    """Held-out metrics before the training."""
    best: EvalResult | ActionErrors
    """Held-out metrics of the best checkpoint."""
    best_step: int
    last_step: int
    num_steps: int
    """Iterations or updates that the configuration asks for."""
    unpaired: str | None = None
    """Why its metrics cannot be paired with those of the first run; None where they can."""
    differences: Mapping[str, Metric]
    """Paired differences from the first run, by metric; empty for the first run itself."""
    not_compared: Mapping[str, str]
    """Why a metric has no difference although runs are paired, by metric."""
    closed_loop: ClosedLoopResult | None = None
    """Episodes in which the policy acted; None where there are none."""
    acted_step: int | None = None
    """Update of the checkpoint that acted."""
    success: Comparison | None = None
    """How these episodes compare with those of the first run; None where they are not the same ones."""


@dataclass(frozen=True, kw_only=True)
class RunComparison:
    """Runs side by side."""

    runs: Sequence[ComparedRun]
    """Two or more, all of predictors or all of policies."""
    settings: Mapping[str, Sequence[Any]]
    """Settings that are not the same in all runs, by key: a value for each run."""
    videos: Sequence[ClipVideo]
    """Held-out clips: the expert's, and what each run's best checkpoint predicts, by the name of the run."""
    decoded: bool = True
    """Whether videos show frames; otherwise they show latents in false colors."""
    without_videos: str | None = None
    """Why there are no videos, where there could be some."""
    page: Path
    """The HTML page that shows all this."""
