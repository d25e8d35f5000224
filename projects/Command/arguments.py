"""What can be typed after ``gnws`` and after the name of each program in projects/.

A program takes its arguments from :func:`parse`, so that ``gnws predict`` and ``demo.py`` have the
same ones. This module imports nothing but the standard library.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

Parser = argparse.ArgumentParser

SOURCE = (
    "ANNOTATIONS.json[=IMAGE_FOLDER][#train|#val], a folder with one annotation file, or the name "
    "of a registered dataset"
)
CONFIG = "a path, or a packaged config's name"
FORMATS = (
    *("torchscript-trace", "torchscript-script", "torch-export", "onnx"),
    *("openvino", "openvino-bfloat16", "openvino-int8"),
)


@dataclass(frozen=True)
class Command:
    """A command of ``gnws``: its module, whose ``main`` takes the parsed arguments."""

    module: str
    help: str
    description: str
    add_arguments: Callable[[Parser], None]


def parse(name: str, words: Sequence[str] | None = None) -> argparse.Namespace:
    """The arguments of a program, by default those it was started with."""
    command = COMMANDS[name]
    formatter = argparse.RawDescriptionHelpFormatter
    parser = Parser(description=command.description, formatter_class=formatter)
    _add(parser, command)
    return _with_debug(parser.parse_args(words))


def parse_gnws(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The arguments of ``gnws``: ``command`` is the name of one, and the others are its own."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = Parser(
        "gnws",
        description="Detectors with GroupNorm and Weight Standardization for Detectron2.",
        epilog="Start with\n  gnws train --data FOLDER\n"
        "where FOLDER has images and their annotations as COCO JSON.",
        formatter_class=formatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        one = commands.add_parser(
            name, help=command.help, description=command.description, formatter_class=formatter
        )
        _add(one, command)
    return _with_debug(parser.parse_args(words))


def _add(parser: Parser, command: Command) -> None:
    parser.add_argument(
        "--debug",
        action="store_true",
        help="show the traceback of an error; $GNWS_D2_DEBUG=1 does the same",
    )
    command.add_arguments(parser)


def _with_debug(args: argparse.Namespace) -> argparse.Namespace:
    if args.debug:
        os.environ["GNWS_D2_DEBUG"] = "1"  # also for the processes that this one starts
    return args


def add_data_arguments(parser: Parser) -> None:
    """Add ``--data``, ``--train``, ``--val``, ``--test`` and ``--skip-bad-annotations``."""
    group = parser.add_argument_group(
        "data",
        "COCO annotation files and their images. Without --val, a fixed fifth of the training "
        "images validates.",
    )
    group.add_argument(
        "--data",
        type=Path,
        metavar="FOLDER",
        help="an export of Roboflow, CVAT or COCO: train/_annotations.coco.json and valid/, "
        "annotations/instances_*.json and images/, or one *.json and its images",
    )
    for split, use in (
        ("train", "train on"),
        ("val", "evaluate on while training"),
        ("test", "evaluate on once, after training"),
    ):
        group.add_argument(
            f"--{split}",
            action="append",
            default=[],
            metavar="SOURCE",
            help=f"{use} this: {SOURCE}; repeatable",
        )
    group.add_argument(
        "--skip-bad-annotations",
        action="store_true",
        help="leave out images and annotations that would train wrong, instead of refusing the "
        "data; OUTPUT_DIR/skipped_annotations.json lists them",
    )


def _add_overrides(parser: Parser, flag: str = "opts") -> None:
    more = {"default": []} if flag.startswith("-") else {}
    text = "KEY VALUE pairs for the config, or key=value for a LazyConfig"
    parser.add_argument(flag, nargs=argparse.REMAINDER, help=text, **more)


def _add_model(parser: Parser) -> None:
    parser.add_argument(
        "--config-file", metavar="FILE", help=f"{CONFIG}; by default that of the weights"
    )
    parser.add_argument("--weights", default="", metavar="FILE", help="a trained detector's file")


def _add_train(parser: Parser) -> None:
    parser.add_argument("--config-file", default="", metavar="FILE", help=CONFIG)
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    parser.add_argument("--eval-only", action="store_true", help="evaluate, and do not train")
    parser.add_argument("--weights", metavar="FILE", help="short for MODEL.WEIGHTS FILE")
    parser.add_argument("--epochs", metavar="N", help="short for SOLVER.EPOCHS N")
    add_data_arguments(parser)
    group = parser.add_argument_group("processes", "as those of Detectron2's tools/train_net.py")
    group.add_argument("--num-gpus", type=int, default=1, help="or CPU processes, per machine")
    group.add_argument("--num-machines", type=int, default=1)
    group.add_argument("--machine-rank", type=int, default=0, help="of this machine, from 0")
    group.add_argument(
        "--dist-url",
        default="auto",
        help="tcp://ADDRESS:PORT of machine 0; auto finds a port for the processes of one machine",
    )
    _add_overrides(parser)


def _add_eval(parser: Parser) -> None:
    _add_train(parser)
    parser.set_defaults(eval_only=True)


def _add_predict(parser: Parser) -> None:
    _add_model(parser)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--input", nargs="+", metavar="PATH", help="files, folders, globs")
    source.add_argument("--video-input", metavar="FILE", help="a video")
    source.add_argument(
        "--webcam", nargs="?", const="0", metavar="N", help="a camera's number or address"
    )
    parser.add_argument("--output", type=Path, default=Path("output/demo"), metavar="FOLDER")
    parser.add_argument(
        "--confidence-threshold", type=float, default=0.5, help="lowest score that is shown"
    )
    parser.add_argument(
        "--image-ids", metavar="ANNOTATIONS.json", help="take the ids of images from this file"
    )
    _add_overrides(parser, "--opts")


def _add_export(parser: Parser) -> None:
    _add_model(parser)
    parser.add_argument("--format", nargs="+", choices=FORMATS, default=list(FORMATS[:4]))
    parser.add_argument(
        "--input", required=True, nargs="+", metavar="IMAGE", help="real images, to compare on"
    )
    parser.add_argument("--output", type=Path, default=Path("output/exported"), metavar="FOLDER")
    parser.add_argument(
        "--tolerance",
        type=float,
        help="of scores and mask probabilities, and of boxes in parts of their longer side; by "
        "default 0.001, and 0.05 in bfloat16 and int8",
    )
    _add_overrides(parser, "--opts")


def _add_check_data(parser: Parser) -> None:
    parser.add_argument("sources", nargs="*", metavar="SOURCE", help="files to check")
    add_data_arguments(parser)
    parser.add_argument(
        "--config-file",
        default="",
        metavar="FILE",
        help="whose input size and anchors the table shows; Detectron2's defaults without",
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="a JSON of all that was found")
    _add_overrides(parser, "--opts")


def _add_browse(parser: Parser) -> None:
    parser.add_argument("--config-file", required=True, metavar="FILE", help=CONFIG)
    parser.add_argument("--num", type=int, default=20, help="how many images")
    parser.add_argument("--output", type=Path, default=Path("output/browse"), metavar="FOLDER")
    parser.add_argument("--split", choices=["train", "test"], default="train")
    add_data_arguments(parser)
    _add_overrides(parser)


def _add_report(parser: Parser) -> None:
    parser.add_argument("--output-dir", required=True, type=Path, metavar="FOLDER")
    parser.add_argument(
        "--weights", default="", metavar="FILE", help="what was evaluated; the last checkpoint"
    )
    parser.add_argument(
        "--images", type=int, default=3, help="how many of the worst, the best and random images"
    )
    _add_overrides(parser)


def _add_app(parser: Parser) -> None:
    parser.add_argument("models", nargs="+", metavar="[NAME=]CHECKPOINT")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 serves other machines, too")
    parser.add_argument("--port", type=int, default=7860)
    parser.add_argument("--device", help="cpu, cuda, ...; by default as in the config")


def _add_zoo(parser: Parser) -> None:
    commands = parser.add_subparsers(dest="action", required=True, metavar="list|prefetch")
    commands.add_parser("list", help="show all published checkpoints and all configs")
    prefetch = commands.add_parser("prefetch", help="download, verify, convert and cache")
    prefetch.add_argument("names", nargs="+", help="names or configs, or all")


_TRAIN = """\
Train or evaluate a detector, on GPUs or on the CPU.

    gnws train --data FOLDER
    gnws train --config-file COCO-Detection/faster_rcnn_R_50_FPN_gn_ws_1x.yaml --num-gpus 8
    gnws train --config-file Digits/fcos_R_18_FPN_gn_ws.py train.max_iter=100
    gnws eval --weights output/model_best.pth --test more.json
    torchrun --nproc_per_node 8 projects/Detection/train_net.py --config-file ...

