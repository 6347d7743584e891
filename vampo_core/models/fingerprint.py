"""A hash that identifies a model by its settings and weights."""

import hashlib
import json
from collections.abc import Mapping

import torch
from torch import Tensor


def fingerprint(settings: object, tensors: Mapping[str, Tensor]) -> str:
    """16 hexadecimal digits of SHA-256 over settings, as JSON, and tensors with their names."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for name, value in sorted(tensors.items()):
        digest.update(f"{name}{value.dtype}{tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
