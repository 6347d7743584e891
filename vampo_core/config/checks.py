"""Types and ranges of configuration values, read from the annotations of the dataclasses."""

import difflib
import math
import types
import typing
from collections.abc import Collection
from dataclasses import dataclass, fields
from typing import Any


class ConfigError(ValueError):
    """A wrong configuration; the message names the key, the value given and what was expected."""


@dataclass(frozen=True)
class Range:
    """Allowed values of a number, as ``Annotated[int, Range(minimum=1)]``."""

    minimum: float | None = None
    above: float | None = None
    maximum: float | None = None
    below: float | None = None

    def __contains__(self, value: float) -> bool:
        return (
            (self.minimum is None or value >= self.minimum)
            and (self.above is None or value > self.above)
            and (self.maximum is None or value <= self.maximum)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        words = {"at least": self.minimum, "above": self.above, "at most": self.maximum, "below": self.below}
        return " and ".join(f"{word} {_short(bound)}" for word, bound in words.items() if bound is not None)


def _short(bound: float) -> str:
    return str(bound) if isinstance(bound, int) else f"{bound:g}"


@dataclass(frozen=True)
class MultipleOf:
    """Allowed values of an integer: the positive multiples of a number."""

    divisor: int

    def __contains__(self, value: int) -> bool:
        return value > 0 and value % self.divisor == 0

    def __str__(self) -> str:
        return f"above 0 that {self.divisor} divides"


def nearest(name: object, known: Collection[str], cutoff: float = 0.6) -> str:
    """``"; did you mean 'x'?"`` where a known name is as near as ``cutoff``, else nothing."""
    near = difflib.get_close_matches(str(name), known, n=1, cutoff=cutoff)
    return f"; did you mean {near[0]!r}?" if near else ""


def check_fields(config: Any, section: str) -> None:
    """Check every field of a frozen dataclass against its annotation, and bring it to that type (int to float)."""
    hints = typing.get_type_hints(type(config), include_extras=True)
    for field in fields(config):
        value = convert(getattr(config, field.name), hints[field.name], f"{section}.{field.name}")
        object.__setattr__(config, field.name, value)


def convert(value: Any, annotation: Any, key: str) -> Any:
    """``value`` as the annotated type.

    Raises:
        ConfigError: it has another type, or lies outside of the annotated range.
    """
    if typing.get_origin(annotation) is typing.Annotated:
        annotation, *extras = typing.get_args(annotation)
        value = convert(value, annotation, key)
        for allowed in _limits(extras):
            if value not in allowed:
                raise ConfigError(f"{key} is {value!r}, expected {_describe(annotation)} {allowed}")
        return value
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (types.UnionType, typing.Union):  # X | None, or X | tuple[X, ...]
        if value is None and type(None) in args:
            return None
        kinds = [arg for arg in args if arg is not type(None)]
        return convert(value, kinds[-1] if isinstance(value, list | tuple) else kinds[0], key)
    if origin is typing.Literal:
        if value not in args:
            raise ConfigError(f"{key} is {value!r}, expected one of {', '.join(args)}{nearest(value, args)}")
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{key} is {value!r}, expected a list, each item {_describe(args[0])}")
        return tuple(convert(item, args[0], f"{key}[{i}]") for i, item in enumerate(value))
    if annotation is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not annotation:
        raise ConfigError(f"{key} is {value!r} ({type(value).__name__}), expected {_describe(annotation)}")
    if annotation is float and not math.isfinite(value):
        raise ConfigError(f"{key} is {value!r}, expected a finite number")
    return value


def _limits(extras: list[Any]) -> "list[Range | MultipleOf]":
    """Ranges among the annotations of a type; the others are not about its values."""
    return [extra for extra in extras if isinstance(extra, Range | MultipleOf)]


def _describe(annotation: Any) -> str:
    if typing.get_origin(annotation) is typing.Annotated:
        inner, *extras = typing.get_args(annotation)
        return " ".join([_describe(inner), *map(str, _limits(extras))])
    if typing.get_origin(annotation) is typing.Literal:
        return f"one of {', '.join(typing.get_args(annotation))}"
    names = {int: "an integer", float: "a number", bool: "true or false", str: "a text"}
    return names.get(annotation, str(annotation))
