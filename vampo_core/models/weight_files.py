"""Weight files in folders of diffusers and transformers, which may hold a variant such as fp16 only."""

import re
import shutil
from pathlib import Path

_WEIGHTS = re.compile(
    r"(?:diffusion_pytorch_model|model)(?:-\d+-of-\d+)?(?:\.(?P<variant>[^.]+?))?(?:-\d+-of-\d+)?\.safetensors"
)
"""Names such as ``model.safetensors``, ``model.fp16.safetensors`` and ``model.fp16-00001-of-00002.safetensors``."""


def variants(folder: Path) -> set[str | None]:
    """Variants of a folder's weights in the safetensors format; None stands for weights without a variant."""
    return {match["variant"] for path in folder.glob("*.safetensors") if (match := _WEIGHTS.fullmatch(path.name))}


def weights_variant(folder: Path) -> str | None:
    """The variant to load, such as ``"fp16"``, which is all that many downloads of SVD and CLIP hold.

    Returns:
        None where there are weights without a variant: they are preferred.

    Raises:
        ValueError: the folder holds no weights in the safetensors format, or several variants to choose from.
    """
    found = variants(folder)
    if not found:
        raise ValueError(f"{folder} holds no *.safetensors, expected weights in that format")
    if len(found) > 1 and None not in found:
        names = ", ".join(sorted(str(variant) for variant in found))
        raise ValueError(f"{folder} holds the variants {names}, expected variant= to name one of them")
    return None if None in found else found.pop()


def copy_weights(source: Path, folder: Path) -> None:
    """Copy a model folder so that loaders find the weights without being given a variant.

    Shards keep their names, because the index refers to them.
    """
    found = variants(source)
    variant = None if None in found else min(found, key=str, default=None)
    names = {
        f"model.{variant}.safetensors": "model.safetensors",
        f"model.safetensors.index.{variant}.json": "model.safetensors.index.json",
    }

    def copy(path: str, target: str) -> None:
        shutil.copy2(path, Path(target).with_name(names.get(Path(target).name, Path(target).name)))

    shutil.copytree(source, folder, dirs_exist_ok=True, copy_function=copy)
