"""A denoiser network through ``torch.compile``."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

_MAX_GRAPHS = 64


class CompiledDenoiser:
    """A network compiled twice, for passes with gradient and for those without.

    On a GPU passes without gradient, such as those of a rollout's tail, are captured in CUDA graphs: a small network is
    then not bound by kernel launches. Shapes are static: a new number of clips compiles again, for a minute or more.
    Outputs differ from eager ones by rounding. On a CPU it gains next to nothing.

    Args:
        network: the network; its first output counts.
        device: device of its weights.
        backend: of ``torch.compile``.
    """

    def __init__(self, network: nn.Module, device: torch.device, backend: str | Callable[..., Any]) -> None:
        # shared by all models of the process; beyond it torch runs the rest without compiling, and only logs it
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _MAX_GRAPHS)
        mode = "reduce-overhead" if device.type == "cuda" and backend == "inductor" else None
        self._with_gradient: Callable[..., Any] = torch.compile(network, dynamic=False, backend=backend)
        self._without: Callable[..., Any] = torch.compile(network, dynamic=False, backend=backend, mode=mode)

    def __call__(self, *inputs: Any, **options: Any) -> Tensor:
        """The network's first output."""
        if torch.is_grad_enabled():
            return self._with_gradient(*inputs, **options)[0]
        torch.compiler.cudagraph_mark_step_begin()
        return self._without(*inputs, **options)[0].clone()  # the graph's next run overwrites its output
