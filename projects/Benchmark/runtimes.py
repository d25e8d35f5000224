#!/usr/bin/env python3
"""The time, memory and loading time of a detector on the CPU in every runtime: docs/export.md.

    runtimes.py export            # writes the files of all models that do not exist yet: slow
    runtimes.py measure           # loads and times them, then makes the tables
    runtimes.py accuracy --weights output/digits/model_final.pth   # AP of a trained model

Weights are random: time does not depend on them, apart from how many detections there are, which
the config limits. The image is a photograph of scikit-learn's. Each runtime has a process of its
own, which loads the file, reports its peak of resident memory above that of this package, and then
waits. The processes take turns on one image, in a random order that the next round reverses.
Results are in docs/benchmarks/runtimes/cpu.json.
"""

import functools
import logging
import multiprocessing
import resource
import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from pathlib import Path

import mmdetection
import numpy as np
import torch
from detectron2.data import DatasetCatalog
from detectron2.evaluation import COCOEvaluator, inference_on_dataset
from detectron2.modeling import build_model
from measure import paired_times, ratio
from report import PACKAGES, RUNTIMES, RUNTIMES_FILE, update_documents
from results import Row, machine, read, write
from torch import nn
from torch.nn import functional
from variants import ARCHITECTURES, Case, initial_state

import gnws_d2
from gnws_d2.data import read_image
from gnws_d2.layers import fold
from gnws_d2.projects import digits, export

SIZE = (800, 1056)
FILES = Path("output/runtimes")
WEIGHTS = "model.pth"


def available() -> list[str]:
    """The runtimes of this machine: without instructions for bfloat16 (avx512_bf16, amx_bf16), its
    file is computed in float32."""
    missing = set() if mmdetection.is_installed else {"mmdetection"}
    if "_bf16" not in Path("/proc/cpuinfo").read_text(encoding="utf-8"):
        missing.add("openvino-bfloat16")
    return [name for name in RUNTIMES if name not in missing]


def photograph(size: tuple[int, int]) -> torch.Tensor:
    """(3, H, W), float32, BGR, levels 0 to 255."""
    from sklearn.datasets import load_sample_image

    pixels = load_sample_image("china.jpg")[:, :, ::-1].astype(np.float32).transpose(2, 0, 1)
    return functional.interpolate(torch.from_numpy(pixels)[None], size, mode="bilinear")[0]


