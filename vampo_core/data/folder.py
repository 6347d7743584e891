"""What is written into a dataset's folder: names that stay inside it, and one clear error if it is read-only."""

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

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
