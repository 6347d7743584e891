"""The optimizer of a model under training: AdamW, learning-rate schedule, clipping, loss scaling, EMA."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from vampo_core.config import AdamWConfig
from vampo_core.training.checkpoint import TrainerState
from vampo_core.training.processes import average, copy_from_main


class NonFiniteError(ArithmeticError):
    """A loss, reward or gradient is NaN or infinite; the update it belongs to was not made."""


class TrainedModel(Protocol):
    """A module that can be trained and writes its own checkpoint folder."""

    @property
    def dtype(self) -> torch.dtype:
        """Precision of its autocast."""
        ...

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """All parameters; those that require grad are trained."""
        ...

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a checkpoint folder."""
        ...


class ModelOptimizer:
    """AdamW on a model's trained parameters, with everything around an update.

    Gradients may come from any number of backward passes; they are averaged over processes once, in :meth:`step`.

    In float16 small gradients would vanish: the loss is scaled up (Micikevicius et al. 2018, section 3.2) and gradients
    are scaled back before anything looks at them. Where they overflow, the scale is halved and that update skipped.

    Args:
        model: module whose parameters that require grad are optimized; it is moved to the accelerator's device.
        accelerator: this process's device and the other processes.
        config: settings of the optimizer.
        num_updates: number of updates in the whole run.
        ema_decay: decay of the running mean of the weights; 0 for none.
        lr_scale: factor on the learning rate of a parameter, by its name; 1 by default.
    """

    def __init__(
        self,
        model: TrainedModel,
        accelerator: Accelerator,
        config: AdamWConfig,
        *,
        num_updates: int,
        ema_decay: float,
        lr_scale: Callable[[str], float] = lambda name: 1.0,
    ) -> None:
        self.model, self.accelerator, self.config = model, accelerator, config
        assert isinstance(model, nn.Module)
        model.to(accelerator.device)
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.names = list(trained)
        self.parameters: list[nn.Parameter] = list(trained.values())
        if not self.parameters:
            raise ValueError("model has no parameters that require grad, expected at least one")
        copy_from_main([parameter.data for parameter in self.parameters], accelerator)
        groups: dict[float, list[nn.Parameter]] = {}
        for name, parameter in trained.items():
            groups.setdefault(lr_scale(name), []).append(parameter)
        self.adamw = torch.optim.AdamW(
            [{"params": parameters} for parameters in groups.values()],
            lr=config.lr,
            weight_decay=config.weight_decay,
            betas=(config.beta1, config.beta2),
        )
        self._lr_scales = list(groups)
        self.scaler = GradScaler(accelerator.device.type, enabled=model.dtype == torch.float16)
        self.num_skipped = 0
        self._losses: list[Tensor] = []  # of the next update
        self.ema = EMAModel(self.parameters, decay=ema_decay) if ema_decay > 0 else None
        self.num_updates, self._last_update = 0, num_updates

    @property
    def lr(self) -> float:
        """Learning rate of the next update."""
        config = self.config
        rise = (self.num_updates + 1) / config.warmup_steps if config.warmup_steps else 1.0
        fall = (self._last_update - self.num_updates) / config.decay_steps if config.decay_steps else 1.0
        return config.lr * max(0.0, min(1.0, rise, fall))

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of ``loss`` to this process's gradients; :meth:`step` refuses one that is not finite."""
        self._losses.append(loss.detach())
        self.scaler.scale(loss).backward()

    def step(self, *, what: str) -> float:
        """Make one update from the gradients gathered since the last one; returns their norm before clipping.

        In float16 a norm that is not finite means that the update was skipped; the learning rate moves on nevertheless.

        Raises:
            NonFiniteError: a loss is not finite, or a gradient, and no smaller scale of the loss can help.
        """
        gradients = {name: p.grad for name, p in zip(self.names, self.parameters, strict=True) if p.grad is not None}
        average(list(gradients.values()), self.accelerator)
        self.scaler.unscale_(self.adamw)
        norms = torch.stack(torch._foreach_norm(list(gradients.values())))
        total, losses = torch.linalg.vector_norm(norms), torch.stack(self._losses)
        self._losses.clear()
        # the only wait for the device in an update
        norm, *checks = torch.stack([total, *(torch.isfinite(values).all() for values in (norms, losses))]).tolist()
        finite, has_losses = map(bool, checks)
        if not has_losses:
            self.adamw.zero_grad()
            raise NonFiniteError(f"{what}: the loss is {losses[~torch.isfinite(losses)][0].item()}")
        scale = self.scaler.get_scale()
        self.scaler.update()
        if not finite and scale <= 1:  # looked at before clipping, which spreads NaN to every parameter
            culprit = list(gradients)[int((~torch.isfinite(norms)).nonzero()[0])]
            self.adamw.zero_grad()
            raise NonFiniteError(f"{what}: the gradient of {culprit} is not finite")
        nn.utils.clip_grads_with_norm_(self.parameters, self.config.max_grad_norm, total)
        for group, lr_scale in zip(self.adamw.param_groups, self._lr_scales, strict=True):
            group["lr"] = lr_scale * self.lr
        if finite:
            self.adamw.step()
        self.adamw.zero_grad()
        self.num_updates += 1
        self.num_skipped += not finite
        if self.ema is not None and finite:
            self.ema.step(self.parameters)
        return norm

    def row(self) -> dict[str, float]:
        """Loss scaling for a line of ``metrics.jsonl``; empty where the loss is not scaled."""
        if not self.scaler.is_enabled():
            return {}
        return {"loss_scale": self.scaler.get_scale(), "num_skipped": self.num_skipped}

    @contextlib.contextmanager
    def ema_weights(self) -> Iterator[None]:
        """Put the running mean in place of the weights, for evaluation and saving."""
        if self.ema is None:
            yield
            return
        self.ema.store(self.parameters)
        self.ema.copy_to(self.parameters)
        try:
            yield
        finally:
            self.ema.restore(self.parameters)

    def state_dict(self) -> TrainerState:
        """Everything that an exact continuation needs: weights under training, optimizer, EMA, scaler, counts."""
        counters: dict[str, Any] = {"num_updates": self.num_updates}
        if self.scaler.is_enabled():
            counters |= {"scaler": self.scaler.state_dict(), "num_skipped": self.num_skipped}
        weights: dict[str, dict[str, Tensor]] = {
            "policy": {name: p.detach() for name, p in zip(self.names, self.parameters, strict=True)}
        }
        if self.ema is not None:
            weights["ema"] = dict(zip(self.names, self.ema.shadow_params, strict=True))
            counters["ema_steps"] = self.ema.optimization_step
        return TrainerState(
            step=self.num_updates, optimizer=self.adamw.state_dict(), weights=weights, counters=counters
        )

    def load_state_dict(self, state: TrainerState) -> None:
        """The inverse of :meth:`state_dict`.

        Raises:
            ValueError: the state belongs to another model.
        """
        policy = state.weights["policy"]
        if policy.keys() != set(self.names):
            odd = sorted(policy.keys() ^ set(self.names))[0]
            raise ValueError(
                f"the checkpoint holds {len(policy)} trained tensors, expected the {len(self.names)} of this model "
                f"(they differ in {odd}): was it saved with other model.* settings?"
            )
        with torch.no_grad():
            for name, parameter in zip(self.names, self.parameters, strict=True):
                parameter.copy_(policy[name])
            if self.ema is not None:
                for name, mean in zip(self.names, self.ema.shadow_params, strict=True):
                    mean.copy_(state.weights["ema"][name])
                self.ema.optimization_step = state.counters["ema_steps"]
        self.adamw.load_state_dict(state.optimizer)
        self.num_updates = state.counters["num_updates"]
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(state.counters["scaler"])
            self.num_skipped = state.counters["num_skipped"]
