"""The base that KL penalty and anchor compare the policy with."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor

from vampo_core.models import lora
from vampo_core.models.predictor import Condition, VideoPredictor

Reference = Callable[[Tensor, float | Tensor, Condition], Tensor]
"""``reference(sample, sigma, condition)``: the base's raw output, as :meth:`VideoPredictor.forward` returns it."""


def frozen_base(model: VideoPredictor) -> Reference:
    """The predictor's base, whatever training makes of the predictor.

    With adapters that is the model under them, run with the adapters switched off; nothing is copied. Without, it is
    the predictor as it is now: a copy of its UNet, and the same codec and encoders.
    """
    if lora.has_adapter(model.unet):

        def base(sample: Tensor, sigma: float | Tensor, condition: Condition) -> Tensor:
            with torch.no_grad(), lora.adapter_off(model.unet):
                return model(sample, sigma, condition)

        return base
    return VideoPredictor(
        copy.deepcopy(model.unet).requires_grad_(False),
        model.codec,
        text_encoder=model.text_encoder,
        image_encoder=model.image_encoder,
        scheduler=model.scheduler,
        settings=model.settings,
        dtype=model.dtype,
    )
