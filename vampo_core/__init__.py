"""vampo_core: reinforcement-learning post-training of video action models (VAMPO, arXiv 2603.19370)."""

from vampo_core import ops
from vampo_core._extension import build_info, version

__version__ = version()
__all__ = ["build_info", "ops"]
