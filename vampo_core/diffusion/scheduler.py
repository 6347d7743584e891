"""The Euler Hybrid sampler as a diffusers scheduler, for pipelines that are not ours."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler, EulerDiscreteSchedulerOutput
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from vampo_core.ops import hybrid_euler_step
from vampo_core.ops._checks import check_float, check_int
from vampo_core.ops.coefficients import denoiser_scalings

# SchedulerMixin is here for diffusers: a saved pipeline looks for our class's loader under that name in this module.
__all__ = ["EulerHybridScheduler", "EulerHybridSchedulerOutput", "SchedulerMixin"]


@dataclass
class EulerHybridSchedulerOutput(EulerDiscreteSchedulerOutput):
    """Output of :meth:`EulerHybridScheduler.step`."""

    log_prob: Tensor | None = None  # [N, F] ([N] for images), mean over C, H, W; None for a deterministic step


class EulerHybridScheduler(EulerDiscreteScheduler):
    """``EulerDiscreteScheduler`` whose chosen steps draw noise and report their log-probability.

    Drop-in for diffusers pipelines: ``pipe.scheduler = EulerHybridScheduler.from_config(pipe.scheduler.config)``.
    Every other step, and every step with ``eta=0``, is the base class's own.

    Args:
        eta: noise of the stochastic steps: 1 is the full ancestral step, 0 makes every step deterministic.
        stochastic_steps: indices of the steps that draw noise; the last step, to noise level 0, cannot.
        num_train_timesteps: like all other arguments, as in ``EulerDiscreteScheduler``.
    """

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: np.ndarray | list[float] | None = None,
        prediction_type: str = "epsilon",
        interpolation_type: str = "linear",
        use_karras_sigmas: bool | None = False,
        use_exponential_sigmas: bool | None = False,
        use_beta_sigmas: bool | None = False,
        sigma_min: float | None = None,
        sigma_max: float | None = None,
        timestep_spacing: Literal["linspace", "leading", "trailing"] = "linspace",
        timestep_type: Literal["discrete", "continuous"] = "discrete",
        steps_offset: int = 0,
        rescale_betas_zero_snr: bool = False,
        final_sigmas_type: Literal["zero", "sigma_min"] = "zero",
        eta: float = 1.0,
        stochastic_steps: tuple[int, ...] | list[int] = (0,),
    ):
        check_float("eta", eta, minimum=0)
        for index in stochastic_steps:
            check_int("stochastic_steps", index, minimum=0)
        super().__init__(
            num_train_timesteps=num_train_timesteps,
            beta_start=beta_start,
            beta_end=beta_end,
            beta_schedule=beta_schedule,
            trained_betas=trained_betas,
            prediction_type=prediction_type,
            interpolation_type=interpolation_type,
            use_karras_sigmas=use_karras_sigmas,
            use_exponential_sigmas=use_exponential_sigmas,
            use_beta_sigmas=use_beta_sigmas,
            sigma_min=sigma_min,
            sigma_max=sigma_max,
            timestep_spacing=timestep_spacing,
            timestep_type=timestep_type,
            steps_offset=steps_offset,
            rescale_betas_zero_snr=rescale_betas_zero_snr,
            final_sigmas_type=final_sigmas_type,
        )

    def step(
        self,
        model_output: Tensor,  # [N, F, C, H, W] or [N, C, H, W]
        timestep: float | Tensor,
        sample: Tensor,  # like model_output
        s_churn: float = 0.0,
        s_tmin: float = 0.0,
        s_tmax: float = float("inf"),
        s_noise: float = 1.0,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
        noise: Tensor | None = None,  # like model_output
    ) -> EulerHybridSchedulerOutput | tuple[Tensor, Tensor]:
        """One step, as ``EulerDiscreteScheduler.step``.

        Args:
            model_output: output of the denoiser.
            timestep: current element of ``self.timesteps``.
            sample: noisy latents.
            s_churn: as in ``EulerDiscreteScheduler``; deterministic steps only.
            s_tmin: as in ``EulerDiscreteScheduler``; deterministic steps only.
            s_tmax: as in ``EulerDiscreteScheduler``; deterministic steps only.
            s_noise: as in ``EulerDiscreteScheduler``; deterministic steps only.
            generator: generator of a stochastic step's noise.
            return_dict: False returns ``(prev_sample, pred_original_sample)``.
            noise: standard normal noise of a stochastic step, instead of drawing it.

        Returns:
            ``prev_sample`` of ``model_output``'s dtype, ``pred_original_sample``, and the ``log_prob`` of the
            float32 draw.

        Raises:
            ValueError: ``s_churn`` on a stochastic step, the last step is stochastic, or a shape does not fit.
        """
        if self.step_index is None:
            self._init_step_index(timestep)
        index = self.step_index
        if self.config["eta"] == 0 or index not in self.config["stochastic_steps"]:
            prev_sample, denoised = super().step(
                model_output, timestep, sample, s_churn, s_tmin, s_tmax, s_noise, generator, return_dict=False
            )
            return self._output(prev_sample, denoised, None, return_dict)
        if s_churn != 0:
            raise ValueError(f"s_churn is {s_churn}, expected 0 on the stochastic step {index}")
        sigma, sigma_next = float(self.sigmas[index]), float(self.sigmas[index + 1])
        video = _as_video("model_output", model_output)
        noisy = _as_video("sample", sample).to(torch.float32).contiguous()
        if noise is None:
            noise = randn_tensor(noisy.shape, generator=generator, device=noisy.device, dtype=torch.float32)
        step = hybrid_euler_step(
            noisy,
            video.contiguous(),
            sigma=sigma,
            sigma_next=sigma_next,
            eta=self.config["eta"],
            prediction_type=self._prediction_type,
            noise=_as_video("noise", noise.view(sample.shape)).to(torch.float32).unsqueeze(1),
        )
        assert step.log_prob is not None
        c_skip, c_out = denoiser_scalings(sigma, self._prediction_type)
        denoised = c_skip * sample.to(torch.float32) + c_out * model_output
        self._step_index = index + 1  # type: ignore[assignment]
        prev_sample = step.prev_sample.view(sample.shape).to(model_output.dtype)
        return self._output(prev_sample, denoised, step.log_prob.view(sample.shape[: sample.ndim - 3]), return_dict)

    @property
    def _prediction_type(self):
        original = self.config["prediction_type"] == "original_sample"
        return "sample" if original else self.config["prediction_type"]

    @staticmethod
    def _output(prev_sample: Tensor, denoised: Tensor, log_prob: Tensor | None, return_dict: bool):
        if not return_dict:
            return prev_sample, denoised
        return EulerHybridSchedulerOutput(prev_sample=prev_sample, pred_original_sample=denoised, log_prob=log_prob)


def _as_video(name: str, value: Tensor) -> Tensor:
    """``[N, C, H, W]`` as one-frame videos ``[N, 1, C, H, W]``."""
    if value.ndim not in (4, 5):
        raise ValueError(f"{name} has shape {tuple(value.shape)}, expected [N, F, C, H, W] or [N, C, H, W]")
    return value if value.ndim == 5 else value.unsqueeze(1)
