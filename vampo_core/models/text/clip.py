"""CLIP needs transformers: a dependency of SVD and VPP models, but not of the embedded default."""

from typing import Any


def import_transformers() -> Any:
    """The transformers package, or one clear error.

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
