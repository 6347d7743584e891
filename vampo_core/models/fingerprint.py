"""A hash that identifies a model by its settings and weights."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor


def fingerprint(settings: object, tensors: Mapping[str, Tensor]) -> str:
    """16 hexadecimal digits of SHA-256 over settings, as JSON, and tensors with their names."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for name, value in sorted(tensors.items()):
        digest.update(f"{name}{value.dtype}{tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


_SUMMARIZED = 1 << 20


def files_summary(folder: Path) -> list[str]:
    """Names, sizes and hashed beginnings of a folder's files: what tells weights apart without reading gigabytes."""
    lines = []
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        with path.open("rb") as file:
            beginning = hashlib.sha256(file.read(_SUMMARIZED)).hexdigest()
        lines.append(f"{path.name} {path.stat().st_size} {beginning}")
    return lines
