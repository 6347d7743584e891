"""Backbones by name. A new one is a folder beside ``svd`` and a line here."""

import importlib
from pathlib import Path
from typing import Any

BACKBONES = {
    "svd": "vampo_core.models.svd.predictor:SVDPredictor",
    "wan": "vampo_core.models.wan.predictor:WanPredictor",
    "cosmos": "vampo_core.models.cosmos.predictor:CosmosPredictor",
}
"""Class of each backbone, imported when it is needed."""
DEFAULT = "svd"
"""Backbone of models from scratch, and the one whose errors describe a folder that no backbone knows."""


def backbone_class(name: str) -> Any:
    """The class of a backbone, a subclass of :class:`vampo_core.VideoPredictor`."""
    module, _, attribute = BACKBONES[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def backbone_of(folder: Path) -> Any:
    """The class that loads a model folder.

    Raises:
        ValueError: no backbone knows the folder; the message says what is missing.
    """
    known = next((cls for cls in map(backbone_class, BACKBONES) if cls.recognizes(folder)), backbone_class(DEFAULT))
    known.check_folder(folder)
    return known


def is_model_folder(folder: Path) -> bool:
    """Whether a backbone knows the folder."""
    return any(backbone_class(name).recognizes(folder) for name in BACKBONES)
