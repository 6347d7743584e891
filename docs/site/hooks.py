"""What `make docs` adds to the pages in `docs`: generated pages, and what they link to elsewhere in the repository."""

import posixpath
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

REPOSITORY = Path(__file__).parents[2]
sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(REPOSITORY))

import pages  # noqa: E402

LINK = re.compile(r"(\]\()(?!\w+:)([^)#\s]+)(#[^)\s]*)?")
HOME = "README.md"
"""What the repository's front page is there is the start page here."""

SEARCH = {
    "troubleshooting": {"boost": 4},
    "api/": {"boost": 0.5},
    "CHANGELOG": {"boost": 0.2},
    "CONTRIBUTING": {"boost": 0.5},
    "benchmarks/results/": {"exclude": True},  # tables of figures, which every word would find
}
"""What the search makes of pages, by how their path begins."""


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the generated pages and all recipes into the navigation."""
    recipes = sorted(path.name for path in (REPOSITORY / "docs" / "recipes").glob("*.md"))
    recipes.sort(key=lambda name: name != "README.md")
    groups = {
        "RECIPES": [f"recipes/{name}" for name in recipes],
        "CONFIGURATION": [{page.title: path} for path, page in pages.configuration().items()],
        "API": [{page.title: path} for path, page in pages.api().items()],
    }
    config.nav = [
        {title: groups.get(value, value) if isinstance(value, str) else value for title, value in entry.items()}
        for entry in config.nav
    ]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages, and everything in the repository that pages link to."""
    for path, page in (pages.configuration() | pages.api()).items():
        files.append(File.generated(config, path, content=page.text))
    to_read = [file for file in files.documentation_pages() if file.generated_by is None]
    to_read += [_outside(files, config, name) for name in ("CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md")]
    while to_read:
        file = to_read.pop()
        for _, link, _ in LINK.findall(file.content_string):
            target = _in_repository(_home(file.src_uri, files), link)
            if target != HOME and not target.startswith(("docs/", "..")) and files.get_file_from_path(target) is None:
                if not (REPOSITORY / target).is_file():
                    continue  # the page's own check of its links says so
                added = _outside(files, config, target)
                to_read += [added] if target.endswith(".md") else []
    return files


def on_page_markdown(markdown: str, page: Page, files: Files, **_: Any) -> str:
    """Let links that lead out of `docs` lead to the copies of their targets in the site."""
    for start, search in SEARCH.items():
        if page.file.src_uri.startswith(start):
            page.meta["search"] = search
    if page.file.src_uri in pages.configuration() or page.file.src_uri in pages.api():
        return markdown
    here = posixpath.dirname(page.file.src_uri)

    def moved(match: re.Match[str]) -> str:
        target = _in_repository(_home(page.file.src_uri, files), match[2])
        is_home = target == HOME
        place = posixpath.relpath("index.md" if is_home else target.removeprefix("docs/"), here or ".")
        return match[1] + place + ("" if is_home else match[3] or "")

    return LINK.sub(moved, markdown)


def _outside(files: Files, config: MkDocsConfig, name: str) -> File:
    file = File.generated(config, name, abs_src_path=str(REPOSITORY / name))
    files.append(file)
    return file


def _home(src_uri: str, files: Files) -> str:
    """The folder of a page in the repository."""
    file = files.get_file_from_path(src_uri)
    return posixpath.dirname(src_uri if file is not None and file.generated_by else f"docs/{src_uri}")


def _in_repository(folder: str, link: str) -> str:
    return posixpath.normpath(posixpath.join(folder, link))
