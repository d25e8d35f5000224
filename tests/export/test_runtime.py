"""Loading files that the runtimes themselves wrote: precision, safety, errors."""

import json
import os
import subprocess
import sys
import zipfile

import numpy as np
import openvino
import pytest
import torch
from openvino import opset13
from processes import ROOT

from gnws_d2.errors import GnwsError
from gnws_d2.projects.export import load_exported
from gnws_d2.projects.export.runtime import FACTS


@pytest.fixture
def openvino_file(tmp_path):
    """``openvino_file(precision)``: a file that convolves with 64 weights of one third."""

    def write(precision):
        image = opset13.parameter([3, -1, -1], np.float32, name="image")
        weight = np.full((1, 3, 8, 8), 1 / 3, np.float32)
        batch = opset13.unsqueeze(image, np.int64(0))
        out = opset13.convolution(batch, weight, [1, 1], [0, 0], [0, 0], [1, 1])
        model = openvino.Model([out], [image])
        model.set_rt_info(
            json.dumps({"outputs": ["map"], "precision": precision}), ["gnws_d2", "facts"]
        )
        openvino.save_model(model, tmp_path / "model.xml", compress_to_fp16=False)
        return tmp_path / "model.xml"

    return write


def test_openvino_computes_in_the_stored_precision(openvino_file):
    """By itself it takes bfloat16 where the CPU has it."""
    image = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0))
    true = image.double().sum().item() / 3
    run = load_exported(openvino_file("f32")).run
    [found] = run(image)
    run(torch.zeros(3, 8, 8))  # does not overwrite the result
    assert found.item() == pytest.approx(true, rel=1e-5)
    [rounded] = load_exported(openvino_file("bf16")).run(image)
    assert rounded.item() == pytest.approx(true, rel=1e-2)
    if "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        assert rounded.item() != pytest.approx(true, rel=1e-4)
    else:
        assert rounded.item() == found.item()


@pytest.mark.slow
def test_openvino_reports_nothing(openvino_file):
    """In a process of its own: here OpenVINO is imported already."""
    lines = [
        "import sys",
        "from gnws_d2.projects.export import load_exported",
        f"load_exported({str(openvino_file('f32'))!r})",
        "from openvino.tools.ovc import telemetry",
        "print(type(telemetry).__module__, sys.modules['openvino_telemetry'])",
    ]
    command = [sys.executable, "-c", "\n".join(lines)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "openvino.tools.ovc.telemetry_stub None\n", done.stderr


def test_a_torch_export_file_is_not_unpickled(tmp_path):
    class Double(torch.nn.Module):
        def forward(self, x):
            return (x * 2,)

    good, bad, mark = tmp_path / "good.pt2", tmp_path / "bad.pt2", tmp_path / "mark"
    facts = {FACTS: json.dumps({"outputs": ["double"]})}
    torch.export.save(torch.export.export(Double(), (torch.ones(3),)), good, extra_files=facts)
    [found] = load_exported(good).run(torch.ones(3))
    assert found.tolist() == [2, 2, 2]

    pickled = tmp_path / "pickle.pt"
    makes_a_folder = type("", (), {"__reduce__": lambda _: (os.mkdir, (str(mark),))})()
    torch.save(makes_a_folder, pickled)
    with zipfile.ZipFile(good) as source, zipfile.ZipFile(bad, "w") as target:
        for name in source.namelist():
            inputs = name.endswith("sample_inputs/model.pt")
            target.writestr(name, pickled.read_bytes() if inputs else source.read(name))
    with pytest.raises(GnwsError, match=r"bad\.pt2 cannot be loaded"):
        load_exported(bad)
    assert not mark.exists()


def test_what_cannot_be_loaded_is_named(tmp_path):
    for name in ("model.ts", "model.pt2", "model.onnx", "model.xml"):
        with pytest.raises(GnwsError, match=rf"{name} cannot be loaded .* Export it again"):
            load_exported(tmp_path / name)
        (tmp_path / name).write_text("no model")
        with pytest.raises(GnwsError, match=rf"{name} cannot be loaded .* Export it again"):
            load_exported(tmp_path / name)
