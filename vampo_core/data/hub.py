"""Datasets of the Hugging Face hub, by their ``repo_id``, through the hub's own cache."""

import re
from pathlib import Path

_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")


def dataset_folder(root: str | Path, *, camera: str | None = None) -> Path:
    """The folder of a dataset: ``root`` itself if it exists, else that of the hub's dataset of this name.

    What is missing in the hub's cache is downloaded: of the videos only those of ``camera``.

    Args:
        root: a folder, or the name of a dataset on the hub, such as ``"lerobot/pusht"``.
        camera: name of a camera, or the end of it; None for all.

    Raises:
        FileNotFoundError: it is no folder, and the hub has no such dataset or cannot be reached.
    """
    folder = Path(root)
    if folder.exists() or folder.parent.is_dir() or not _REPO_ID.fullmatch(str(root)):
        return folder  # beside an existing folder it is a path with a slip
    from huggingface_hub import constants, snapshot_download  # comes with diffusers; slow to import

    videos = f"videos/*{camera}/*" if camera else "videos/*"
    try:
        return Path(snapshot_download(str(root), repo_type="dataset", allow_patterns=["meta/*", "data/*", videos]))
    except Exception as error:  # of the network, the hub and the disk, all of different kinds
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FileNotFoundError(
            f"root is {str(root)!r}, expected a folder, or a dataset of the Hugging Face hub that is in its cache "
            f"({constants.HF_HUB_CACHE}) or can be downloaded: {reason}"
        ) from error


def is_in_hub_cache(folder: Path) -> bool:
    """Whether a folder belongs to the hub's cache, where nothing else should be written."""
    return any(part.startswith("datasets--") for part in folder.resolve().parts)
