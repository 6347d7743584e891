"""vampo_core: reinforcement-learning post-training of video action models (VAMPO, arXiv 2603.19370)."""

import importlib
from typing import TYPE_CHECKING, Any

from vampo_core import ops
from vampo_core._extension import build_info, version

if TYPE_CHECKING:
    from vampo_core.api import evaluate, evaluate_policy, pretrain, sample, train, train_policy
    from vampo_core.config import VampoConfig, load_config
    from vampo_core.diffusion.sampler import EulerHybridSampler
    from vampo_core.diffusion.scheduler import EulerHybridScheduler
    from vampo_core.evaluation.predictor import EvalResult
    from vampo_core.grpo.trainer import VampoTrainer
    from vampo_core.models.predictor import VideoPredictor
    from vampo_core.pipeline.chain import run_chain
    from vampo_core.pipeline.pages import write_report
    from vampo_core.policy.vpp.policy import Policy
    from vampo_core.training.loop import TrainResult

__version__ = version()

_LAZY = {
    "EulerHybridSampler": "vampo_core.diffusion.sampler",
    "EulerHybridScheduler": "vampo_core.diffusion.scheduler",
    "EvalResult": "vampo_core.evaluation.predictor",
    "Policy": "vampo_core.policy.vpp.policy",
    "TrainResult": "vampo_core.training.loop",
    "VampoConfig": "vampo_core.config",
    "VampoTrainer": "vampo_core.grpo.trainer",
    "VideoPredictor": "vampo_core.models.predictor",
    "evaluate": "vampo_core.api",
    "evaluate_policy": "vampo_core.api",
    "load_config": "vampo_core.config",
    "pretrain": "vampo_core.api",
    "run_chain": "vampo_core.pipeline.chain",
    "sample": "vampo_core.api",
    "train": "vampo_core.api",
    "train_policy": "vampo_core.api",
    "write_report": "vampo_core.pipeline.pages",
}
"""Names whose modules import diffusers and the like, which takes seconds: loaded on first use."""

__all__ = [
    "EulerHybridSampler",
    "EulerHybridScheduler",
    "EvalResult",
    "Policy",
    "TrainResult",
    "VampoConfig",
    "VampoTrainer",
    "VideoPredictor",
    "build_info",
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
