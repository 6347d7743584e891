"""The meaning of every setting, as written under its field."""

import ast
import functools
import inspect
import textwrap
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from vampo_core.config.yaml_text import dump

_WIDTH = 100


@functools.cache
def meanings(section: type) -> dict[str, str]:
    """Docstrings of a section's fields, by name; a field without one has that of the base class or of ``DECLARED_IN``.

    Args:
        section: dataclass of a section.
    """
    found: dict[str, str] = {}
    for cls in reversed((*section.__mro__[:-1], *reversed(getattr(section, "DECLARED_IN", ())))):
        found |= _written(cls)
    return {field.name: found[field.name] for field in fields(section) if field.name in found}


@functools.cache
def _written(cls: type) -> dict[str, str]:
    """Strings that stand under the annotated names of a class."""
    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    assert isinstance(body, ast.ClassDef)
    texts = {}
    for statement, following in zip(body.body, body.body[1:], strict=False):
        if isinstance(statement, ast.AnnAssign) and isinstance(following, ast.Expr):
            value = following.value
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                texts[ast.unparse(statement.target)] = inspect.cleandoc(value.value)
    return texts


def annotated_yaml(values: Mapping[str, Mapping[str, Any]], sections: Mapping[str, type]) -> str:
    """A configuration as YAML, with the meaning of every setting above it, and the default where it differs."""
    lines = []
    for name, entries in values.items():
        section = sections[name]
        lines += [*_comment(inspect.cleandoc(section.__doc__ or "").partition("\n")[0], indent=""), f"{name}:"]
        defaults = {field.name: field.default for field in fields(section)}
        for key, value in entries.items():
            default: Any = defaults[key]
            default = list(default) if isinstance(default, tuple) else default
            note = "" if value == default else f" (default: {_inline(default)})"
            lines += [*_comment(meanings(section)[key] + note, indent="  "), f"  {key}: {_inline(value)}"]
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _comment(text: str, *, indent: str) -> list[str]:
    words = " ".join(text.replace("``", "").split())
    return textwrap.wrap(words, _WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ")


def _inline(value: Any) -> str:
    """A value in YAML, on one line."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(_inline(item) for item in value)}]"
    return dump(value).removesuffix("...\n").strip()
