"""Configuration of a run: what there is to set, and where it comes from."""

from vampo_core.config.chain_section import ChainConfig
from vampo_core.config.checks import ConfigError
from vampo_core.config.load import load_config, presets
from vampo_core.config.policy_sections import ClosedLoopConfig, PolicyConfig
from vampo_core.config.sampler_section import SamplerConfig
from vampo_core.config.sections import (
    AdamWConfig,
    DataConfig,
    EvaluationConfig,
    GRPOConfig,
    ModelConfig,
    OptimConfig,
    PretrainConfig,
    RewardConfig,
    RunConfig,
)
from vampo_core.config.vampo import VampoConfig, deciding, resumed, roles

__all__ = [
    "AdamWConfig",
    "ChainConfig",
    "ClosedLoopConfig",
    "ConfigError",
    "DataConfig",
    "EvaluationConfig",
    "GRPOConfig",
    "ModelConfig",
    "OptimConfig",
    "PolicyConfig",
    "PretrainConfig",
    "RewardConfig",
    "RunConfig",
    "SamplerConfig",
    "VampoConfig",
    "deciding",
    "load_config",
    "presets",
    "resumed",
    "roles",
]
