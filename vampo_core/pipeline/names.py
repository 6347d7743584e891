"""Names of folders that say what their content was made from."""

import hashlib
import json
from pathlib import Path

from vampo_core.config import VampoConfig


def digest(value: object) -> str:
    """Twelve hexadecimal digits that change with the value, which must be one that JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=list).encode()).hexdigest()[:12]


def beside_run(config: VampoConfig, name: str) -> Path:
    """The folder ``name`` next to ``run.dir``, where runs of other settings can find it too."""
    return Path(config.run.dir).parent / name
