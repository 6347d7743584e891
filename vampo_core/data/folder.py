"""What is computed from a dataset and kept: where, under which names, and one clear error if it cannot be written."""

import contextlib
import errno
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from vampo_core.data.hub import is_in_hub_cache
from vampo_core.files import user_cache

_READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)


def safe_name(episode_id: str) -> str:
    """Return an episode's id if it can serve as a file name below a folder, with slashes for subfolders.

    Ids come from files that others wrote; one like ``"../../x"`` would lead out of the dataset.

    Raises:
        ValueError: the id is no such name.
    """
    parts = episode_id.split("/") if isinstance(episode_id, str) else [""]
    if any(not part or part.startswith(".") or "\\" in part or "\0" in part for part in parts):
        raise ValueError(
            f"episode_id is {episode_id!r}, expected a name without empty parts, backslashes or parts that begin with "
            "a dot: files are named after it"
        )
    return episode_id


def derived_folder(root: Path, what: str, cache: str | Path | None = None) -> Path:
    """Folder of files that are computed from a dataset: inside it, or in a cache.

    A dataset's folder in the cache is named after the dataset and the place where it lies.

    Args:
        root: the dataset's folder.
        what: what is kept there, in the plural.
        cache: the cache; None for the dataset's own folder, or :func:`~vampo_core.files.user_cache` if that is
            read-only or belongs to the hub's cache.
    """
    place = root.resolve()
    if cache is None and not is_in_hub_cache(place) and (not root.is_dir() or os.access(root, os.W_OK)):
        return root / what
    name = f"{place.name}-{hashlib.sha256(str(place).encode()).hexdigest()[:12]}"
    return (user_cache() if cache is None else Path(cache)) / name / what


@contextlib.contextmanager
def writing_to(root: Path, what: str) -> Iterator[None]:
    """Name a dataset that cannot be written to, instead of whichever file inside failed first.

    Args:
        root: the dataset's folder.
        what: what is kept there, in the plural.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _READ_ONLY:
            raise
        raise PermissionError(
            f"dataset {str(root)!r} cannot be written to ({error.strerror}), but its {what} are kept there: make it "
            "writable, or use a copy of it"
        ) from error
