"""The whole configuration, from and to plain values and YAML."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from vampo_core.config.chain_section import ChainConfig
from vampo_core.config.checks import ConfigError, nearest
from vampo_core.config.meaning import annotated_yaml
from vampo_core.config.policy_sections import ClosedLoopConfig, DecoderConfig, PolicyConfig
from vampo_core.config.roles import Product, Role, products_behind, roles_of
from vampo_core.config.sampler_section import SamplerConfig
from vampo_core.config.sections import (
    DataConfig,
    EvaluationConfig,
    GRPOConfig,
    ModelConfig,
    OptimConfig,
    PretrainConfig,
    RewardConfig,
    RunConfig,
)
from vampo_core.config.yaml_text import dump
from vampo_core.diffusion.settings import EulerHybridSettings
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
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    """The action decoder, for rewards, as a judge and in policies that act on imagined videos."""
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    """The action model and its training."""
    closed_loop: ClosedLoopConfig = field(default_factory=ClosedLoopConfig)
    """A policy's episodes in simulators."""
    chain: ChainConfig = field(default_factory=ChainConfig)
    """What ``vampo chain`` compares."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """Measurement on held-out clips."""
    run: RunConfig = field(default_factory=RunConfig)
    """Folder, seed, intervals."""

    def __post_init__(self) -> None:
        for name, section in _sections().items():
            if type(getattr(self, name)) is not section:
                given = type(getattr(self, name)).__name__
                raise ConfigError(f"{name} is a {given}, expected a {section.__name__}")
        num_blocks, layers = self.model.num_blocks, self.policy.feature_layers
        if self.policy.predictor is None and self.model.pretrained is None and layers[-1] >= num_blocks:
            setting = "model.block_out_channels" if self.model.backbone == "svd" else "model.num_layers"
            raise ConfigError(
                f"policy.feature_layers is {list(layers)}, expected indices below {num_blocks}, the number of blocks "
                f"that {setting} gives"
            )
        self._check_levels()
        if self.grpo.batch_size % self.optim.gradient_accumulation_steps:
            raise ConfigError(
                f"optim.gradient_accumulation_steps is {self.optim.gradient_accumulation_steps}, expected a divisor of "
                f"grpo.batch_size = {self.grpo.batch_size}"
            )
        higher = {"float8": ("float32", "bfloat16")}.get(str(self.sampler.tail_dtype), ("float32",))
        if self.sampler.tail_dtype is not None and self.model.dtype not in higher:
            raise ConfigError(
                f"sampler.tail_dtype is {self.sampler.tail_dtype!r} with model.dtype = {self.model.dtype!r}, expected "
                f"null, or model.dtype = {' or '.join(higher)}: the whole rollout is in half precision then"
            )
        if self.evaluation.cheap_tail and self.sampler.tail_steps is None:
            raise ConfigError(
                "evaluation.cheap_tail is True with sampler.tail_steps = null, expected a number of steps there: "
                "no tail is cheaper"
            )
        if self.grpo.credit == "pathwise":
            if len(self.sampler.stochastic_steps) > 1:
                raise ConfigError(
                    f"grpo.credit is 'pathwise' with sampler.stochastic_steps = {list(self.sampler.stochastic_steps)}, "
                    "expected one step: the path from the first to the reward must draw nothing"
                )
            if "float16" in (self.model.dtype, self.sampler.tail_dtype):
                raise ConfigError(
                    f"grpo.credit is 'pathwise' with model.dtype = {self.model.dtype!r} and sampler.tail_dtype = "
                    f"{self.sampler.tail_dtype!r}, expected float32 or bfloat16: the derivative would vanish in float16"
                )
            if self.sampler.tail_dtype == "float8":
                raise ConfigError(
                    "grpo.credit is 'pathwise' with sampler.tail_dtype = 'float8', expected null or bfloat16: float8 "
                    "has no derivative"
                )
        simulators = ",".join(filter(None, [self.data.env, self.closed_loop.env]))
        if simulators and isinstance(self.data.resolution, tuple):
            raise ConfigError(
                f"data.resolution is {list(self.data.resolution)}, expected one number: {simulators} renders squares"
            )
        if self.model.pretrained is None and self.data.format == "recorded":
            self.check_resolution()

    def _check_levels(self) -> None:
        """Refuse noise levels that a model from scratch does not have."""
        if self.model.pretrained is not None or self.policy.predictor is not None:
            return
        is_flow = self.model.backbone != "svd"
        for name in ("sigma_min", "sigma_max", "rho") if is_flow else ("flow_shift",):
            if (value := getattr(self.sampler, name)) is not None:
                reason = "a flow goes from pure noise to none, see sampler.flow_shift" if is_flow else "it is no flow"
                raise ConfigError(
                    f"sampler.{name} is {value} with model.backbone = {self.model.backbone!r}, expected null: {reason}"
                )

    def check_resolution(self) -> None:
        """Refuse frames that the embedded default cannot work on.

        Raises:
            ConfigError: patches and the network's halvings do not divide them.
        """
        side = self.model.patch_size * 2**self.model.num_halvings
        if any(pixels % side for pixels in self.data.image_size):
            raise ConfigError(
                f"data.resolution is {self.data.resolution}, expected a multiple of {side}: model.patch_size = "
                f"{self.model.patch_size}, halved {self.model.num_halvings} times in the network"
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
            entries = {key: value for key, value in entries.items() if not _is_removed(f"{name}.{key}", value)}
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

    @property
    def simulator(self) -> str | None:
        """Simulators that policies act in, by name: ``closed_loop.env``, by default ``data.env``."""
        return self.closed_loop.env or self.data.env

    def to_yaml(self) -> str:
        """The whole configuration as YAML, which :func:`load_config` reads back as an equal one."""
        return dump(self.to_dict())

    def to_annotated_yaml(self) -> str:
        """As :meth:`to_yaml`, with the meaning of every setting above it."""
        return annotated_yaml(self.to_dict(), _sections())

    def save(self, path: str | Path) -> None:
        """Write :meth:`to_yaml` to a file, which is whole or absent at any time."""
        write_text(Path(path), self.to_yaml())


REMOVED = {"sampler.antithetic": False, "sampler.shared_noise": True, "data.steps_after_success": 0}
"""Settings that there were once, each with the value that switched it off: it gained nothing in measurements."""


def _is_removed(key: str, value: object) -> bool:
    """Whether a setting that is no longer there has the value that is now the only one.

    Raises:
        ConfigError: it has another value.
    """
    if key in REMOVED and value != REMOVED[key]:
        raise ConfigError(
            f"{key} is {value!r}, but the setting was removed because it gained nothing; expected {REMOVED[key]!r}, or "
            "no such line"
        )
    return key in REMOVED


def roles() -> dict[str, Role]:
    """The role of every setting, by key."""
    return roles_of(_sections())


def deciding(config: VampoConfig, product: Product) -> dict[str, Any]:
    """Settings that decide a product, by key; where a predictor lies is not among them, as its weights count instead.

    A null ``sampler.sigma_max`` is the sampler's default here, which models from scratch are trained for.
    """
    values, defaults, products = config.to_dict(), VampoConfig().to_dict(), set(products_behind(product))
    found = {}
    for key, role in roles().items():
        section, name = key.split(".")
        is_new = role.is_later and values[section][name] == defaults[section][name]
        if products & set(role.decides) and not is_new:
            found[key] = values[section][name]
    if product == "base":
        found["sampler.sigma_max"] = config.sampler.sigma_max or EulerHybridSettings.sigma_max
    return found


def stored_with(config: VampoConfig, product: Product) -> dict[str, Any]:
    """Settings that are stored with the weights of a product, by name without the section."""
    found = {}
    for key, role in roles().items():
        section, name = key.split(".")
        if role.is_stored and product in role.decides:
            found[name] = getattr(getattr(config, section), name)
    return found


def resumed(config: VampoConfig, own: VampoConfig) -> VampoConfig:
    """Settings to continue an unfinished run with: its own, and those of ``config`` that only say how it is made.

    Args:
        config: what is asked for now.
        own: settings of the run.
    """
    values, now = own.to_dict(), config.to_dict()
    for key, role in roles().items():
        if role.may_change and role.unless is None:
            section, name = key.split(".")
            values[section][name] = now[section][name]
    return VampoConfig.from_dict(values)


def keys() -> list[str]:
    """Every key there is, as ``section.key``."""
    return [f"{name}.{field.name}" for name, section in _sections().items() for field in fields(section)]


def is_text(key: str) -> bool:
    """Whether a setting is a text, or a list of texts."""
    return str in _types_of(key)


def takes_list(key: str) -> bool:
    """Whether a setting may be a list."""
    return any(get_origin(kind) is tuple for kind in _types_of(key))


def _types_of(key: str) -> tuple[Any, ...]:
    """The types that a setting may have; none for a key that does not exist."""
    section, _, name = key.partition(".")
    hints = get_type_hints(_sections()[section]) if section in _sections() else {}
    if name not in hints:
        return ()
    return get_args(hints[name]) if get_origin(hints[name]) in (UnionType, Union) else (hints[name],)


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
