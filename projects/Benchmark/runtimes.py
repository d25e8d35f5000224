#!/usr/bin/env python3
"""The time, memory and loading time of a detector on the CPU in every runtime: docs/export.md.

    runtimes.py export            # writes the files of all models, those that exist excepted: slow
    runtimes.py measure           # loads and times them, then makes the tables
    runtimes.py accuracy --weights output/digits/model_final.pth   # AP of a trained model
    runtimes.py tables            # makes the tables again
    runtimes.py measure --runtimes mmdetection     # the eager model and that, where it is installed

Weights are random: time does not depend on them, apart from how many detections there are, which
the config limits. The image is a photograph of scikit-learn's. Each runtime has a process of its
own, which loads the file, reports its peak of resident memory above that of this package, and then
waits.
The processes take turns on one image, in a random order that the next round reverses. Results are
in docs/benchmarks/runtimes/cpu.json.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import mmdetection
import numpy as np
import torch
from case import ARCHITECTURES, Case
from detectron2.data import DatasetCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.modeling import build_model
from measure import paired_times, ratio
from results import machine
from tabulate import tabulate
from torch import nn
from torch.nn import functional
from variants import initial_state

import gnws_d2
from gnws_d2.data import digits, read_image
from gnws_d2.export import (
    EXACT,
    FORMATS,
    Detector,
    ExportedModel,
    Exporter,
    Tolerance,
    compare,
    load_exported,
)
from gnws_d2.export.interface import Outputs
from gnws_d2.export.runtime import cpu_has_bfloat16
from gnws_d2.files import atomic_write
from gnws_d2.layers import fold
from gnws_d2.marked_text import replace_marked

SIZE = (800, 1056)
RUNTIMES = ["eager", "mmdetection", "folded"]
RUNTIMES += [name for name in FORMATS if name != "torchscript-script"]
ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs/benchmarks/runtimes/cpu.json"  # report.py reads the folder above
DOCUMENT = ROOT / "docs/export.md"
WEIGHTS = "model.pth"
PACKAGES = ["onnxruntime", "openvino"]
Run = Callable[[torch.Tensor], Outputs]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stage", choices=["export", "measure", "accuracy", "tables"])
    parser.add_argument("--files", type=Path, default=Path("output/runtimes"), metavar="FOLDER")
    parser.add_argument("--models", nargs="+", default=list(ARCHITECTURES), metavar="NAME")
    parser.add_argument(
        "--runtimes", nargs="+", choices=RUNTIMES, metavar="NAME", help="by default all available"
    )
    parser.add_argument("--rounds", type=int, help="by default 8 for R-50, 2 for larger models")
    parser.add_argument("--size", type=int, nargs=2, default=SIZE, metavar=("H", "W"))
    parser.add_argument("--weights", help="a detector trained on Digits, for accuracy")
    parser.add_argument("--output", type=Path, default=RESULTS, metavar="RESULTS.json")
    return parser.parse_args()


def available(model: str = "") -> list[str]:
    """Those of this machine: without bfloat16, its file is computed in float32. MMDetection has the
    models of the zoo."""
    missing = set() if cpu_has_bfloat16() else {"openvino-bfloat16"}
    if model not in ARCHITECTURES or not mmdetection.is_installed:
        missing.add("mmdetection")
    return [name for name in RUNTIMES if name not in missing]


def photograph(size: tuple[int, int]) -> torch.Tensor:
    """(3, H, W), float32, BGR, levels 0 to 255."""
    from sklearn.datasets import load_sample_image

    pixels = load_sample_image("china.jpg")[:, :, ::-1].astype(np.float32).transpose(2, 0, 1)
    return functional.interpolate(torch.from_numpy(pixels)[None], size, mode="bilinear")[0]


def export_model(name: str, folder: Path, size: tuple[int, int]) -> None:
    """Write the weights of a model, and its files that do not exist."""
    folder.mkdir(parents=True, exist_ok=True)
    case = Case("model", name, size, 1, "infer")
    model, weights = build_model(case.config()).eval(), folder / WEIGHTS
    if not weights.exists():
        state = initial_state(case)
        state["roi_heads.box_predictor.cls_score.weight"] *= 10  # or no score is above 0.05
        with atomic_write(weights) as partial:
            torch.save({"model": state}, partial)
    model.load_state_dict(torch.load(weights)["model"])
    write_files(model, folder, [photograph((size[0] // 2, size[1] // 2))])


def write_files(model: nn.Module, folder: Path, seen: list[torch.Tensor]) -> None:
    """Export to the formats whose file does not exist. What differs is reported, not refused."""
    exporter = Exporter(model, seen)
    for runtime in (name for name in RUNTIMES if name in FORMATS):
        file, start = folder / FORMATS[runtime].file, time.time()
        if not file.exists():
            compared = exporter.export(runtime, file, Tolerance(share=0.0))
            print(f"{file}: {time.time() - start:.0f} s, {compared}", flush=True)


def load(runtime: str, name: str, folder: Path) -> Run:
    if runtime in FORMATS:
        return load_exported(folder / FORMATS[runtime].file).run
    if runtime == "mmdetection":
        return mmdetection.MMDetection(ARCHITECTURES[name], torch.load(folder / WEIGHTS)["model"])
    predictor = gnws_d2.Predictor(
        *(ARCHITECTURES.get(name, name), folder / WEIGHTS),
        opts=["MODEL.DEVICE", "cpu"],
        folded=runtime == "folded",
    )
    return Detector(predictor.model)


def work(runtime: str, name: str, folder: Path, threads: int, connection: Connection) -> None:
    """The process of a runtime: says how long loading took, then runs what it receives."""
    logging.disable()
    torch.set_num_threads(threads)
    before, start = resident(), time.perf_counter()
    run = load(runtime, name, folder)
    connection.send(time.perf_counter() - start)
    with torch.inference_mode():
        while (image := connection.recv()) is not None:
            if isinstance(image, torch.Tensor):
                kept = image
                outputs = run(kept)
                peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
                connection.send((peak, [output.numpy() for output in outputs]))
            else:  # the same image again
                run(kept)
                connection.send(None)


def resident() -> int:
    """The bytes of this process in memory."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def process(runtime: str, name: str, folder: Path) -> Iterator[Connection]:
    context = multiprocessing.get_context("forkserver")  # from a process that only imported
    here, there = context.Pipe()
    args = (runtime, name, folder, torch.get_num_threads(), there)
    worker = context.Process(target=work, args=args, daemon=True)
    worker.start()
    there.close()
    try:
        yield here
    finally:
        here.send(None)
        worker.join(30)
        worker.kill()


