"""Running an exported file: TorchScript, ``torch.export``, ONNX Runtime and OpenVINO.

Nothing in a file is executed but its graph: no loader unpickles.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling.postprocessing import detector_postprocess, sem_seg_postprocess
from detectron2.structures import Boxes, Instances
from torch import nn

from gnws.upstream import quiet
from gnws_d2.config import load_config
from gnws_d2.errors import GnwsError

from .interface import FIELDS, Outputs

FACTS = "facts.json"  # in TorchScript and torch.export; ONNX has its own metadata
# Keys of a config's INPUT, and the facts that hold their values.
INPUT_FACTS = {"FORMAT": "format", "RESIZE_TEST": "resize"}
INPUT_FACTS |= {"MIN_SIZE_TEST": "min_size", "MAX_SIZE_TEST": "max_size"}
INSTALL = (
    'pip install "gnws_d2[export]" for ONNX, "gnws_d2[openvino]" for OpenVINO, "gnws_d2[int8]" for '
    "8-bit integers"
)


@dataclass(frozen=True)
class Exported:
    """A loaded file: ``run`` computes what a :class:`Detector` does, on the CPU with torch's number
    of threads; ``facts`` is what :func:`export` stored by name."""

    run: Callable[[torch.Tensor], Outputs]
    facts: dict[str, Any]


class ExportedModel(nn.Module):
    """An exported file in place of the Detectron2 model that it was made from: takes and returns
    what Detectron2's models do in evaluation, one image after the other.

    Args:
        file: see :func:`load_exported`.

    Attributes:
        facts: what the file stores by name.
        test_score_thresh: detections of a lower score are left out, as far as the file has them.

    Raises:
        GnwsError: see :func:`load_exported`.
    """

    def __init__(self, file: str | os.PathLike) -> None:
        super().__init__()
        loaded = load_exported(file)
        self._file, self.facts = file, loaded.facts
        self.test_score_thresh = 0.0
        self._run = loaded.run

    @property
    def config(self) -> CfgNode:
        """What the file stores of its model's config: how images are read and resized, and classes.

        Raises:
            GnwsError: the file does not store it.
        """
        if missing := {"classes", *INPUT_FACTS.values()} - self.facts.keys():
            raise GnwsError(
                f"{self._file} does not store {min(missing)!r}, which a predictor needs. Export it "
                "with `gnws export`, or store it as one of the facts."
            )
        opts = ["MODEL.DEVICE", "cpu", "DATASETS.CATEGORY_IDS", self.facts.get("category_ids", [])]
        opts += ["DATASETS.CLASSES", self.facts["classes"]]
        for key, name in INPUT_FACTS.items():
            opts += [f"INPUT.{key}", self.facts[name]]
        return load_config("", opts)

    def forward(self, batch: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Detect on each ``image`` (3, H, W). Results are in pixels of the original image, whose
        ``height`` and ``width`` are by default those of the image."""
        return [self._detect(entry) for entry in batch]

    def _detect(self, entry: Mapping[str, Any]) -> dict[str, Any]:
        size = (entry["image"].shape[1], entry["image"].shape[2])
        height, width = entry.get("height", size[0]), entry.get("width", size[1])
        outputs = self._run(entry["image"])
        found: dict[str, Any] = dict(zip(self.facts["outputs"], outputs, strict=True))
        if "sem_seg" in found:
            return {"sem_seg": sem_seg_postprocess(found["sem_seg"], size, height, width)}
        found["boxes"] = Boxes(found["boxes"])
        instances = Instances(size)
        for field, name in FIELDS.items():
            if name in found:
                instances.set(field, found[name])
        instances = instances[instances.scores > self.test_score_thresh]
        return {"instances": detector_postprocess(instances, height, width)}


def load_exported(file: str | os.PathLike) -> Exported:
    """Load a file that :func:`~gnws_d2.projects.export.export` wrote.

    Raises:
        GnwsError: the file cannot be loaded, stores no facts, or its runtime is not installed.
    """
    try:
        with quiet():
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


def _load_torch(file: Path) -> Exported:
    extra = {FACTS: ""}
    if file.suffix == ".ts":
        module = torch.jit.load(str(file), _extra_files=extra)
    else:
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
        return tuple(map(torch.from_numpy, session.run(None, {"image": image.numpy()})))

    stored = session.get_modelmeta().custom_metadata_map
    return Exported(run, {name: json.loads(value) for name, value in stored.items()})


def import_openvino() -> ModuleType:
    """OpenVINO without the package through which it reports its use to Intel, unless a program has
    imported that itself."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino


def _load_openvino(file: Path) -> Exported:
    core = import_openvino().Core()
    model = core.read_model(file)
    facts = json.loads(model.get_rt_info(["gnws_d2", "facts"]).astype(str))
    # The default is bfloat16 where the CPU has it; emulated it is several times as slow.
    has_bfloat16 = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    options = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": facts["precision"] if has_bfloat16 else "f32",
    }
    request = core.compile_model(model, "CPU", options).create_infer_request()

    def run(image: torch.Tensor) -> Outputs:
        # Copies: the next run writes to the same memory.
        outputs = request.infer({"image": image.numpy()}).values()
        return tuple(torch.from_numpy(output.copy()) for output in outputs)

    return Exported(run, facts)


_LOADERS: dict[str, Callable[[Path], Exported]] = {
    ".ts": _load_torch,
    ".pt2": _load_torch,
    ".onnx": _load_onnx,
    ".xml": _load_openvino,
}
