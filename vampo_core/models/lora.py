"""Low-rank adapters of a predictor's denoiser network through PEFT.

Networks are diffusers models: what is saved with merged adapters needs no PEFT.
"""

import contextlib
import copy
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

DEFAULT_TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
_INSTALL = "LoRA needs PEFT: pip install vampo_core[lora]"
_SUPPORTED = {
    "r", "lora_alpha", "lora_dropout", "target_modules", "exclude_modules", "rank_pattern", "alpha_pattern",
    "layers_to_transform", "layers_pattern", "use_rslora", "use_dora", "lora_bias",
    "peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
}  # fmt: skip
"""Settings of a ``LoraConfig`` that an adapter may have: with them all trained weights lie in the adapted layers, which
can be switched off and merged."""
_PLAIN_STARTS = (True, False, "gaussian", "orthogonal")
"""Values of ``init_lora_weights`` that leave the base model's own weights as they are."""


def add_adapter(network: nn.Module, rank: int, alpha: float, targets: Sequence[str], dropout: float):
    """Freeze the network, inject float32 adapters in place and return the ``PeftModel`` around it."""
    peft = _peft()
    config = peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(targets), lora_dropout=dropout)
    return _float32(peft.get_peft_model(network, config))


def load_adapter(network: nn.Module, folder: str | Path, trainable: bool):
    """Inject the adapter of a standard PEFT folder in place and return the ``PeftModel`` around the network.

    Raises:
        ValueError: the folder holds no adapter, or one that could not be saved or switched off again.
    """
    folder = Path(folder)
    if not (folder / "adapter_config.json").is_file():
        raise ValueError(f"{folder} holds no adapter_config.json, expected a PEFT adapter folder")
    _check_config(folder)
    return _float32(_peft().PeftModel.from_pretrained(network, str(folder), is_trainable=trainable))


def _check_config(folder: Path) -> None:
    """Refuse adapters with settings that are not known to work, including those of newer versions of PEFT."""
    settings = json.loads((folder / "adapter_config.json").read_text())
    if settings.get("peft_type") != "LORA":
        raise ValueError(f"{folder} holds an adapter with peft_type {settings.get('peft_type')!r}, expected 'LORA'")
    start = settings.pop("init_lora_weights", True)
    if start not in _PLAIN_STARTS:
        raise ValueError(
            f"{folder} holds an adapter with init_lora_weights {start!r}, expected one that leaves the base model as "
            "it is; PEFT's save_pretrained(path_initial_model_for_weight_conversion=…) converts it"
        )
    defaults = _peft().LoraConfig().to_dict()
    for name in sorted(settings.keys() - _SUPPORTED):
        value, default = settings[name], defaults.get(name)
        if value != default and (value or default):
            raise ValueError(f"{folder} holds an adapter with {name} {value!r}, expected {default!r}: LoRA or DoRA")


def cast_base(network: nn.Module, dtype: torch.dtype) -> None:
    """Cast frozen weights of linear layers and convolutions, which autocast casts at every pass anyway.

    Norms and tables keep their precision, and what diffusers says has to: they are computed in float32.
    """
    kept = ["lora_", *(getattr(network, "_keep_in_fp32_modules", None) or [])]
    for name, module in network.named_modules():
        if not any(part in name for part in kept) and isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)):
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.to(dtype)


def has_adapter(network: nn.Module) -> bool:
    """Whether PEFT has put adapters into the network."""
    return any(hasattr(module, "base_layer") for module in network.modules())


@contextlib.contextmanager
def adapter_off(network: nn.Module) -> Iterator[None]:
    """Run the network as it is under its adapters."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers: list[Any] = [module for module in network.modules() if isinstance(module, BaseTunerLayer)]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def save_merged(network: Any, folder: Path) -> None:
    """Write the network with its adapters merged into its weights."""
    with torch.device("meta"):
        merged = type(network).from_config(network.config)
    merged.load_state_dict(merged_state_dict(network), assign=True)
    merged.save_pretrained(folder)


def merged_state_dict(network: nn.Module) -> dict[str, Tensor]:
    """Weights with the adapters merged, under the names they have without adapters; the network stays as it is."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = {name: module for name, module in network.named_modules() if isinstance(module, BaseTunerLayer)}
    state = {
        name: value
        for name, value in network.state_dict().items()
        if not any(name.startswith(layer + ".") for layer in layers)
    }
    for name, layer in layers.items():
        state |= {f"{name}.{parameter}": value for parameter, value in merged(layer).items()}
    return state


def merged(layer: Any) -> dict[str, Tensor]:
    """Weights of one adapted layer, merged in float32 by PEFT on a copy: it knows DoRA and biases.

    They stay float32 on a base in half precision, where most updates would be rounded away.
    """
    layer = copy.deepcopy(layer).float()
    layer.merge()
    return dict(layer.get_base_layer().state_dict())


def _float32(model):
    """Adapters have float32 weights on a base of any precision: half precision would round small updates away."""
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
