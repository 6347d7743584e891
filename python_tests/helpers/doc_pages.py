"""What Markdown pages of the repository hold: links, anchors, blocks of code, pieces of code in the text."""

import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md")]
    + list((ROOT / "docs").rglob("*.md"))
)
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"`([^`\n]+(?:\n[^`\n]+)?)`")
_LINK = re.compile(r"\]\(([^)\s]+)\)")


def name(page: Path) -> str:
    """A page's path in the repository."""
    return str(page.relative_to(ROOT))


@cache
def prose(page: Path) -> str:
    """A page without its blocks of code."""
    return _FENCE.sub("", page.read_text(encoding="utf-8"))


def blocks(page: Path, *languages: str) -> list[str]:
    """Blocks of code in one of these languages."""
    return [text for language, text in _FENCE.findall(page.read_text(encoding="utf-8")) if language in languages]


def code(page: Path) -> list[str]:
    """Pieces of code in the text; one that goes on in the next line is on one line here."""
    return [" ".join(piece.split()) for piece in _CODE.findall(prose(page))]


def links(page: Path) -> list[str]:
    """Targets of links, without those to other hosts."""
    found = _LINK.findall(_CODE.sub("", prose(page)))
    return [link for link in found if not re.match(r"\w+:", link)]


@cache
def anchors(page: Path) -> set[str]:
    """Names of a page's headings, as GitHub makes them."""
    seen: Counter[str] = Counter()
    return set(_anchors(page, seen))


def _anchors(page: Path, seen: Counter[str]) -> Iterator[str]:
    for heading in re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE):
        shown = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        anchor = re.sub(r"[^\w\- ]", "", shown.lower()).replace(" ", "-")
        yield anchor + (f"-{seen[anchor]}" if seen[anchor] else "")
        seen[anchor] += 1


def commands(page: Path) -> list[str]:
    """Lines of shell blocks, whole where they go on after a backslash, without comments."""
    text = "".join(blocks(page, "bash", "sh")).replace("\\\n", " ")
    lines = [re.sub(r"(^|\s)#.*", "", line).strip() for line in text.splitlines()]
    return [line for line in lines if line]