def measure(
    name: str, folder: Path, image: torch.Tensor, rounds: int, runtimes: Sequence[str]
) -> list[dict[str, Any]]:
    """A row for each runtime, of which the first is "eager"."""
    rows, steps = [], {}
    with ExitStack() as stack:
        for runtime in runtimes:
            connection = stack.enter_context(process(runtime, name, folder))
            loaded = connection.recv()
            connection.send(image)
            peak, arrays = connection.recv()
            outputs = tuple(map(torch.from_numpy, arrays))
            rows.append({"model": name, "runtime": runtime, "load": round(loaded, 2)})
            rows[-1] |= {"memory": peak, "outputs": outputs}

            def step(connection: Connection = connection) -> None:
                connection.send("again")
                connection.recv()

            steps[runtime] = step
        times = paired_times(steps, rounds, warm_up=False)
    reference = rows[0]["outputs"]
    for row in rows:
        result = compare(reference, row.pop("outputs"), EXACT)
        row["same"] = [result.same, max(result.expected, result.found)]
        row["seconds"] = [float(f"{t:.4g}") for t in times[row["runtime"]]]
        row["ratio"] = [round(r, 4) for r in ratio(times[row["runtime"]], times["eager"])]
    return rows


def accuracy(weights: str, folder: Path) -> list[dict[str, Any]]:
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
        model = models.get(runtime) or ExportedModel(folder / FORMATS[runtime].file)
        evaluator = COCOEvaluator("digits_val", distributed=False, use_fast_impl=False)
        evaluator.reset()
        with torch.inference_mode():
            for image in inputs:
                evaluator.process([image], model([image]))
        found = evaluator.evaluate()
        aps = {kind: round(found[kind]["AP"], 2) for kind in ("bbox", "segm")}
        rows.append({"runtime": runtime, **aps})
    return rows


def read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def write(file: Path, results: dict[str, Any]) -> None:
    rows = {"rows": [], "accuracy": []} | results
    text = json.dumps(
        {key: value for key, value in rows.items() if key not in ("rows", "accuracy")}
    )
    for key in ("rows", "accuracy"):
        lines = ",\n".join(json.dumps(row) for row in rows[key])
        text = f'{text[:-1]},\n"{key}": [\n{lines}\n]}}'
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(file) as partial:
        partial.write_text(text + "\n", encoding="utf-8")


def with_rows(
    results: dict[str, Any], rows: list[dict[str, Any]], facts: dict[str, Any]
) -> dict[str, Any]:
    """``results`` with ``rows`` in place of those of the same models and runtimes, and what is
    known of the machine and the code."""
    replaced = {(row["model"], row["runtime"]) for row in rows}
    old = results.get("rows", [])
    kept = [row for row in old if (row["model"], row["runtime"]) not in replaced]
    rows = [{**row, "commit": facts["commit"]} for row in rows]
    return {**results, **facts, "rows": [*kept, *rows]}


