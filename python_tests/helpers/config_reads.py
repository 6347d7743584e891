"""Which keys of a configuration a piece of work looks at."""

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

from vampo_core import config as package
from vampo_core.config import VampoConfig

_CONFIG = Path(package.__file__).parent
_PAGES = [_CONFIG.parent / "report", *(_CONFIG.parent / "pipeline" / name for name in ("summary.py", "pages.py"))]
_VIEWS = {"overrides", "network_options", "roots", "image_size", "simulator", "stored_with"}
"""Functions, methods and properties that hand settings on."""
_NAMING = {"base_config"}
"""Functions that name folders after settings, which uses none of them."""


@contextlib.contextmanager
def keys_read() -> Iterator[set[str]]:
    """The keys read within the context, as ``section.key``; to check, save, compare or report them does not count."""
    seen: set[str] = set()
    classes = {type(section): name for name, section in vars(VampoConfig()).items()}

    def watched(cls: type, section: str):
        names = {field.name for field in fields(cls)}

        def read(self, name):
            if name in names:
                frame = sys._getframe(1)
                callers = {frame.f_code.co_name, frame.f_back.f_code.co_name}  # a comprehension has a frame of its own
                file = Path(frame.f_code.co_filename)
                uses = (
                    bool(callers & _VIEWS)
                    if _CONFIG in file.parents
                    else not any(page in (file, *file.parents) for page in _PAGES)
                )
                if uses and not callers & _NAMING and _CONFIG.parent in file.parents:
                    seen.add(f"{section}.{name}")
            return object.__getattribute__(self, name)

        return read

    for cls, section in classes.items():
        cls.__getattribute__ = watched(cls, section)
    try:
        yield seen
    finally:
        for cls in classes:
            del cls.__getattribute__
