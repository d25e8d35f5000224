"""docs/tutorial.ipynb runs from top to bottom, as in Jupyter."""

import os
import sys
from pathlib import Path

import nbclient
import nbformat
import pytest

NOTEBOOK = Path(__file__).parents[1] / "docs" / "tutorial.ipynb"


@pytest.mark.slow
def test_the_tutorial_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("EPOCHS", "1")
    # Where `gnws` is installed, and a kernel of this Python.
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "1")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=600, resources={"metadata": {"path": tmp_path}}
    )
    client.execute()  # raises where a cell does

    texts = [
        output.get("text", "")
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if output.output_type == "stream"
    ]
    assert not [text for text in texts if "Traceback" in text or "error: " in text], texts
    output = tmp_path / "tutorial" / "output"
    assert (output / "model_best.pth").is_file() and (output / "report" / "report.html").is_file()
    assert (tmp_path / "tutorial" / "found" / "detections.json").is_file()
    shown = [c for c in notebook.cells if c.cell_type == "code" and c.source.startswith("Image(")]
    assert shown and all(
        "image/png" in c.outputs[0].data or "image/jpeg" in c.outputs[0].data for c in shown
    )
