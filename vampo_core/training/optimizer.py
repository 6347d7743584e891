"""The optimizer of a model under training: AdamW, learning-rate schedule, clipping, loss scaling, EMA."""

import contextlib
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from vampo_core.config import AdamWConfig
from vampo_core.training import sharding
from vampo_core.training.checkpoint import SHARDS, TRAINER_STATE, TrainerState
from vampo_core.training.processes import average, copy_from_main, total
from vampo_core.training.shard_files import names_in, read_shards, write_shards

_MOMENTS = ("exp_avg", "exp_avg_sq")
"""AdamW's state of a parameter, beside its number of steps."""


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

    Gradients may come from any number of backward passes; they are averaged over processes once, in :meth:`step`. Those
    of a sharded model are averaged in every backward pass, and :attr:`parameters` are this process's shares.

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
        self.names, self._in_model = list(trained), list(trained.values())
        self.parameters: list[nn.Parameter] = [sharding.own_share(parameter) for parameter in self._in_model]
        if not self.parameters:
            raise ValueError("model has no parameters that require grad, expected at least one")
        self._is_share = [own is not parameter for own, parameter in zip(self.parameters, self._in_model, strict=True)]
        self.is_sharded = any(self._is_share)
        copy_from_main([own.data for own, is_share in self._shares() if not is_share], accelerator)
        groups: dict[float, list[nn.Parameter]] = {}
        for name, parameter in zip(self.names, self.parameters, strict=True):
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
        sharding.take_gradients(self._in_model, self.parameters)
        gradients = {name: p.grad for name, p in zip(self.names, self.parameters, strict=True) if p.grad is not None}
        average([p.grad for p, is_share in self._shares() if p.grad is not None and not is_share], self.accelerator)
        self.scaler.unscale_(self.adamw)
        norms = torch.stack(torch._foreach_norm(list(gradients.values())))
        if self.is_sharded:
            sharding.share_overflow(self.scaler, self.adamw)
            norms = sharding.whole_norms(norms, [s for p, s in self._shares() if p.grad is not None])
        whole, losses = torch.linalg.vector_norm(norms), torch.stack(self._losses)
        self._losses.clear()
        num_odd = total((~torch.isfinite(losses)).sum().to(whole.dtype), self.accelerator)  # of all processes
        # the only wait for the device in an update
        norm, finite, num_odd_losses = torch.stack([whole, torch.isfinite(norms).all(), num_odd]).tolist()
        if num_odd_losses:
            self.adamw.zero_grad()
            odd = losses[~torch.isfinite(losses)]
            raise NonFiniteError(
                f"{what}: the loss is {odd[0].item() if len(odd) else 'not finite on another process'}"
            )
        scale = self.scaler.get_scale()
        self.scaler.update()
        if not finite and scale <= 1:  # looked at before clipping, which spreads NaN to every parameter
            culprit = list(gradients)[int((~torch.isfinite(norms)).nonzero()[0])]
            self.adamw.zero_grad()
            raise NonFiniteError(f"{what}: the gradient of {culprit} is not finite")
        nn.utils.clip_grads_with_norm_(self.parameters, self.config.max_grad_norm, whole)
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

    def save(self, folder: Path) -> None:
        """Write the model's folder with the running mean in place of the weights, and a sharded one's trainer state.

        Of a sharded model all processes write, and all have to enter.
        """
        if self.is_sharded:
            write_shards(folder / TRAINER_STATE / SHARDS, self._tensors())
        assert isinstance(self.model, nn.Module)
        with self.ema_weights(), sharding.whole_weights(self.model, self.accelerator):
            if self.accelerator.is_main_process:
                self.model.save_pretrained(folder)

    def state_dict(self) -> TrainerState:
        """Everything that an exact continuation needs: weights under training, optimizer, EMA, scaler, counts.

        The tensors of a sharded model are left out: :meth:`save` writes them.
        """
        counters: dict[str, Any] = {"num_updates": self.num_updates}
        if self.scaler.is_enabled():
            counters |= {"scaler": self.scaler.state_dict(), "num_skipped": self.num_skipped}
        if self.ema is not None:
            counters["ema_steps"] = self.ema.optimization_step
        if self.is_sharded:
            return TrainerState(step=self.num_updates, counters=counters)
        weights: dict[str, dict[str, Tensor]] = {
            "policy": {name: p.detach() for name, p in zip(self.names, self.parameters, strict=True)}
        }
        if self.ema is not None:
            weights["ema"] = dict(zip(self.names, self.ema.shadow_params, strict=True))
        return TrainerState(
            step=self.num_updates, optimizer=self.adamw.state_dict(), weights=weights, counters=counters
        )

    def load_state_dict(self, state: TrainerState) -> None:
        """The inverse of :meth:`state_dict`, and of the shards of :meth:`save`, whether the model is sharded or not.

        Raises:
            ValueError: the state belongs to another model.
        """
        if state.shards is None:
            self._load_whole(state)
        else:
            self._load_shards(state.shards)
        if self.ema is not None:
            self.ema.optimization_step = state.counters["ema_steps"]
        self.num_updates = state.counters["num_updates"]
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(state.counters["scaler"])
            self.num_skipped = state.counters["num_skipped"]

    def _load_whole(self, state: TrainerState) -> None:
        policy, parts = state.weights["policy"], dict(zip(self.parameters, self._in_model, strict=True))
        self._check_names(policy.keys())
        with torch.no_grad():
            for name, parameter in zip(self.names, self.parameters, strict=True):
                parameter.copy_(sharding.part_of(policy[name], parts[parameter]))
            if self.ema is not None:
                for name, mean, model in zip(self.names, self.ema.shadow_params, self._in_model, strict=True):
                    mean.copy_(sharding.part_of(state.weights["ema"][name], model))
        order = [parts[parameter] for group in self.adamw.param_groups for parameter in group["params"]]
        moments = {
            number: {name: sharding.part_of(value, order[number]) for name, value in entries.items()}
            for number, entries in state.optimizer["state"].items()
        }
        self.adamw.load_state_dict({**state.optimizer, "state": moments})

    def _load_shards(self, folder: Path) -> None:
        found = names_in(folder)
        self._check_names({name.removeprefix("policy/") for name in found if name.startswith("policy/")})
        for name, parameter in zip(self.names, self.parameters, strict=True):
            if f"step/{name}" in found:  # else it has had no gradient yet
                moments = {moment: torch.zeros_like(parameter.detach()) for moment in _MOMENTS}
                self.adamw.state[parameter] = {"step": torch.tensor(0.0), **moments}
        read_shards(folder, self._tensors(), together=self.is_sharded)

    def _check_names(self, names: Collection[str]) -> None:
        if set(names) != set(self.names):
            odd = sorted(set(names) ^ set(self.names))[0]
            raise ValueError(
                f"the checkpoint holds {len(names)} trained tensors, expected the {len(self.names)} of this model "
                f"(they differ in {odd}): was it saved with other model.* settings?"
            )

    def _tensors(self) -> dict[str, Tensor]:
        """The state's tensors by their names in a folder of shards, in the memory that they are used in."""
        tensors: dict[str, Tensor] = {}
        means = self.parameters if self.ema is None else self.ema.shadow_params
        for name, own, mean, model in zip(self.names, self.parameters, means, self._in_model, strict=True):
            parts = {"policy": own.detach(), **self.adamw.state.get(own, {})}
            if self.ema is not None:
                parts["ema"] = mean
            tensors |= {f"{part}/{name}": sharding.as_distributed(value, model) for part, value in parts.items()}
        return tensors

    def _shares(self) -> Iterator[tuple[nn.Parameter, bool]]:
        """What the optimizer changes, each with whether it is a share."""
        return zip(self.parameters, self._is_share, strict=True)
