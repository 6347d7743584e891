"""CLIP comes with transformers, which SVD and VPP checkpoints need and the embedded default does not."""

from typing import Any


def import_transformers() -> Any:
    """The package, or one clear error.

    Raises:
        ImportError: it is not installed.
    """
    try:
        import transformers
    except ImportError as error:
        raise ImportError(
            "this checkpoint's CLIP encoder needs transformers, expected it after `pip install vampo_core[svd]`"
        ) from error
    return transformers
