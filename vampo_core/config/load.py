"""Configuration from a preset, a file or an object, with overrides from the command line."""

import os
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

from vampo_core.config.checks import ConfigError, nearest
from vampo_core.config.vampo import VampoConfig, check_section, is_text, keys, roles, takes_list
from vampo_core.config.yaml_text import parse


def load_config(config: VampoConfig | str | Path, *overrides: str) -> VampoConfig:
    """The configuration of a run.

    ``~`` and environment variables in paths (``data.root: $DATASETS/bridge``) are replaced by what they stand for.

    Args:
        config: a :class:`VampoConfig`, the name of a preset, a YAML file, or a run folder: its ``config.yaml``, with
            the folder as ``run.dir``.
        overrides: ``"section.key=value"``, the value in YAML; later ones win.

    Raises:
        ConfigError: one line that names the key, the value given and what was expected.
    """
    if isinstance(config, VampoConfig):
        values: Any = config.to_dict()
    else:
        name, text = _read(config)
        values = parse(text, name)
        if values is None:
            values = {}
        if not isinstance(values, dict):
            raise ConfigError(f"{name} holds {values!r}, expected sections with keys, such as 'grpo:'")
        if config not in presets():
            _set_run_folder(values, Path(config).expanduser())
    for override in overrides:
        _override(values, override)
    _expand_paths(values)
    return VampoConfig.from_dict(values)


def _set_run_folder(values: dict[Any, Any], source: Path) -> None:
    """Let a run that was moved or copied be the one in the folder that was given, not the one where it began."""
    run = values.get("run")
    begun = run.get("dir") if isinstance(run, dict) else None
    if (
        isinstance(run, dict)
        and isinstance(begun, str)
        and source.is_dir()
        and Path(begun).resolve() != source.resolve()
    ):
        run["dir"] = str(source)


def presets() -> list[str]:
    """Names of the configurations that come with the package."""
    return sorted(file.stem for file in _presets_folder().glob("*.yaml"))


def _presets_folder() -> Path:
    package = Path(str(files("vampo_core")))
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"  # a checkout keeps them beside the package


def _read(config: str | Path) -> tuple[str, str]:
    """Name and text of a preset or file."""
    if not isinstance(config, str | Path):
        raise ConfigError(f"config is a {type(config).__name__}, expected a VampoConfig, a preset or a YAML file")
    if isinstance(config, str) and config in presets():
        return f"preset {config}", (_presets_folder() / f"{config}.yaml").read_text(encoding="utf-8")
    path = Path(config).expanduser()
    if path.is_dir():
        path = path / "config.yaml"
    if not path.is_file():
        known = presets()
        raise ConfigError(
            f"config is {str(config)!r}, expected a YAML file, a run folder or one of the presets "
            f"{', '.join(known)}{nearest(config, known)}"
        )
    try:
        return str(path), path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"config {str(path)!r} cannot be read: {error}") from error


def _override(values: dict[Any, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    section, dot, name = key.strip().partition(".")
    if not (equals and dot and name):
        raise ConfigError(
            f"override is {override!r}, expected section.key=value, such as grpo.num_generations=8"
            f"{nearest(key, keys())}"
        )
    check_section(section)
    if values.get(section) is None:
        values[section] = {}
    if isinstance(values[section], dict):  # anything else is refused afterwards, by the section's name
        values[section][name] = _value(f"{section}.{name}", text, override)


def _value(key: str, text: str, override: str) -> Any:
    """The value of an override: YAML, but a text stands for itself, so that ``#`` and ``: `` mean nothing in paths."""
    marks = ('"', "'", "[") if takes_list(key) else ('"', "'")
    is_yaml = text.strip().lower() in ("", "null", "~") or text.lstrip().startswith(marks)
    return parse(text, f"override {override!r}") if is_yaml or not is_text(key) else text


def _expand_paths(values: dict[Any, Any]) -> None:
    for key in (key for key, role in roles().items() if role.is_path):
        section, name = key.split(".")
        entries = values.get(section)
        if not isinstance(entries, dict) or name not in entries:
            continue
        path = entries[name]
        if isinstance(path, list):
            entries[name] = [_expanded(part, f"{key}[{i}]") for i, part in enumerate(path)]
        else:
            entries[name] = _expanded(path, key)


def _expanded(path: Any, key: str) -> Any:
    if not isinstance(path, str):
        return path
    expanded = os.path.expanduser(os.path.expandvars(path))
    missing = re.search(r"\$(\w+|\{[^}]*\})", expanded)
    if missing:
        raise ConfigError(f"{key} is {path!r}, but the environment variable {missing[0]} is not set")
    if not path:
        raise ConfigError(f"{key} is '', expected a folder")
    return expanded
