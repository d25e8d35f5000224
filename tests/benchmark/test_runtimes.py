"""runtimes.py: its two stages on a small model, and the document that it writes."""

import json
import re

import pytest
import runtimes
import torch
from detectron2.modeling import build_model

from gnws_d2 import load_config
from gnws_d2.checkpoint import Checkpointer


@pytest.mark.slow
def test_files_are_exported_once_and_then_measured(small, tmp_path, monkeypatch):
    monkeypatch.setattr(runtimes, "RUNTIMES", ["eager", "folded", "torchscript-trace"])
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


def test_the_document_is_up_to_date():
    document = runtimes.DOCUMENT.read_text(encoding="utf-8")
    assert runtimes.tables(runtimes.read(runtimes.RESULTS)) in document


def test_a_table_shows_what_is_measured(tmp_path):
    rows = [
        {"model": "mask_rcnn_R_50_FPN", "runtime": runtime, "load": 1.23, "memory": 2**30 * 1.5}
        | {"seconds": [2.0 * ratio, 2.2 * ratio], "ratio": [ratio, ratio, ratio], "same": [i, 100]}
        for i, (runtime, ratio) in enumerate(
            zip(runtimes.RUNTIMES, (1, 1.1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.3, 0.2), strict=True)
        )
    ]
    machine = {"machine": "A CPU", "threads": 2, "date": "2026-01-02", "commit": "1a2b3c4"}
    machine["versions"] = {"torch": "2", "onnxruntime": "3", "openvino": "4"}
    accuracy = [{"runtime": "openvino-bfloat16", "bbox": 66.96, "segm": 65.2, "commit": "5d6e7f8"}]
    old = {"model": "mask_rcnn_R_50_FPN", "runtime": "folded", "commit": "0"}
    other = {**rows[0], "model": "mask_rcnn_R_101_FPN", "commit": "9a9b9c9"}
    results = runtimes.with_rows({"rows": [old, other], "accuracy": accuracy}, rows, machine)
    runtimes.write(tmp_path / "new" / "a.json", results)
    read = runtimes.read(tmp_path / "new" / "a.json")
    assert read["rows"] == [other, *({**row, "commit": "1a2b3c4"} for row in rows)]
    assert read["accuracy"] == accuracy
    text = runtimes.tables(read)
    lines = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        lines.setdefault(cells[0], []).append(cells[1:])
    times, memory, load, same = lines["mask_rcnn_R_50_FPN"]
    assert times == ["2.10 s", "1.10", "0.90", "0.80", "0.70", "0.60", "0.50", "0.30", "0.20"]
    assert memory == ["1.50"] * 9 and load == ["1.2"] * 9
    assert same == [f"{i} of 100" for i in range(9)]
    assert lines["box"] == [["66.96"]] and lines["mask"] == [["65.20"]]
    assert re.search(r"^Not measured yet: .*\bmask_rcnn_X_101_32x4d_FPN\b.*\.$", text, re.MULTILINE)
    assert "A CPU, 2 threads, torch 2, onnxruntime 3, openvino 4; until 2026-01-02, at " in text
    assert "at 9a9b9c9, 1a2b3c4, 5d6e7f8." in text


@pytest.mark.slow
def test_the_ap_of_files_is_that_of_the_model(tmp_path, monkeypatch, small):
    monkeypatch.setattr(runtimes, "RUNTIMES", ["eager", "torchscript-trace"])
    opts = ["MODEL.DEVICE", "cpu", "INPUT.MIN_SIZE_TEST", "64", "DATASETS.TRAIN", "('digits_val',)"]
    opts += ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0"]
    cfg = load_config(small, opts)
    torch.manual_seed(0)
    Checkpointer(build_model(cfg), str(tmp_path), cfg=cfg).save("model")
    eager, traced = runtimes.accuracy(str(tmp_path / "model.pth"), tmp_path / "files")
    assert (eager.pop("runtime"), traced.pop("runtime")) == ("eager", "torchscript-trace")
    assert set(eager) == {"bbox", "segm"} and eager == traced
