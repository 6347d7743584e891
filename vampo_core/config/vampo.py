"""The whole configuration, from and to plain values and YAML."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, get_type_hints

from vampo_core.config.checks import ConfigError, nearest
from vampo_core.config.policy_sections import ClosedLoopConfig, PolicyConfig
from vampo_core.config.sections import (
    DataConfig,
    EvaluationConfig,
    GRPOConfig,
    ModelConfig,
    OptimConfig,
    PretrainConfig,
    RewardConfig,
    RunConfig,
    SamplerConfig,
)
from vampo_core.config.yaml_text import dump
from vampo_core.files import write_text


@dataclass(frozen=True, kw_only=True)
class VampoConfig:
    """Everything that defines a run; see :mod:`vampo_core.config.sections`."""

    grpo: GRPOConfig = field(default_factory=GRPOConfig)
    """The policy-gradient loop."""
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    """Noise schedule and stochastic steps."""
    reward: RewardConfig = field(default_factory=RewardConfig)
    """What counts as a good prediction."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """The optimizer of the post-training."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The video predictor."""
    data: DataConfig = field(default_factory=DataConfig)
    """Episodes and clips."""
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    """Likelihood training of the base."""
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    """The action model and its training."""
    closed_loop: ClosedLoopConfig = field(default_factory=ClosedLoopConfig)
    """A policy's episodes in simulators."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """Measurement on held-out clips."""
    run: RunConfig = field(default_factory=RunConfig)
    """Folder, seed, intervals."""

    def __post_init__(self) -> None:
        for name, section in _sections().items():
            if type(getattr(self, name)) is not section:
                given = type(getattr(self, name)).__name__
                raise ConfigError(f"{name} is a {given}, expected a {section.__name__}")
        num_blocks, layers = len(self.model.block_out_channels), self.policy.feature_layers
        if self.policy.predictor is None and self.model.pretrained is None and layers[-1] >= num_blocks:
            raise ConfigError(
                f"policy.feature_layers is {list(layers)}, expected indices below {num_blocks}: the UNet has as many "
                "up blocks as model.block_out_channels has entries"
            )
        if self.sampler.antithetic and self.grpo.num_generations % 2:
            raise ConfigError(
                f"grpo.num_generations is {self.grpo.num_generations}, expected an even number: "
                "with sampler.antithetic a group is made of pairs"
            )
        if self.optim.gradient_accumulation_steps > self.grpo.batch_size:
            raise ConfigError(
                f"optim.gradient_accumulation_steps is {self.optim.gradient_accumulation_steps}, "
                f"expected at most grpo.batch_size = {self.grpo.batch_size}"
            )

        if self.model.pretrained is None and self.data.format == "recorded":
            self.check_resolution()

    def check_resolution(self) -> None:
        """Refuse frames that the embedded default cannot work on.

        Raises:
            ConfigError: patches and the UNet's halvings do not divide them.
        """
        side = self.model.patch_size * 2 ** (len(self.model.block_out_channels) - 1)
        if any(pixels % side for pixels in self.data.image_size):
            raise ConfigError(
                f"data.resolution is {self.data.resolution}, expected a multiple of {side}: model.patch_size = "
                f"{self.model.patch_size}, halved {len(self.model.block_out_channels) - 1} times in the UNet"
            )

    @classmethod
    def from_dict(cls, values: Mapping[Any, Any]) -> "VampoConfig":
        """The configuration with these values and defaults for the rest.

        Raises:
            ConfigError: a key does not exist, or a value has a wrong type or lies outside of its range.
        """
        given = {}
        for name, entries in values.items():
            check_section(name)
            section = _sections()[name]
            known = [f.name for f in fields(section)]
            entries = {} if entries is None else entries  # a section whose lines are all commented out
            if not isinstance(entries, Mapping):
                raise ConfigError(f"{name} is {entries!r}, expected a section with keys {', '.join(known)}")
            for key in entries:
                if key not in known:
                    elsewhere = [k for k in keys() if k.endswith(f".{key}")]
                    hint = f"; did you mean {_listed(elsewhere)}?" if elsewhere else nearest(f"{name}.{key}", keys())
                    raise ConfigError(f"unknown key {name}.{key}, expected one of {', '.join(known)}{hint}")
            given[name] = section(**entries)
        return cls(**given)

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Sections and values, tuples as lists."""
        return {
            name: {
                f.name: list(value) if isinstance(value := getattr(getattr(self, name), f.name), tuple) else value
                for f in fields(section)
            }
            for name, section in _sections().items()
        }

    def to_yaml(self) -> str:
        """The whole configuration as YAML, which :func:`load_config` reads back as an equal one."""
        return dump(self.to_dict())

    def save(self, path: str | Path) -> None:
        """Write :meth:`to_yaml` to a file, which is whole or absent at any time."""
        write_text(Path(path), self.to_yaml())


def keys() -> list[str]:
    """Every key there is, as ``section.key``."""
    return [f"{name}.{field.name}" for name, section in _sections().items() for field in fields(section)]


def check_section(name: object) -> None:
    """Refuse a section that does not exist, naming the nearest one that does."""
    if name not in _sections():
        known = list(_sections())
        raise ConfigError(f"unknown section {name}, expected one of {', '.join(known)}{nearest(name, known)}")


def _listed(names: list[str]) -> str:
    """``'a', 'b' or 'c'``."""
    quoted = [repr(name) for name in names]
    return " or ".join(filter(None, [", ".join(quoted[:-1]), quoted[-1]]))


def _sections() -> dict[str, Any]:
    return get_type_hints(VampoConfig)