def export_model(name: str, folder: Path, size: tuple[int, int]) -> None:
    """Write the weights of a model, and its files that do not exist."""
    folder.mkdir(parents=True, exist_ok=True)
    case = Case("model", name, size, "infer")
    model, weights = build_model(case.config()).eval(), folder / WEIGHTS
    if not weights.exists():
        state = initial_state(case)
        state["roi_heads.box_predictor.cls_score.weight"] *= 10  # or no score is above 0.05
        torch.save({"model": state}, weights)
    model.load_state_dict(torch.load(weights)["model"])
    write_files(model, folder, [photograph((size[0] // 2, size[1] // 2))])


def write_files(model: nn.Module, folder: Path, seen: list[torch.Tensor]) -> None:
    """Export to the formats whose file does not exist. What differs is reported, not refused."""
    exporter = export.Exporter(model, seen)
    for runtime in (name for name in RUNTIMES if name in export.FORMATS):
        file, start = folder / export.FORMATS[runtime].file, time.time()
        if not file.exists():
            compared = exporter.export(runtime, file, export.Tolerance(share=0.0))
            print(f"{file}: {time.time() - start:.0f} s, {compared}", flush=True)


def load(runtime: str, name: str, folder: Path) -> Callable[[torch.Tensor], Sequence[torch.Tensor]]:
    if runtime in export.FORMATS:
        return export.load_exported(folder / export.FORMATS[runtime].file).run
    if runtime == "mmdetection":
        return mmdetection.MMDetection(ARCHITECTURES[name], torch.load(folder / WEIGHTS)["model"])
    predictor = gnws_d2.Predictor(
        *(ARCHITECTURES.get(name, name), folder / WEIGHTS),
        opts=["MODEL.DEVICE", "cpu"],
        folded=runtime == "folded",
    )
    return export.Detector(predictor.model)


again: Callable[[], object]  # runs the image once more, in the process of a runtime


def begin(
    runtime: str, name: str, folder: Path, threads: int, image: np.ndarray
) -> tuple[float, int, list[np.ndarray]]:
    """In the process of a runtime: load it and run the image. Returns the seconds of the first, the
    peak of the bytes of both, and the outputs."""
    global again
    logging.disable()
    torch.set_num_threads(threads)
    before, start = _peak(), time.perf_counter()
    run = load(runtime, name, folder)
    loaded = time.perf_counter() - start
    again = torch.inference_mode()(functools.partial(run, torch.from_numpy(image)))
    outputs = again()
    return round(loaded, 2), _peak() - before, [output.numpy() for output in outputs]


def repeat() -> None:
    again()


def _peak() -> int:
    """The most bytes that this process has had in memory."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(
    name: str, folder: Path, image: torch.Tensor, rounds: int, runtimes: Sequence[str]
) -> list[Row]:
    """A row for each runtime, of which the first is "eager"."""
    context = multiprocessing.get_context("forkserver")  # from a process that only imported
    pools = {runtime: ProcessPoolExecutor(1, context) for runtime in runtimes}
    arguments = (name, folder, torch.get_num_threads(), image.numpy())
    begun = {r: pool.submit(begin, r, *arguments).result() for r, pool in pools.items()}
    steps = {r: lambda pool=pool: pool.submit(repeat).result() for r, pool in pools.items()}
    times = paired_times(steps, rounds, warm_up=False)
    for pool in pools.values():
        pool.shutdown()
    rows = []
    for runtime, (loaded, memory, arrays) in begun.items():
        eager, outputs = (tuple(map(torch.from_numpy, a)) for a in (begun["eager"][2], arrays))
        compared = export.compare(eager, outputs, export.EXACT)
        row = {"model": name, "runtime": runtime, "load": loaded, "memory": memory}
        row["same"] = [compared.same, max(compared.expected, compared.found)]
        row["seconds"] = [float(f"{t:.4g}") for t in times[runtime]]
        row["ratio"] = [round(r, 4) for r in ratio(times[runtime], times["eager"])]
        rows.append(row)
    return rows


def accuracy(weights: str, folder: Path) -> list[Row]:
    """The AP of a detector on the validation images of Digits, in each runtime."""
    folder.mkdir(parents=True, exist_ok=True)
    digits.make_digits()
    predictor = gnws_d2.Predictor(weights=weights, opts=["MODEL.DEVICE", "cpu"], folded=False)
    seen, inputs = (
        [{**predictor.prepare(read_image(image["file_name"], "BGR")), **image} for image in images]
        for images in (DatasetCatalog.get("digits_train")[:16], DatasetCatalog.get("digits_val"))
    )
    write_files(predictor.model, folder, [image["image"] for image in seen])
    models = {"eager": predictor.model, "folded": fold(predictor.model)}
    rows = []
    for runtime in available():
        if runtime == "mmdetection":
            continue
        model = models.get(runtime) or export.ExportedModel(folder / export.FORMATS[runtime].file)
        evaluator = COCOEvaluator("digits_val", distributed=False, use_fast_impl=False)
        found = inference_on_dataset(model, [[image] for image in inputs], evaluator)
        aps = {kind: round(found[kind]["AP"], 2) for kind in ("bbox", "segm")}
        rows.append({"runtime": runtime, **aps})
    return rows


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=["export", "measure", "accuracy"])
    parser.add_argument("--models", nargs="+", default=list(ARCHITECTURES), metavar="NAME")
    parser.add_argument("--rounds", type=int, help="by default 8 for R-50, 2 for larger models")
    parser.add_argument("--weights", help="a detector trained on Digits, for accuracy")
    args = parser.parse_args()
    if args.stage == "accuracy" and not args.weights:
        parser.error("accuracy needs --weights of a detector trained on Digits.")
    folders = {name: FILES / Path(name).stem for name in args.models}
    if args.stage == "export":
        for name, folder in folders.items():
            export_model(name, folder, SIZE)
        return
    results, here = read(RUNTIMES_FILE), machine("cpu")
    if args.stage == "accuracy":
        rows = accuracy(args.weights, FILES / "digits")
        results["accuracy"] = [{**row, "commit": here["commit"]} for row in rows]
        write(RUNTIMES_FILE, results)
    else:
        if results["machine"] != here["machine"]:
            results["rows"] = []  # the times of two machines do not belong into one table
        for name, folder in folders.items():
            rounds = args.rounds or (8 if "R_50" in name else 2)
            rows = measure(name, folder, photograph(SIZE), rounds, available())
            rows = [{**row, "commit": here["commit"]} for row in rows]
            new = {(name, row["runtime"]) for row in rows}
            kept = [r for r in results["rows"] if (r["model"], r["runtime"]) not in new]
            results |= {**here, "size": SIZE, "rows": [*kept, *rows]}
            results["versions"] |= {package: version(package) for package in PACKAGES}
            write(RUNTIMES_FILE, results)
    update_documents()


if __name__ == "__main__":
    main()
