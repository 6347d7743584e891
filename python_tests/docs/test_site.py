"""The site that `make docs` built shows everything public, and opens without a network."""

import re

import pytest
from built_site import SITE, unfit
from doc_pages import ROOT

import vampo_core
from vampo_core.cli.parser import VERBS
from vampo_core.config import roles

pytestmark = pytest.mark.skipif(unfit() is not None, reason=str(unfit()))


def headings(folder: str) -> set[str]:
    """Names of what has a heading of its own."""
    pages = (SITE / folder).glob("*.html")
    return {name for page in pages for name in re.findall(r'<h[2-4] id="([^"]*)"', page.read_text(encoding="utf-8"))}


def test_every_setting_and_verb_is_there():
    assert roles().keys() <= headings("configuration")
    assert {f"vampo-{verb.replace(' ', '-')}" for verb in VERBS} <= headings("configuration")


def test_everything_public_is_there():
    shown = headings("api")
    names = {heading.rpartition(".")[2] for heading in shown}
    assert set(vampo_core.__all__) - {"ops"} <= names
    assert {f"vampo_core.ops.{name}" for name in set(vampo_core.ops.__all__) - {"reference"}} <= shown
    assert "vampo_core.ops.reference.hybrid_euler_step" in shown
    assert {f"vampo_core.data.{name}" for name in vampo_core.data.__all__} <= shown | {"vampo_core.data.FORMATS"}


def test_shapes_stand_beside_arguments():
    page = (SITE / "api" / "ops.html").read_text(encoding="utf-8")
    text = re.sub(r"<[^>]*>|\s", "", page)
    assert "[B,F,C,H,W],float32,bfloat16orfloat16;whatthedenoiserreturned" in text
    assert "Returnedshape:[B,G,F]." in text and "[N,F,C,H,W],or[B,G,F,C,H,W]wherethestepdrewnoise" in text


def test_every_page_of_the_docs_is_in_it():
    docs = ROOT / "docs"
    pages = {path.relative_to(docs).with_suffix(".html") for path in docs.rglob("*.md")}
    there = {path.parent / "index.html" if path.stem == "README" else path for path in pages}
    assert {str(path) for path in there if not (SITE / path).is_file()} == set()


def test_pages_ask_no_other_host():
    assert [page for page in SITE.rglob("*.html") if asks(page.read_text(encoding="utf-8"))] == []
    assert asks('<script src="https://example.org/x.js"></script>') and not asks('<a href="https://example.org">')


def asks(page: str) -> bool:
    """Whether a page loads something from another host."""
    loading = re.findall(r'(?:src="|<link[^>]*href=")([^"]*)"', page)
    return any(re.match(r"(\w+:)?//", address) for address in loading)
