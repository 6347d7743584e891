"""From values to a page: Jinja templates, and how numbers are written."""

from datetime import datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from vampo_core._extension import version
from vampo_core.config import VampoConfig


def render(template: str, config: VampoConfig, **values: Any) -> str:
    """The page of a run as one HTML file that needs nothing else.

    Args:
        template: name of a file in ``templates``, which extends ``page.html``.
        config: configuration of the run, which the page shows and whose folder names it.
        values: values that the template uses; strings are escaped.
    """
    name = Path(config.run.dir).resolve().name
    return render_page(template, name=name, configuration=config.to_yaml(), **values)


def render_page(template: str, *, name: str, **values: Any) -> str:
    """As :func:`render`, for a page with a name of its own that is not of a single run."""
    return _ENVIRONMENT.get_template(template).render(
        name=name,
        versions=f"vampo_core {version()} · torch {torch.__version__} · {datetime.now():%Y-%m-%d %H:%M}",
        **values,
    )


def number(value: float, spec: str, sign: bool = False) -> str:
    """A number with a real minus and a thin space before the per cent sign."""
    text = f"{value:{'+' if sign else ''}{spec}}"
    return text.replace("-", "\N{MINUS SIGN}").replace("%", "\N{NARROW NO-BREAK SPACE}%")


def count(value: int, noun: str) -> str:
    """``1 clip``, ``2 clips``."""
    return f"{value} {noun}" + ("" if value == 1 else "s")


def within_sentence(title: str) -> str:
    """A title as part of a sentence; abbreviations stay as they are."""
    return title if title[:2].isupper() else title[0].lower() + title[1:]


def _asset(name: str) -> Markup:
    """A style sheet or a script, whose text goes into the page as it is."""
    return Markup((files("vampo_core") / "report" / "templates" / name).read_text(encoding="utf-8"))


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("vampo_core", "report/templates"),
        autoescape=True,
        undefined=StrictUndefined,  # a value that is missing is an error, not an empty place in the page
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "count": count}
    environment.globals["asset"] = _asset
    return environment


_ENVIRONMENT = _environment()
