"""Settings of Euler Hybrid sampling, as a section of the configuration."""

from dataclasses import dataclass, fields
from typing import Annotated, Any, ClassVar, Literal

from vampo_core.config.checks import ConfigError, Range, check_fields
from vampo_core.config.roles import Role
from vampo_core.config.sections import VAMPO, Above0, AtLeast0, Count, Positive
from vampo_core.diffusion.settings import EulerHybridSettings, check_interval, check_tail_steps
from vampo_core.diffusion.solvers import check_solver


@dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    """Euler Hybrid sampling: noise where the policy acts, a deterministic ODE everywhere else.

    The settings and their meanings are those of :class:`vampo_core.EulerHybridSampler`. A setting that is null is the
    predictor's own, as its folder says; a predictor made from scratch has the sampler's defaults.
    """

    ROLE: ClassVar[Role] = VAMPO
    DECLARED_IN: ClassVar[tuple[type, ...]] = (EulerHybridSettings,)

    num_inference_steps: Annotated[int, Range(minimum=2)] | None = None
    sigma_min: Above0 | None = None
    sigma_max: Annotated[Above0, Role(decides=("base", "vampo"))] | None = None
    rho: Above0 | None = None
    flow_shift: Annotated[Above0, Role(decides=("base", "vampo"), is_later=True)] | None = None
    eta: Above0 = EulerHybridSettings.eta
    stochastic_steps: tuple[Count, ...] = EulerHybridSettings.stochastic_steps
    guidance_scale: AtLeast0 | None = None
    guidance_interval: tuple[AtLeast0, AtLeast0] | None = None
    solver: str | None = None
    tail_steps: Positive | None = None
    """Denoiser evaluations behind the first stochastic step of a training rollout; null for as many as the schedule has
    left. Inference always takes them all, evaluation unless ``evaluation.cheap_tail`` is set."""
    tail_dtype: Literal["bfloat16", "float16", "float8"] | None = None
    """Precision behind the first stochastic step of a training rollout, where ``model.dtype`` is higher; null for the
    same precision everywhere. float8: linear layers only, the rest in bfloat16, on GPUs of compute capability 8.9 and
    higher, with torchao. Latents stay float32."""
    tail_chunk_size: Annotated[Positive, Role(decides=("vampo",), may_change=True)] | None = None
    """Videos that the deterministic steps work on at once, to bound memory; null for all."""

    def __post_init__(self) -> None:
        check_fields(self, "sampler")
        object.__setattr__(self, "stochastic_steps", tuple(sorted(set(self.stochastic_steps))))
        if self.sigma_min is not None and self.sigma_max is not None and self.sigma_min >= self.sigma_max:
            raise ConfigError(
                f"sampler.sigma_min is {self.sigma_min}, expected less than sampler.sigma_max = {self.sigma_max}"
            )
        last = None if self.num_inference_steps is None else self.num_inference_steps - 2
        if not self.stochastic_steps or (last is not None and self.stochastic_steps[-1] > last):
            raise ConfigError(
                f"sampler.stochastic_steps is {list(self.stochastic_steps)}, expected at least one index from 0 to "
                f"sampler.num_inference_steps - 2{'' if last is None else f' = {last}'}: the step to noise level 0 has "
                "no density"
            )
        try:
            if self.solver is not None:
                check_solver(self.solver)
            if self.guidance_interval is not None:
                check_interval("guidance_interval", self.guidance_interval)
            if self.tail_steps is not None:
                check_tail_steps(self.tail_steps, self.stochastic_steps, self.num_inference_steps)
        except ValueError as error:
            raise ConfigError(f"sampler.{error}") from None

    def overrides(self, *, cheap_tail: bool = False) -> dict[str, Any]:
        """What is set, as :class:`~vampo_core.EulerHybridSampler` names it.

        Args:
            cheap_tail: whether ``tail_steps`` is among it, as in the rollouts of training.
        """
        settings = {field.name for field in fields(EulerHybridSettings)} & {field.name for field in fields(self)}
        if not cheap_tail:
            settings -= {"tail_steps"}
        given = {name: value for name in sorted(settings) if (value := getattr(self, name)) is not None}
        return given if self.guidance_scale is None else given | {"min_guidance_scale": 1.0}
