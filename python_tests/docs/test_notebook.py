"""The notebook of the examples: tidy as it is committed, and it runs from top to bottom."""

import base64
import io
import json
import re
from pathlib import Path

import av
import pytest

NOTEBOOK = Path(__file__).parents[2] / "examples" / "quickstart.ipynb"


@pytest.fixture(scope="module")
def cells():
    return json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]


def test_it_is_committed_without_outputs(cells):
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert len(code) >= 5
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)


def test_every_cell_of_code_compiles_and_follows_words(cells):
    for cell, previous in zip(cells[1:], cells, strict=False):
        if cell["cell_type"] == "code":
            compile("".join(cell["source"]), cell["id"], "exec")
            words = "".join(previous["source"])
            assert previous["cell_type"] == "markdown" and 1 <= len(re.findall(r"[.:](\s|$)", words)) <= 3, words


def test_it_runs(tmp_path, monkeypatch):
    """A run of seconds: recorded, pretrained, post-trained, measured and shown."""
    pytest.importorskip("gym_pusht")
    pytest.importorskip("ipykernel")
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    monkeypatch.setenv("VAMPO_QUICKSTART", "tiny")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    shown = [output for cell in notebook.cells for output in cell.get("outputs", []) if "data" in output]
    tables = [output["data"]["text/markdown"] for output in shown if "text/markdown" in output["data"]]
    assert len(tables) == 1 and re.search(r"\| l1 \| \d\.\d{4} \| \d\.\d{4} \| [+-]0\.\d{4}.* \| \w+ \|", tables[0])
    pages = [output["data"]["text/html"] for output in shown if "text/html" in output["data"]]
    assert sum("<polyline" in page and "nan" not in page for page in pages) == 1
    videos = [base64.b64decode(data) for page in pages for data in re.findall(r"data:video/mp4;base64,([^\"]+)", page)]
    assert len(videos) == 3
    for video in videos:
        with av.open(io.BytesIO(video)) as container:
            codec = container.streams.video[0].codec_context
            assert (codec.name, codec.pix_fmt) == ("h264", "yuv420p")
    assert (tmp_path / "runs/quickstart/report.html").is_file()