def tables(results: dict[str, Any]) -> str:
    """Time, memory, loading time and agreement: a table of models and runtimes each."""
    by_model: dict[str, dict[str, dict[str, Any]]] = {}
    for row in sorted(results.get("rows", []), key=_place_in_zoo):
        by_model.setdefault(row["model"], {})[row["runtime"]] = row

    def seconds(row: dict[str, Any]) -> str:
        return f"{np.median(row['seconds']):.2f} s" if row["runtime"] == "eager" else times(row)

    def times(row: dict[str, Any]) -> str:
        return f"{row['ratio'][0]:.2f}"

    cells: dict[str, Callable[[dict[str, Any]], str]] = {
        "time of an image; of eager": seconds,
        "peak memory, GiB": lambda row: f"{row['memory'] / 2**30:.2f}",
        "time to load, s": lambda row: f"{row['load']:.1f}",
        "same detections within 0.001": lambda row: "{} of {}".format(*row["same"]),
    }
    written = []
    for what, cell in cells.items() if by_model else ():
        lines = [
            [name, *(cell(rows[r]) if r in rows else "-" for r in RUNTIMES)]
            for name, rows in by_model.items()
        ]
        written.append(_table(lines, [what, *RUNTIMES]))
    trained = results.get("accuracy", [])
    if trained:
        header = ["AP on Digits, trained", *(row["runtime"] for row in trained)]
        lines = [
            [name, *(f"{row[kind]:.2f}" for row in trained)]
            for name, kind in (("box", "bbox"), ("mask", "segm"))
        ]
        written.append(_table(lines, header))
    missing = [name for name in ARCHITECTURES if name not in by_model]
    missing += [] if trained else ["AP on Digits"]
    if missing:
        written.append(f"Not measured yet: {', '.join(missing)}.")
    if by_model:
        versions = [f"{name} {results['versions'][name]}" for name in ("torch", *PACKAGES)]
        where = f"{results['machine']}, {results['threads']} threads, {', '.join(versions)}"
        commits = dict.fromkeys(row["commit"] for row in (*results["rows"], *trained))
        written.append(f"{where}; until {results['date']}, at {', '.join(commits)}.")
    return "\n\n".join(written)


def _place_in_zoo(row: dict[str, Any]) -> int:
    """Other configs come last."""
    names = list(ARCHITECTURES)
    return names.index(row["model"]) if row["model"] in names else len(names)


def _table(lines: list[list[str]], header: list[str]) -> str:
    return tabulate(lines, header, tablefmt="github", disable_numparse=True)


def main() -> None:
    args = parse_args()
    size = (args.size[0], args.size[1])
    results = read(args.output)
    here = machine("cpu")
    if args.stage == "measure" and results.get("machine", here["machine"]) != here["machine"]:
        sys.exit(
            f"{args.output} has times of {results['machine']}, this is {here['machine']}. Choose "
            "another --output, or remove it."
        )
    for name in args.models if args.stage in ("export", "measure") else ():
        folder = args.files / Path(name).stem
        if args.stage == "export":
            export_model(name, folder, size)
            continue
        wanted = args.runtimes or available(name)
        if missing := set(wanted) - set(available(name)):
            sys.exit(f"Not available here for {name}: {', '.join(sorted(missing))}.")
        rounds = args.rounds or (8 if "R_50" in name else 2)
        runtimes = list(dict.fromkeys(["eager", *wanted]))
        measured = measure(name, folder, photograph(size), rounds, runtimes)
        rows = [row for row in measured if row["runtime"] in wanted]
        results = with_rows(results, rows, {**here, "size": size})
        results["versions"] |= {name: version(name) for name in PACKAGES}
        write(args.output, results)
        print(_table([[r["model"], r["runtime"], *map(str, r["ratio"])] for r in rows], []))
    if args.stage == "accuracy":
        if not args.weights:
            sys.exit("error: accuracy needs --weights of a detector trained on Digits.")
        rows = accuracy(args.weights, args.files / "digits")
        results["accuracy"] = [{**row, "commit": here["commit"]} for row in rows]
        write(args.output, results)
    if args.stage != "export" and args.output == RESULTS:
        text = DOCUMENT.read_text(encoding="utf-8")
        with atomic_write(DOCUMENT) as partial:
            partial.write_text(replace_marked(text, "runtimes", tables(results)), encoding="utf-8")


if __name__ == "__main__":
    main()
