"""The site that `make docs` has built, if it has."""

from doc_pages import ROOT

SITE = ROOT / "build" / "docs"
_SOURCES = [ROOT / "mkdocs.yml", *(path for path in (ROOT / "docs").rglob("*") if path.is_file())]


def unfit() -> str | None:
    """Why there is no site to test; None if there is."""
    index = SITE / "index.html"
    if not index.is_file():
        return "needs the site: make docs"
    newest = max(source.stat().st_mtime for source in _SOURCES if source.suffix != ".pyc")
    return "the site is older than its pages: make docs" if newest > index.stat().st_mtime else None
