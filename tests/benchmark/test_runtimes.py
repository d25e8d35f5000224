"""runtimes.py: its stages on a small model."""

import json

import pytest
import runtimes
import torch
from detectron2.modeling import build_model

from gnws_d2 import load_config
from gnws_d2.checkpoint import Checkpointer

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def few_runtimes(monkeypatch):
    monkeypatch.setattr(runtimes, "RUNTIMES", ["eager", "folded", "torchscript-trace"])


def test_files_are_exported_once_and_then_measured(small, tmp_path):
    runtimes.export_model(small, tmp_path, (96, 128))
    written = {file.name: file.stat().st_mtime_ns for file in tmp_path.iterdir()}
    assert set(written) == {"model.pth", "model_trace.ts"}
    runtimes.export_model(small, tmp_path, (96, 128))
    assert written == {file.name: file.stat().st_mtime_ns for file in tmp_path.iterdir()}

    image = runtimes.photograph((96, 128))
    assert image.shape == (3, 96, 128) and 0 <= image.min() < 50 < 200 < image.max() <= 255
    rows = runtimes.measure(small, tmp_path, image, 2, runtimes.RUNTIMES)
    assert [row["runtime"] for row in rows] == runtimes.RUNTIMES
    for row in rows:
        assert row["same"][0] == row["same"][1] > 0
        assert len(row["seconds"]) == 2 and min(row["seconds"]) > 0
        assert row["load"] > 0 and row["memory"] > (tmp_path / "model_trace.ts").stat().st_size / 2
    assert rows[0]["ratio"] == [1, 1, 1]
    json.dumps(rows)


def test_the_ap_of_files_is_that_of_the_model(tmp_path, small):
    opts = ["MODEL.DEVICE", "cpu", "INPUT.MIN_SIZE_TEST", "64", "DATASETS.TRAIN", "('digits_val',)"]
    opts += ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0"]
    cfg = load_config(small, opts)
    torch.manual_seed(0)
    Checkpointer(build_model(cfg), str(tmp_path), cfg=cfg).save("model")
    rows = runtimes.accuracy(str(tmp_path / "model.pth"), tmp_path / "files")
    assert [row.pop("runtime") for row in rows] == runtimes.RUNTIMES
    assert set(rows[0]) == {"bbox", "segm"} and rows[0] == rows[1] == rows[2]
