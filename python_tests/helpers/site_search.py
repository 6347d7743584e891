"""The documentation's own search, asked in a browser that opens it from disk."""

import html
import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

_PAGE = """<!doctype html><body>
<script src="{site}/site/iframe-worker.js"></script>
<script src="{site}/search/search_index.js"></script>
<script>
const queries = {queries}, found = [];
const worker = new Worker("{worker}");
const ask = () => worker.postMessage({{ type: 2, data: queries[found.length] }});
worker.addEventListener("message", (event) => {{
  const {{ type, data }} = event.data;
  if (type === 3) found.push(data.items.map((page) => page.map((entry) => entry.location)));
  if (found.length < queries.length) return ask();
  const result = document.createElement("pre");
  result.id = "found";
  result.textContent = JSON.stringify(found);
  document.body.append(result);
}});
worker.postMessage({{ type: 0, data: {{ config: __index.config, docs: __index.docs, options: {{}} }} }});
</script>"""


def search(site: Path, queries: Sequence[str], folder: Path) -> list[list[list[str]]]:
    """What the site's search finds.

    Args:
        site: folder of the built site.
        queries: what is typed into the search box.
        folder: empty folder to work in.

    Returns:
        For each query the pages found, best first; each is a list of its own address and those of its sections, best
        first.
    """
    (worker,) = (site / "assets" / "javascripts" / "workers").glob("search.*.min.js")
    page = folder / "page.html"
    page.write_text(_PAGE.format(site=site.as_uri(), worker=worker.as_uri(), queries=json.dumps(list(queries))))
    (found,) = re.findall(r'<pre id="found">(.*?)</pre>', open_page(page.as_uri(), folder), re.DOTALL)
    return json.loads(html.unescape(found))


def open_page(address: str, folder: Path) -> str:
    """Open a page for some seconds of simulated time; gives its elements as scripts left them."""
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
        "--disable-background-networking", f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=5000",
        "--dump-dom", address,
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
