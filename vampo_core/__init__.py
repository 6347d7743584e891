"""vampo_core: reinforcement-learning post-training of video action models (VAMPO, arXiv 2603.19370)."""

import importlib
from typing import TYPE_CHECKING, Any

from vampo_core import ops
from vampo_core._extension import build_info, version

if TYPE_CHECKING:
    from vampo_core.api import (
        compare_runs,
        evaluate,
        evaluate_policy,
        pretrain,
        run_chain,
        sample,
        train,
        train_policy,
        write_report,
    )
    from vampo_core.config import VampoConfig, load_config
    from vampo_core.diffusion.flow_scheduler import EulerHybridFlowScheduler
    from vampo_core.diffusion.sampler import EulerHybridSampler
    from vampo_core.diffusion.scheduler import EulerHybridScheduler
    from vampo_core.evaluation.predictor import EvalResult
    from vampo_core.grpo.trainer import VampoTrainer
    from vampo_core.models.predictor import VideoPredictor
    from vampo_core.policy.base import Policy
    from vampo_core.training.loop import TrainResult

__version__ = version()

_LAZY = {
    "EulerHybridFlowScheduler": "vampo_core.diffusion.flow_scheduler",
    "EulerHybridSampler": "vampo_core.diffusion.sampler",
    "EulerHybridScheduler": "vampo_core.diffusion.scheduler",
    "EvalResult": "vampo_core.evaluation.predictor",
    "Policy": "vampo_core.policy.base",
    "TrainResult": "vampo_core.training.loop",
    "VampoConfig": "vampo_core.config",
    "VampoTrainer": "vampo_core.grpo.trainer",
    "VideoPredictor": "vampo_core.models.predictor",
    "compare_runs": "vampo_core.api",
    "evaluate": "vampo_core.api",
    "evaluate_policy": "vampo_core.api",
    "load_config": "vampo_core.config",
    "pretrain": "vampo_core.api",
    "run_chain": "vampo_core.api",
    "sample": "vampo_core.api",
    "train": "vampo_core.api",
    "train_policy": "vampo_core.api",
    "write_report": "vampo_core.api",
}
"""Public names and their modules, which are loaded on first use: they import diffusers and others, for seconds."""

__all__ = [
    "EulerHybridFlowScheduler",
    "EulerHybridSampler",
    "EulerHybridScheduler",
    "EvalResult",
    "Policy",
    "TrainResult",
    "VampoConfig",
    "VampoTrainer",
    "VideoPredictor",
    "build_info",
    "compare_runs",
    "evaluate",
    "evaluate_policy",
    "load_config",
    "ops",
    "pretrain",
    "run_chain",
    "sample",
    "train",
    "train_policy",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
