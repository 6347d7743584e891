"""The user's cache, for what is computed from files that cannot be written to."""

import os
from pathlib import Path


def user_cache() -> Path:
    """``$XDG_CACHE_HOME/vampo_core``, by default ``~/.cache/vampo_core``; it may not exist."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "vampo_core"
