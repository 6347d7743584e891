"""YAML with the numbers of its version 1.2 (1e-4 is one), dates as plain text, and no key twice."""

import re
from collections.abc import Hashable
from typing import Any

import yaml

from vampo_core.config.checks import ConfigError


class _Loader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: list[Any] = []
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} is given twice", key.start_mark)
            seen.append(key.value)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes what the loader would otherwise take for a number."""


_RESOLVERS = {
    first: [(tag, regexp) for tag, regexp in resolvers if not tag.endswith(("timestamp", "float", "int"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.yaml_implicit_resolvers = _Dumper.yaml_implicit_resolvers = _RESOLVERS
_NUMBERS = {
    "int": r"[-+]?[0-9]+$",
    "float": r"([-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$",
}
for kind, pattern in _NUMBERS.items():
    for first in "-+.0123456789":
        _RESOLVERS.setdefault(first, []).append((f"tag:yaml.org,2002:{kind}", re.compile(pattern)))


def parse(text: str, name: str) -> Any:
    """The value that ``text`` stands for.

    Raises:
        ConfigError: it is no YAML; the message is one line that begins with ``name``.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error).splitlines()[0]
        mark = getattr(error, "problem_mark", None)
        line = "" if mark is None else f", line {mark.line + 1}"
        raise ConfigError(f"{name}{line} cannot be read as YAML: {problem}") from error
    except ValueError as error:  # a number written in a way that Python does not accept
        raise ConfigError(f"{name} cannot be read as YAML: {error}") from error


def dump(value: Any) -> str:
    """YAML that :func:`parse` reads back as the same value."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
