"""Loading an exported file: TorchScript, ``torch.export``, ONNX Runtime and OpenVINO.

Nothing in a file is executed but its graph: no loader unpickles.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from gnws_d2.errors import GnwsError

from .interface import INSTALL, Outputs

Run = Callable[[torch.Tensor], Outputs]
FACTS = "facts.json"  # in TorchScript and torch.export; ONNX has its own metadata


@dataclass(frozen=True)
class Exported:
    """A loaded file: ``run`` computes what a :class:`Detector` does, on the CPU with torch's number
    of threads; ``facts`` is what :func:`export` stored by name."""

    run: Run
    facts: dict[str, Any]


def is_exported(file: str | os.PathLike) -> bool:
    """Whether the name of ``file`` is that of an exported model."""
    return Path(file).suffix in _LOADERS


def load_exported(file: str | os.PathLike) -> Exported:
    """Load a file that :func:`~gnws_d2.projects.export.export` wrote.

    Raises:
        GnwsError: the file cannot be loaded, stores no facts, or its runtime is not installed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loaded = _LOADERS[Path(file).suffix](Path(file))
    except ImportError as error:
        raise GnwsError(
            f"{file} needs a runtime that does not import ({error}). Install it: {INSTALL}."
        ) from error
    except Exception as error:  # each runtime has its own
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise GnwsError(f"{file} cannot be loaded ({reason}). Export it again.") from error
    if "outputs" not in loaded.facts:
        raise GnwsError(f"{file} does not name its outputs. Export it again with this version.")
    return loaded


def _load_torchscript(file: Path) -> Exported:
    extra = {FACTS: ""}
    module = torch.jit.load(str(file), _extra_files=extra)
    return Exported(lambda image: tuple(module(image)), json.loads(extra[FACTS]))


def _load_torch_export(file: Path) -> Exported:
    extra = {FACTS: ""}
    with _without_unpickling(), file.open("rb") as opened:
        module = torch.export.load(opened, extra_files=extra).module()
    return Exported(lambda image: tuple(module(image)), json.loads(extra[FACTS]))


@contextmanager
def _without_unpickling() -> Iterator[None]:
    """torch.export.load unpickles parts of a file unless torch is told not to."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    former = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        del os.environ[name]
        if former is not None:
            os.environ[name] = former


def _load_onnx(file: Path) -> Exported:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(file), options, ["CPUExecutionProvider"])

    def run(image: torch.Tensor) -> Outputs:
        outputs = session.run(None, {"image": image.numpy()})
        return tuple(torch.from_numpy(output) for output in outputs)

    stored = session.get_modelmeta().custom_metadata_map
    return Exported(run, {name: json.loads(value) for name, value in stored.items()})


def import_openvino() -> ModuleType:
    """OpenVINO without the package through which it reports its use to Intel, unless a program has
    imported that itself."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino


def cpu_has_bfloat16() -> bool:
    """Whether OpenVINO finds instructions for bfloat16."""
    core = import_openvino().Core()
    return "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def _load_openvino(file: Path) -> Exported:
    openvino = import_openvino()
    core = openvino.Core()
    model = core.read_model(file)
    facts = json.loads(model.get_rt_info(["gnws_d2", "facts"]).astype(str))
    emulated = facts["precision"] == "bf16" and not cpu_has_bfloat16()  # several times as slow
    options = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        # The default on a CPU that computes in bfloat16 is bfloat16.
        "INFERENCE_PRECISION_HINT": "f32" if emulated else facts["precision"],
    }
    request = core.compile_model(model, "CPU", options).create_infer_request()

    def run(image: torch.Tensor) -> Outputs:
        # Copies: the next run writes to the same memory.
        outputs = request.infer({"image": image.numpy()}).values()
        return tuple(torch.from_numpy(output.copy()) for output in outputs)

    return Exported(run, facts)


_LOADERS: dict[str, Callable[[Path], Exported]] = {
    ".ts": _load_torchscript,
    ".pt2": _load_torch_export,
    ".onnx": _load_onnx,
    ".xml": _load_openvino,
}
