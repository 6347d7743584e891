"""The Euler Hybrid sampler of a rectified flow as a diffusers scheduler, for pipelines that are not ours."""

from typing import Any

import numpy as np
import torch
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from vampo_core.diffusion.process import FLOW_PREDICTION
from vampo_core.diffusion.scheduler import EulerHybridSchedulerOutput
from vampo_core.diffusion.sigmas import level_of_flow, make_sigmas
from vampo_core.ops import hybrid_euler_step
from vampo_core.ops._checks import check_float, check_int

# SchedulerMixin is here for diffusers: a saved pipeline looks for our class's loader under that name in this module.
__all__ = ["EulerHybridFlowScheduler", "SchedulerMixin"]


class EulerHybridFlowScheduler(FlowMatchEulerDiscreteScheduler):
    """``FlowMatchEulerDiscreteScheduler`` whose chosen steps draw noise and report their log-probability.

    Drop-in for pipelines of rectified flows, such as Wan's and Cosmos-Predict2.5's:
    ``pipe.scheduler = EulerHybridFlowScheduler.from_config(pipe.scheduler.config)``. Noise levels are those of
    ``UniPCMultistepScheduler(use_flow_sigmas=True)``, which Wan's folders name, or with ``use_karras_sigmas`` those of
    Cosmos-Predict2.5's.

    Args:
        num_train_timesteps: model time of pure noise.
        shift: shift of the noise levels towards large noise.
        flow_shift: the same under the name that UniPC has for it; it counts where it is given.
        prediction_type: ``"flow_prediction"``.
        eta: noise of the stochastic steps: 1 is the full ancestral step, 0 makes every step deterministic.
        stochastic_steps: indices of the steps that draw noise; the last step, to noise level 0, cannot.
        use_karras_sigmas: True spaces ``sigma / (1 - sigma)`` as Karras et al. 2022 do, and shifts nothing.
        sigma_min: smallest ``sigma / (1 - sigma)`` above 0, with ``use_karras_sigmas``.
        sigma_max: the largest one, with ``use_karras_sigmas``.
    """

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        shift: float = 1.0,
        flow_shift: float | None = None,
        prediction_type: str = FLOW_PREDICTION,
        eta: float = 1.0,
        stochastic_steps: tuple[int, ...] | list[int] = (0,),
        use_karras_sigmas: bool = False,
        sigma_min: float | None = None,
        sigma_max: float | None = None,
    ):
        check_float("eta", eta, minimum=0)
        for index in stochastic_steps:
            check_int("stochastic_steps", index, minimum=0)
        if prediction_type != FLOW_PREDICTION:
            raise ValueError(f"prediction_type is {prediction_type!r}, expected {FLOW_PREDICTION!r}")
        if use_karras_sigmas and (sigma_min is None or sigma_max is None):
            raise ValueError(
                f"sigma_min is {sigma_min} and sigma_max is {sigma_max} with use_karras_sigmas, expected two numbers"
            )
        super().__init__(
            num_train_timesteps=num_train_timesteps,
            shift=shift if flow_shift is None else flow_shift,
            use_karras_sigmas=use_karras_sigmas,
        )

    def _convert_to_karras(self, in_sigmas: Any, num_inference_steps: int) -> Any:  # array [num_inference_steps]
        """UniPC's noise levels, which the base class would space by ``sigma`` itself."""
        low, high = (level_of_flow(self.config[name]) for name in ("sigma_min", "sigma_max"))
        levels = make_sigmas(num_inference_steps, sigma_min=low, sigma_max=high, schedule="flow_karras")
        return np.array(levels[:-1])

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Any = None,
        sigmas: list[float] | None = None,
        mu: float | None = None,
        timesteps: list[float] | None = None,
    ) -> None:
        """As ``FlowMatchEulerDiscreteScheduler.set_timesteps``, with UniPC's noise levels by default.

        Args:
            num_inference_steps: number of steps.
            device: device of noise levels and time steps.
            sigmas: noise levels before the shift, instead of the default ones.
            mu: as in the base class.
            timesteps: as in the base class.
        """
        if sigmas is None and timesteps is None and num_inference_steps is not None:
            last = 1 / self.config["num_train_timesteps"]
            sigmas = np.linspace(1, last, num_inference_steps + 1)[:-1].tolist()
        super().set_timesteps(num_inference_steps, device, sigmas, mu, timesteps)

    def step(  # type: ignore[override]  # diffusers asks for a FloatTensor, which no tensor is
        self,
        model_output: Tensor,  # [N, C, F, H, W] or [N, C, H, W]
        timestep: Any,  # float or tensor
        sample: Tensor,  # like model_output
        s_churn: float = 0.0,
        s_tmin: float = 0.0,
        s_tmax: float = float("inf"),
        s_noise: float = 1.0,
        generator: torch.Generator | None = None,
        per_token_timesteps: Tensor | None = None,
        return_dict: bool = True,
        noise: Tensor | None = None,  # like model_output
    ) -> EulerHybridSchedulerOutput | tuple[Tensor]:
        """One step, as ``FlowMatchEulerDiscreteScheduler.step``.

        Args:
            model_output: velocity ``noise - x0`` that the denoiser returned.
            timestep: current element of ``self.timesteps``.
            sample: noisy latents.
            s_churn: unused, as in the base class.
            s_tmin: unused, as in the base class.
            s_tmax: unused, as in the base class.
            s_noise: unused, as in the base class.
            generator: generator of a stochastic step's noise.
            per_token_timesteps: as in the base class; deterministic steps only.
            return_dict: False returns ``(prev_sample,)``.
            noise: standard normal noise of a stochastic step, instead of drawing it.

        Returns:
            ``prev_sample`` of ``model_output``'s dtype, ``pred_original_sample``, and the ``log_prob`` of the float32
            draw, ``[N, F]``, or ``[N]`` for images. A pipeline that overwrites the first frame of a video with its
            condition leaves that frame's log-probability without a meaning.

        Raises:
            ValueError: ``per_token_timesteps`` on a stochastic step, the last step is stochastic, or a shape does not
                fit.
        """
        if self.step_index is None:
            self._init_step_index(timestep)
        index = self.step_index
        sigma, sigma_next = float(self.sigmas[index]), float(self.sigmas[index + 1])
        denoised = sample.to(torch.float32) - sigma * model_output
        if self.config["eta"] == 0 or index not in self.config["stochastic_steps"]:
            base: Any = super()
            (prev_sample,) = base.step(
                model_output, timestep, sample, s_churn, s_tmin, s_tmax, s_noise, generator, per_token_timesteps, False
            )
            return _output(prev_sample, denoised, None, return_dict)
        if per_token_timesteps is not None:
            raise ValueError(f"per_token_timesteps is given, expected None on the stochastic step {index}")
        if noise is None:
            noise = randn_tensor(sample.shape, generator=generator, device=sample.device, dtype=torch.float32)
        step = hybrid_euler_step(
            _frames_first("sample", sample).to(torch.float32).contiguous(),
            _frames_first("model_output", model_output).contiguous(),
            sigma=sigma,
            sigma_next=sigma_next,
            eta=self.config["eta"],
            prediction_type=FLOW_PREDICTION,
            noise=_frames_first("noise", noise).to(torch.float32).unsqueeze(1).contiguous(),
        )
        assert step.log_prob is not None
        self._step_index = index + 1
        prev_sample = step.prev_sample[:, 0].transpose(1, 2).reshape(sample.shape).to(model_output.dtype)
        log_prob = step.log_prob[:, 0] if sample.ndim == 5 else step.log_prob[:, 0, 0]
        return _output(prev_sample, denoised, log_prob, return_dict)


def _output(prev_sample: Tensor, denoised: Tensor, log_prob: Tensor | None, return_dict: bool):
    if not return_dict:
        return (prev_sample,)
    return EulerHybridSchedulerOutput(prev_sample=prev_sample, pred_original_sample=denoised, log_prob=log_prob)


def _frames_first(name: str, value: Tensor) -> Tensor:  # [N, F, C, H, W]
    """Videos ``[N, C, F, H, W]`` or images ``[N, C, H, W]`` in the order of the operators."""
    if value.ndim not in (4, 5):
        raise ValueError(f"{name} has shape {tuple(value.shape)}, expected [N, C, F, H, W] or [N, C, H, W]")
    return value.transpose(1, 2) if value.ndim == 5 else value.unsqueeze(1)