The first trains on your own images, annotated as COCO JSON: docs/own-data.md. A config is a path or
the name of a packaged one; KEY VALUE pairs at the end override it. Its schedule is scaled from the
number of processes that it was published for to the actual number. A config in Python is a
LazyConfig: a program, which runs; key=value overrides it, and +key=value adds a key."""
_PREDICT = """\
Detect on images or a video and write the results.

    gnws predict --weights output/digits/model_final.pth --input photos/ more/*.jpg --output found
    gnws predict --weights model_final.pth --video-input clip.mp4 --output found
    gnws predict --weights exported/model.onnx --input photos/       # an exported file, also .xml

Inputs are files, folders and globs. The output folder gets each image with what was found drawn
(photo.jpg.png for photo.jpg, _frame00000.png for the frames of an animated GIF), and
detections.json in COCO's form: images, categories with the ids of the dataset that the model was
trained on, and annotations with a score. --image-ids gives the images the ids that they have in an
annotation file, so that detections.json scores against it. A semantic model writes the class of
each pixel to labels/, a panoptic one its segments to panoptic/ and panoptic.json.

An image that cannot be read is reported and skipped; the exit code is then 1. Ctrl-C and a full
disk end the run; what was detected until then is written."""
_EXPORT = """\
Export a detector to files that run without Detectron2 and without this package.

    gnws export --weights output/digits/model_final.pth --input image.png --output exported
    gnws export --weights model_final.pth --input *.jpg --format openvino openvino-int8
    gnws predict --weights exported/model.onnx --input photos/     # runs a file

The first writes model_trace.ts and model_script.ts (TorchScript), model.pt2 (torch.export) and
model.onnx; the second writes model.xml and model_int8.xml (OpenVINO), with the weights beside them
in .bin files. Each file takes images of any size and is compared with the model in Detectron2, on
every --input at two sizes: a file that does not detect the same is not kept. docs/export.md has the
tolerances and the interface of a file. If a format does not support the model, the exit code is
1."""
_CHECK = """\
Check COCO datasets before training: decode every image, look at every annotation.

    gnws check-data --data export/
    gnws check-data --train a.json=images/ --val b.json=images/ --output bad.json
    gnws check-data my.json

What would train or evaluate wrong is listed, and the exit code is then 1. The rest is summarized: a
table of objects by class and size, as the config's input size and anchors see them, and the images
that two datasets share, by content."""
_BROWSE = """\
Draw images with their annotations as training sees them, after augmentation.

    gnws browse --config-file Digits/mask_rcnn_R_18_FPN_gn_ws.yaml --num 20 --output output/browse
    gnws browse --config-file ... --data my_images/ --split test

The images are the same each time, and so is what augmentation makes of them; another SEED gives
others. They go to the output folder, and all of them on one sheet to its sheet.jpg."""
_REPORT = """\
Write the report of a finished training or evaluation again.

    gnws report --output-dir output/digits
    gnws report --output-dir output/digits --weights output/digits/model_best.pth

It reads config.yaml, metrics.json and inference/coco_instances_results.json of the folder and
writes report/report.html, one page that needs no other file, with its plots and images beside it.
"""
_APP = """\
Serve a web page: drop an image, see what is detected, download boxes and masks.

    gnws app output/mine/model_best.pth
    gnws app small=output/small/model_best.pth large=output/large/model_best.pth --port 7861

Each model is a checkpoint that carries its config, as training writes them, an exported file, or a
published detector such as gnws://mask-rcnn_r50_fpn_gn_ws-all_2x_coco; NAME= is how the page calls
it. Models are loaded when they are first chosen. The page is served to this machine alone, unless
--host says otherwise. It needs Gradio: pip install "gradio>=6"."""
_ZOO = """\
List published checkpoints and configs, or cache checkpoints for a machine without a network.

    gnws zoo list
    gnws zoo prefetch imagenet/resnet50_gn_ws
    gnws zoo prefetch COCO-Detection/faster_rcnn_R_50_FPN_gn_ws_1x.yaml
    gnws zoo prefetch all"""

_PROJECTS = "gnws_d2.projects"
COMMANDS = {
    "train": Command(
        f"{_PROJECTS}.detection.train_net",
        "train a detector, evaluate it, report",
        _TRAIN,
        _add_train,
    ),
    "eval": Command(
        f"{_PROJECTS}.detection.train_net", "evaluate a checkpoint, report", _TRAIN, _add_eval
    ),
    "predict": Command(
        f"{_PROJECTS}.detection.demo", "detect in images and videos", _PREDICT, _add_predict
    ),
    "export": Command(
        f"{_PROJECTS}.export.export_model",
        "write ONNX, OpenVINO, TorchScript, torch.export",
        _EXPORT,
        _add_export,
    ),
    "check-data": Command(
        f"{_PROJECTS}.own_data.check_data",
        "find what is wrong in a dataset",
        _CHECK,
        _add_check_data,
    ),
    "browse": Command(
        f"{_PROJECTS}.own_data.browse", "draw a dataset as training sees it", _BROWSE, _add_browse
    ),
    "report": Command(
        f"{_PROJECTS}.report.report",
        "write the report of a finished run again",
        _REPORT,
        _add_report,
    ),
    "app": Command(f"{_PROJECTS}.detection.app", "try a detector in the browser", _APP, _add_app),
    "zoo": Command(
        "gnws_d2.model_zoo.__main__", "list and fetch configs and checkpoints", _ZOO, _add_zoo
    ),
}
