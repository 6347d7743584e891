"""States of every random number generator, as values that JSON can hold."""

import base64
import random
from typing import Any

import numpy as np
import torch
from torch import Tensor


def rng_state() -> dict[str, Any]:
    """The states of this process's generators: Python's, NumPy's, torch's on the CPU and on every CUDA device."""
    version, words, gauss = random.getstate()
    state: Any = np.random.get_state(legacy=False)  # noqa: NPY002 - others may draw from the global one
    return {
        "python": [version, list(words), gauss],
        "numpy": {**state, "state": {"key": state["state"]["key"].tolist(), "pos": state["state"]["pos"]}},
        "torch": _encode(torch.get_rng_state()),
        "cuda": [_encode(device) for device in torch.cuda.get_rng_state_all()] if torch.cuda.is_available() else [],
    }


def set_rng_state(state: dict[str, Any]) -> None:
    """Put this process's generators where they were.

    A state of more CUDA devices than there are sets those there are.
    """
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    key = np.array(state["numpy"]["state"]["key"], dtype=np.uint32)
    np.random.set_state({**state["numpy"], "state": {**state["numpy"]["state"], "key": key}})  # noqa: NPY002
    torch.set_rng_state(_decode(state["torch"]))
    for device, values in enumerate(state["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(_decode(values), device)


def _encode(state: Tensor) -> str:
    return base64.b64encode(state.numpy().tobytes()).decode()


def _decode(text: str) -> Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)
