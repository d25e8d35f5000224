"""export_model.py and support.py as their users run them."""

import re

import pytest
import torch
from detectron2.modeling import build_model
from processes import ROOT, run
from tiny import TINY

import gnws_d2

EXPORT = ROOT / "projects" / "Export"
pytestmark = pytest.mark.slow


def test_what_a_format_supports_is_written_and_a_refusal_is_exit_code_1(digits, tmp_path):
    cfg = gnws_d2.load_config("Digits/retinanet_R_18_FPN_gn_ws.yaml", TINY)
    torch.save({"model": build_model(cfg).state_dict()}, tmp_path / "retinanet.pth")
    done = run(
        *(EXPORT / "export_model.py", "--config-file", "Digits/retinanet_R_18_FPN_gn_ws.yaml"),
        *("--weights", tmp_path / "retinanet.pth", "--output", tmp_path),
        *("--input", sorted((digits / "val").glob("*.png"))[0]),
        *("--format", "torchscript-trace", "onnx", "--opts", *TINY, "INPUT.MIN_SIZE_TEST", "256"),
    )
    assert done.returncode == 1, done.stderr
    assert "onnx does not support this model: only Faster and Mask R-CNN are" in done.stderr
    assert re.search(r"model_trace\.ts +\| +\d+\.\d \| +2 \|", done.stdout), done.stdout
    assert (tmp_path / "model_trace.ts").exists() and not (tmp_path / "model.onnx").exists()


def test_the_documents_table_is_what_the_command_finds():
    """Not Mask R-CNN, whose four files take a minute: see test_export.py."""
    names = ("Keypoint R-CNN", "FCOS")
    done = run(EXPORT / "support.py", "--dry-run", *names)
    assert done.returncode == 0, done.stderr
    document = (ROOT / "docs" / "export.md").read_text()
    for name in names:
        found, written = (
            [re.sub(r" \(\d+\)", "", cell.strip()) for cell in row.split("|")]
            for text in (done.stdout, document)
            for row in re.findall(rf"^\| \[{name}\].*", text, re.MULTILINE)
        )
        assert found == written
