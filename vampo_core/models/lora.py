"""Low-rank adapters of a predictor's UNet through PEFT."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

DEFAULT_TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
_INSTALL = "LoRA needs PEFT: pip install vampo_core[lora]"


def add_adapter(unet: nn.Module, rank: int, alpha: float, targets: Sequence[str], dropout: float):
    """Freeze ``unet``, inject float32 adapters in place and return the ``PeftModel`` around it."""
    peft = _peft()
    config = peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(targets), lora_dropout=dropout)
    return _float32(peft.get_peft_model(unet, config))


def load_adapter(unet: nn.Module, folder: str | Path, trainable: bool):
    """Inject the adapter of a standard PEFT folder in place and return the ``PeftModel`` around ``unet``."""
    folder = Path(folder)
    if not (folder / "adapter_config.json").is_file():
        raise ValueError(f"{folder} holds no adapter_config.json, expected a PEFT adapter folder")
    return _float32(_peft().PeftModel.from_pretrained(unet, str(folder), is_trainable=trainable))


def has_adapter(unet: nn.Module) -> bool:
    """Whether there are adapters in ``unet``."""
    return any("lora_" in name for name, _ in unet.named_parameters())


@contextlib.contextmanager
def adapter_off(unet: nn.Module) -> Iterator[None]:
    """Run ``unet`` as it is under its adapters."""
    from peft.tuners.lora import LoraLayer

    layers: list[Any] = [module for module in unet.modules() if isinstance(module, LoraLayer)]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def save_merged(unet: Any, folder: Path) -> None:
    """Write ``unet`` with its adapters added, as a UNet that needs no PEFT."""
    with torch.device("meta"):
        merged = type(unet).from_config(unet.config)
    merged.load_state_dict(merged_state_dict(unet), assign=True)
    merged.save_pretrained(folder)


def merged_state_dict(unet: nn.Module) -> dict[str, Tensor]:
    """Weights of ``unet`` with its adapters added, under the names it has without them; ``unet`` stays as it is."""
    from peft.tuners.lora import LoraLayer

    state: dict[str, Tensor] = {}
    layers: dict[str, Any] = {name: module for name, module in unet.named_modules() if isinstance(module, LoraLayer)}
    for name, value in unet.state_dict().items():
        owner = next((layer for layer in layers if name.startswith(layer + ".")), None)
        if owner is None:
            state[name] = value
        elif name.startswith(owner + ".base_layer."):
            parameter = name.removeprefix(owner + ".base_layer.")
            if parameter == "weight":
                deltas: list[Any] = [layers[owner].get_delta_weight(a) for a in layers[owner].active_adapters]
                value = (value.float() + torch.stack(deltas).sum(0).to(value.device)).to(value.dtype)
            state[f"{owner}.{parameter}"] = value
    return state


def _float32(model):
    """Adapters keep float32 weights whatever the base has: half precision would round small updates away."""
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()
    return model


def _peft():
    try:
        import peft
    except ImportError as error:
        raise ImportError(_INSTALL) from error
    return peft
