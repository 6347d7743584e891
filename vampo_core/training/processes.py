"""The processes of a run, as accelerate sees them."""

from accelerate import Accelerator


def new_accelerator() -> Accelerator:
    """An accelerator of this process. Precision is ``model.dtype`` alone, whatever accelerate's own settings say."""
    return Accelerator(mixed_precision="no")
