"""Real robot data and odd files of other tools, which are not part of the project."""

import os
from pathlib import Path

import pytest

ROOT = Path(os.environ.get("VAMPO_REAL_DATA", Path(__file__).parents[3] / "shared" / "data"))
"""Folder with ``bridge/``, ``rt1/`` and ``odd/``; by default ``shared/data`` beside the repository."""


def needs(*folders: str) -> pytest.MarkDecorator:
    """Skip a test if one of these folders of real data is missing."""
    missing = [folder for folder in folders if not (ROOT / folder).is_dir()]
    return pytest.mark.skipif(bool(missing), reason=f"no {', '.join(missing)} at {ROOT} (VAMPO_REAL_DATA)")
