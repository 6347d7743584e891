"""Links within the repository lead to files and headings that exist."""

import pytest
from doc_pages import PAGES, ROOT, anchors, links, name


def broken(page):
    """Links of a page that lead nowhere."""
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists():
            yield f"{link}: no such file"
        elif target != page and not target.is_relative_to(ROOT):
            yield f"{link}: outside of the repository"
        elif anchor and anchor not in anchors(target):
            yield f"{link}: no such heading"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links(page):
    assert list(broken(page)) == []


def test_broken_links_are_noticed(tmp_path):
    page = tmp_path / "page.md"
    readme = ROOT / "README.md"
    page.write_text(f"# One\n[a](#one) [b](#two) [c](no.md) [d]({readme}#install) [e]({readme}#two) [f]({tmp_path})\n")
    problems = ["no such heading", "no such file", "no such heading", "outside of the repository"]
    assert [reason.partition(": ")[2] for reason in broken(page)] == problems


def test_pages_are_short():
    longer = {ROOT / "docs" / "troubleshooting.md": 250}  # a list of questions
    lengths = {page: len(page.read_text(encoding="utf-8").splitlines()) for page in (ROOT / "docs").rglob("*.md")}
    assert not {name(page): lines for page, lines in lengths.items() if lines > longer.get(page, 150)}
