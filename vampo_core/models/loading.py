"""Reads local model folders of diffusers and transformers, and says what is wrong with one."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from vampo_core.models.codecs.latent import LatentCodec
from vampo_core.models.codecs.patch import PatchCodec
from vampo_core.models.weight_files import weights_variant


def check_model(cls: Any, folder: Path) -> None:
    """Raise a ValueError where a folder's config is missing, or that of another class."""
    config = folder / "config.json"
    if not config.is_file():
        raise ValueError(f"{folder} has no config.json, expected a {cls.__name__}")
    description = json.loads(config.read_text())
    kind = description.get("_class_name") or next(iter(description.get("architectures") or []), None)
    if kind is not None and kind != cls.__name__:
        raise ValueError(f"{folder} holds a {kind}, expected a {cls.__name__}")


def load_model(cls: Any, folder: Path, variant: str | None = None) -> Any:
    """``cls.from_pretrained`` of a local diffusers or transformers model folder, in float32.

    Args:
        cls: class of the model.
        folder: folder of the model; only weights in the safetensors format are read.
        variant: variant of the weight files; by default the one that the folder holds.

    Raises:
        ValueError: the folder holds another model, no weights, or damaged ones.
    """
    check_model(cls, folder)
    options = {"variant": weights_variant(folder) if variant is None else variant}
    try:
        # as a string: PEFT notes it in an adapter, and cannot read a path back
        return cls.from_pretrained(str(folder), local_files_only=True, use_safetensors=True, **options).float()
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise ValueError(f"{folder} cannot be loaded as a {cls.__name__}: {error}") from error


def empty_model(cls: Any, folder: Path) -> Any:
    """The model that a folder's config describes, without weights: on torch's meta device."""
    with torch.device("meta"):
        return cls.from_config(cls.load_config(str(folder), local_files_only=True))


def load_own_codec(folder: Path) -> PatchCodec | LatentCodec:
    """Our patch codec, frozen, or the stand-in for a missing codec."""
    description = json.loads((folder / "config.json").read_text())
    if description.get("_class_name") == "LatentCodec":
        return LatentCodec.from_config(description)
    return load_model(PatchCodec, folder).requires_grad_(False)
