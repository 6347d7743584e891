"""What a setting means for a run, declared beside its type, and what follows from that.

A section has a role for all its fields in ``ROLE``; a field that differs has its own among its annotations::

    num_steps: Annotated[Positive, Role(decides=("base",), may_change=True, unless="pretrain.decay_steps")] = 1200
"""

import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

Product = Literal["data", "codec", "base", "evaluation", "decoder", "vampo", "policy"]
_BUILDS_ON: dict[Product, tuple[Product, ...]] = {
    "data": (),
    "codec": (),  # training frames: their content counts, and not how clips are cut from them
    "base": ("data",),
    "evaluation": ("data",),
    "decoder": ("data",),
    "vampo": ("data", "evaluation"),
    "policy": ("data", "evaluation"),
}
"""Products whose settings decide another one too."""


@dataclass(frozen=True, kw_only=True)
class Role:
    """What a setting means for a run."""

    decides: tuple[Product, ...] = ()
    """Products that depend on it; two configurations that agree in these settings share the product."""
    may_change: bool = False
    """Whether a resumed run may have another value, because what it has computed so far does not depend on it."""
    unless: str | None = None
    """Key of a setting that fixes this one from the start where it is not 0: a decay counts back from the end."""
    is_later: bool = False
    """Whether it came after products were made and named: at its default it is left out of what decides them."""
    is_path: bool = False
    """Whether it is a file or a folder: ``~`` and environment variables are expanded."""
    is_stored: bool = False
    """Whether it is stored with the weights of the product that it decides, which cannot be used without it."""


def roles_of(sections: Mapping[str, type]) -> dict[str, Role]:
    """The role of every setting, by key."""
    return {
        f"{name}.{field.name}": _role_of(section, field.name)
        for name, section in sections.items()
        for field in fields(section)
    }


def products_behind(product: Product) -> tuple[Product, ...]:
    """The product, and those whose settings decide it too."""
    return (product, *_BUILDS_ON[product])


def _role_of(section: Any, name: str) -> Role:
    own = list(_roles_in(typing.get_type_hints(section, include_extras=True)[name]))
    return own[0] if own else section.ROLE


def _roles_in(annotation: Any) -> Iterable[Role]:
    """Roles among the annotations of a type, at any depth."""
    yield from (extra for extra in getattr(annotation, "__metadata__", ()) if isinstance(extra, Role))
    for argument in typing.get_args(annotation):
        if not isinstance(argument, Role):
            yield from _roles_in(argument)
