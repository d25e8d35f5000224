"""What can be typed after ``gnws`` and after the name of each program in projects/.

A program takes its arguments from :func:`parse`, so that ``gnws predict`` and ``demo.py`` take the
same ones. This module imports only the standard library.
"""

from __future__ import annotations

import argparse
import difflib
import inspect
import math
import os
import re
import sys
from argparse import REMAINDER
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from gnws.upstream import silence_upstream

SOURCE = (
    "ANNOTATIONS[=IMAGE_FOLDER][#train|#val], a file or folder of annotations, or the name of a "
    "registered dataset"
)
CONFIG = "a path, or a packaged config's name"
FORMATS = (
    *("torchscript-trace", "torchscript-script", "torch-export", "onnx"),
    *("openvino", "openvino-bfloat16", "openvino-int8"),
)


def positive_number(text: str) -> str:
    """``text``, unchanged; argparse names this function where it is wrong."""
    if not 0 < float(text) < math.inf:
        raise ValueError
    return text


def pixels_from_32_on(text: str) -> int:
    """A whole number of pixels."""
    if int(text) < 32:
        raise ValueError
    return int(text)


MANY = {"nargs": "+", "action": "extend"}  # also each behind a flag of its own
# A flag of training -> the key that it is short for, what argparse is told, and a comment.
SHORT: dict[str, tuple[str, dict[str, Any], str]] = {
    "--weights": ("MODEL.WEIGHTS", {"metavar": "FILE"}, ""),
    "--output": ("OUTPUT_DIR", {"metavar": "FOLDER"}, ""),
    "--epochs": ("SOLVER.EPOCHS", {"metavar": "N", "type": positive_number}, ""),
    "--minutes": ("SOLVER.MINUTES", {"metavar": "N", "type": positive_number}, ", of own data"),
    "--batch-size": ("SOLVER.IMS_PER_BATCH", {"metavar": "N", "type": positive_number}, ""),
    "--lr": ("SOLVER.BASE_LR", {"metavar": "N", "type": positive_number}, ""),
    "--device": ("MODEL.DEVICE", {"metavar": "NAME"}, ": cpu, cuda, cuda:1"),
    "--augmentation": ("INPUT.AUGMENTATION", {"metavar": "light|medium|strong"}, ""),
    "--classes": ("DATASETS.CLASSES", {"metavar": "NAME", **MANY}, ", in this order"),
    "--seed": ("SEED", {"metavar": "N", "type": int}, ""),
}
# The key of a LazyConfig, for those that have one.
LAZY = {
    **{"--weights": "train.init_checkpoint", "--output": "train.output_dir"},
    **{"--batch-size": "dataloader.train.total_batch_size", "--lr": "optimizer.lr"},
    **{"--device": "train.device", "--seed": "+train.seed"},
}
IN_EVALUATION = ("--weights", "--output", "--device")

# Flags of other programs -> what sets the same here: keys, or where a command has it, a flag.
KEYS = {
    **{"--workers": "DATALOADER.NUM_WORKERS N", "--max-iter": "SOLVER.MAX_ITER N"},
    **{"--imgsz": 'INPUT.MIN_SIZE_TRAIN "(N,)" INPUT.MIN_SIZE_TEST N'},
    **{"--device": "MODEL.DEVICE NAME", "--seed": "SEED N"},
}
FLAGS = {
    **dict.fromkeys(("--cfg", "--config", "--yaml"), "--config-file"),
    **dict.fromkeys(("--model", "--checkpoint"), "--weights"),
    **{"--output": "--output-dir", "--output-dir": "--output", "--out": "--output"},
    **{"--project": "--output", "--lr0": "--lr", "--learning-rate": "--lr"},
    **{"--source": "--input", "--dataset": "--data", "--gpus": "--num-gpus"},
    **{"--batch": "--batch-size", "--resume-from": "--resume"},
    **dict.fromkeys(("--conf", "--threshold"), "--confidence-threshold"),
}


class Parser(argparse.ArgumentParser):
    """Ends with one line where a word is wrong."""

    def error(self, message: str) -> NoReturn:
        end = "" if message[-1] in ".?" else "."
        self.exit(2, f"{self.prog}: error: {message}{end} See {self.prog} --help.\n")

    def refuse(self, flag: str) -> NoReturn:
        """Name what sets what an unknown ``flag`` was meant to."""
        own = [word for word in self._option_string_actions if word.startswith("--")]
        keys = KEYS if any(action.dest == "opts" for action in self._actions) else {}
        opts = "--opts " * ("--opts" in own)
        fixes = {word: f"Write {opts}{key} after all flags" for word, key in keys.items()}
        same = [*FLAGS.items(), *zip(own, own, strict=True)]
        fixes |= {word: f"Did you mean {flag}?" for word, flag in same if flag in own}
        near = difflib.get_close_matches(flag.partition("=")[0], fixes, n=1)
        self.error(". ".join([f"there is no {flag}", *map(fixes.__getitem__, near)]))


def parse(name: str = "", words: Sequence[str] | None = None) -> argparse.Namespace:
    """The arguments of the command ``name``; without a name, of the one that the first word names.

    Args:
        words: by default those that the program was started with.
    """
    silence_upstream()
    words = sys.argv[1:] if words is None else words
    formatter = argparse.RawDescriptionHelpFormatter
    parser = Parser(
        "gnws",
        description="Detectors with GroupNorm and Weight Standardization for Detectron2.",
        epilog="Start with\n  gnws train --data FOLDER\n"
        "where FOLDER has images and their annotations as COCO JSON.",
        formatter_class=formatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    parsers: dict[str, Parser] = {}
    for known, (_, add_arguments) in COMMANDS.items():
        text = inspect.getdoc(add_arguments) or ""
        how = {"help": text.partition("\n")[0], "description": text, "formatter_class": formatter}
        if known == name:  # of the program that was started
            how["prog"] = Path(sys.argv[0]).name
        command = parsers[known] = commands.add_parser(known, **how)
        command.add_argument(
            "--debug",
            action="store_true",
            help="show the traceback of an error; $GNWS_D2_DEBUG=1 does the same",
        )
        add_arguments(command)
    args, unknown = parser.parse_known_args([name, *words] if name else words or ["--help"])
    command = parsers[args.command]
    if unknown:
        command.refuse(unknown[0])
    opts = getattr(args, "opts", [])
    if late := [word for word in opts if word.startswith("--")]:
        command.error(f"{late[0]} comes after overrides of the config. Put it before {opts[0]}")
    if opts and not str(getattr(args, "config_file", "")).endswith(".py"):
        args.opts = _in_pairs(opts, command)
    if args.command in ("train", "eval"):
        _lengthen(args, command)
    if hasattr(args, "weights"):
        _find_weights(args, command)
    if args.debug:
        os.environ["GNWS_D2_DEBUG"] = "1"  # also for the processes that this one starts
    return args


def _in_pairs(opts: Sequence[str], command: Parser) -> list[str]:
    """Overrides as KEY VALUE pairs, KEY=VALUE split."""
    pairs: list[str] = []
    for word in opts:
        is_key = len(pairs) % 2 == 0
        pairs += word.split("=", 1) if is_key and re.match(r"[\w.]+=", word) else [word]
    if len(pairs) % 2:
        lacks = "flag before it, such as --data" if os.path.exists(pairs[-1]) else "value after it"
        command.error(f"{pairs[-1]} has no {lacks}")
    return pairs


def _lengthen(args: argparse.Namespace, command: Parser) -> None:
    """Put what the flags of training are short for before the overrides of the config."""
    is_lazy, words = args.config_file.endswith(".py"), args.opts
    if is_lazy:
        words = [part for word in words for part in word.lstrip("+").partition("=")[::2]]
    typed = dict(zip(words[::2], words[1::2], strict=True))
    if name := getattr(args, "name", None):
        if args.num_machines > 1 or "TORCHELASTIC_RUN_ID" in os.environ:
            command.error("--name counts the folders of one machine. Use --output FOLDER")
        args.output = run_folder(name, args.resume)
    if is_lazy and getattr(args, "logger", None):
        command.error("--logger is for YAML configs")
    for flag, (key, *_) in SHORT.items():
        value = getattr(args, flag[2:].replace("-", "_"), None)
        if value is None:
            continue
        if is_lazy and flag not in LAZY:
            command.error(f"{flag} is for YAML configs. Set a key, such as train.max_iter=N")
        key, value = LAZY[flag] if is_lazy else key, str(value)
        other = typed.get(known := key.lstrip("+"))
        if other is None:
            args.opts = [*([f"{key}={value}"] if is_lazy else [key, value]), *args.opts]
        elif other != value:
            of = f"--name {name}" if name and flag == "--output" else f"{flag} {value}"
            command.error(f"{of} and {known} {other} contradict. Remove one of them")


def run_folder(name: str, resume: bool) -> str:
    """output/NAME; output/NAME-2 and so on, above the highest that exists; to ``resume``, that."""
    first = Path("output", name)
    numbered = re.compile(re.escape(first.name) + r"(?:-([1-9]\d*))?")
    found = (numbered.fullmatch(path.name) for path in first.parent.glob("*"))
    last = max((int(match[1] or 1) for match in found if match), default=0)
    number = max(last, 1) if resume else last + 1
    return str(first if number == 1 else f"{first}-{number}")


def _find_weights(args: argparse.Namespace, command: Parser) -> None:
    """Let MODEL.WEIGHTS among the overrides stand for --weights, and ask for one where a model is
    needed and nothing names it."""
    pairs = dict(zip(args.opts[::2], args.opts[1::2], strict=False))
    args.weights = args.weights or pairs.get("MODEL.WEIGHTS", args.weights)
    needs = args.command in ("predict", "export") or getattr(args, "eval_only", False)
    if needs and not args.weights and not args.config_file:
        command.error("no model is named. Add --weights FILE, of a trained detector")


def add_data_arguments(parser: Parser) -> None:
    """Add ``--data``, ``--train``, ``--val``, ``--test`` and ``--skip-bad-annotations``."""
    group = parser.add_argument_group(
        "data",
        "Annotations of COCO, YOLO, Pascal VOC, CVAT, LabelMe, VIA, Label Studio, Open Images, CSV "
        "or as masks, and their images. Without --val, a fixed fifth of the training images "
        "validates.",
    )
    group.add_argument(
        "--data",
        type=Path,
        metavar="FOLDER",
        help="what an annotation tool exports, with its images: docs/own-data.md",
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
    parser.add_argument(flag, nargs=REMAINDER, help=text, **more)


def _add_model(parser: Parser) -> None:
    parser.add_argument(
        "--config-file", metavar="FILE", help=f"{CONFIG}; by default that of the weights"
    )
    parser.add_argument("--weights", default="", metavar="FILE", help="a trained detector's file")


def _add_tiles(parser: Parser, use: str) -> None:
    parser.add_argument("--tile", type=pixels_from_32_on, default=1 << 30, metavar="N", help=use)
    parts, text = [n / 20 for n in range(19)], "what tiles share of their side; 0.2 by default"
    how = {"type": float, "choices": parts, "default": 0.2, "metavar": "PART"}
    parser.add_argument("--overlap", **how, help=text)


def _add_output(parser: Parser, default: str) -> None:
    parser.add_argument("--output", type=Path, default=Path(default), metavar="FOLDER")


def _train(parser: Parser, flags: Iterable[str] = SHORT) -> None:
    """Train a detector, on GPUs or on the CPU; evaluate it; write a report.

        gnws train --data FOLDER
        gnws train --config-file COCO-Detection/faster_rcnn_R_50_FPN_gn_ws_1x.yaml --num-gpus 8
        gnws train --config-file Digits/fcos_R_18_FPN_gn_ws.py train.max_iter=100
        torchrun --nproc_per_node 8 projects/Detection/train_net.py --config-file ...

    The first trains on your own images, as any annotation tool exports them: docs/own-data.md. A
    config is a path or the name of a packaged one; KEY VALUE pairs at the end override it. Its
    schedule is scaled from the number of processes that it was published for to the actual number.
    A config in Python is a LazyConfig: a program, which runs; key=value overrides it, and
    +key=value adds a key.
    """
    parser.add_argument("--config-file", default="", metavar="FILE", help=CONFIG)
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    parser.add_argument("--eval-only", action="store_true", help="evaluate, and do not train")
    folder = parser.add_mutually_exclusive_group()
    for flag in flags:
        key, how, comment = SHORT[flag]
        group = folder if flag == "--output" else parser
        group.add_argument(flag, help=f"short for {key} {how['metavar']}{comment}", **how)
    if flags is SHORT:
        text = "a first look at the data and the model: --minutes 5"
        parser.add_argument("--quick", action="store_const", const="5", dest="minutes", help=text)
        text = "output/NAME, or the first free of output/NAME-2, ...; with --resume the latest"
        folder.add_argument("--name", metavar="NAME", help=text)
        text = "also write losses and AP to these: pip install wandb, mlflow-skinny"
        choices = ["wandb", "mlflow"]
        parser.add_argument("--logger", **MANY, default=[], choices=choices, help=text)
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


def _eval(parser: Parser) -> None:
    """Evaluate a checkpoint; write a report.

        gnws eval --weights output/model_best.pth
        gnws eval --weights output/model_best.pth --test more.json

    The config is that of the checkpoint, unless one is named.
    """
    _train(parser, IN_EVALUATION)
    parser.set_defaults(eval_only=True)


def _predict(parser: Parser) -> None:
    """Detect on images or a video and write the results.

        gnws predict --weights output/digits/model_final.pth --input photos/ more/*.jpg
        gnws predict --weights model_final.pth --video-input clip.mp4 --output found
        gnws predict --weights exported/model.onnx --input photos/    # an exported file, also .xml

    Inputs are files, folders and globs. The output folder gets each image with the detections drawn
    (photo.jpg.png for photo.jpg, _frame00000.png for the frames of an animated GIF), and
    detections.json in COCO's form: images, categories with the ids of the dataset that the model
    was trained on, and annotations with a score. --image-ids gives the images the ids that they
    have in an annotation file, so that detections.json scores against it. A semantic model writes
    the class of each pixel to labels/, a panoptic one its segments to panoptic/ and panoptic.json.

    An image that cannot be read is reported and skipped; the exit code is then 1. Ctrl-C and a full
    disk end the run; what was detected until then is written.
    """
    _add_model(parser)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--input", **MANY, metavar="PATH", help="files, folders, globs")
    source.add_argument("--video-input", metavar="FILE", help="a video")
    source.add_argument(
        "--webcam", nargs="?", const="0", metavar="N", help="a camera's number or address"
    )
    _add_output(parser, "output/demo")
    parser.add_argument(
        "--confidence-threshold",
        type=float,
        help="lowest score that is shown; by default what the report of the training suggests, "
        "which the weights carry, else 0.5",
    )
    parser.add_argument(
        "--image-ids", metavar="ANNOTATIONS.json", help="take the ids of images from this file"
    )
    text = "number the objects of a video: track_id in detections.json"
    parser.add_argument("--track", action="store_true", help=text)
    _add_tiles(parser, "detect on squares of N pixels, for large images with small objects")
    _add_overrides(parser, "--opts")


def _export(parser: Parser) -> None:
    """Export a detector to ONNX, OpenVINO, TorchScript or torch.export.

        gnws export --weights output/digits/model_final.pth --input image.png --output exported
        gnws export --weights model_final.pth --input *.jpg --format openvino openvino-int8
        gnws predict --weights exported/model.onnx --input photos/     # runs a file

    The files run without Detectron2 and without this package. The first command writes
    model_trace.ts and model_script.ts (TorchScript), model.pt2 (torch.export) and model.onnx; the
    second writes model.xml and model_int8.xml (OpenVINO), with the weights beside them in .bin
    files. Each file takes images of any size and is compared with the model in Detectron2, on every
    --input at two sizes: a file that does not detect the same is not kept. docs/export.md has the
    tolerances and the interface of a file. If a format does not support the model, the exit code is
    1.
    """
    _add_model(parser)
    parser.add_argument("--format", **MANY, choices=FORMATS, help="the first four by default")
    parser.add_argument(
        "--input", required=True, **MANY, metavar="IMAGE", help="real images, to compare on"
    )
    _add_output(parser, "output/exported")
    parser.add_argument(
        "--tolerance",
        type=float,
        help="of scores and mask probabilities, and of boxes in parts of their longer side; by "
        "default 0.001, and 0.05 in bfloat16 and int8",
    )
    _add_overrides(parser, "--opts")


def _check_data(parser: Parser) -> None:
    """Check COCO datasets before training: decode every image, look at every annotation.

        gnws check-data --data export/
        gnws check-data --train a.json=images/ --val b.json=images/ --output bad.json
        gnws check-data my.json

    What would train or evaluate wrong is listed, and the exit code is then 1. The rest is
    summarized: a table of objects by class and size, as the config's input size and anchors see
    them, and the images that two datasets share, by content.
    """
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


def _convert(parser: Parser) -> None:
    """Convert annotations of any known format to COCO JSON, YOLO, Pascal VOC or CVAT XML.

        gnws convert export/annotations.xml --output mine.json
        gnws convert --data FOLDER --output OUT --to yolo    # every split
        gnws convert found/detections.json --to cvat --output labels.xml
        gnws convert --data FOLDER --output OUT --tile 640   # then: gnws train --data OUT

    The output is a file for COCO and CVAT, and a folder for YOLO, VOC and --data. Images stay where
    they are. What the format cannot hold is counted in a warning.
    """
    data = parser.add_mutually_exclusive_group(required=True)
    data.add_argument("source", nargs="?", metavar="SOURCE", help=SOURCE)
    data.add_argument("--data", type=Path, metavar="FOLDER", help="a folder, as train has it")
    parser.add_argument("--output", required=True, type=Path, metavar="PATH", help="a new one")
    parser.add_argument("--to", choices=["coco", "yolo", "voc", "cvat"], default="coco")
    parser.add_argument("--skip-bad-annotations", action="store_true", help="leave them out")
    _add_tiles(parser, "cut the images of --data into squares of N pixels, and their annotations")
    parser.set_defaults(train=[], val=[], test=[], tile=None)


def _browse(parser: Parser) -> None:
    """Draw images with their annotations as training sees them, after augmentation.

        gnws browse --config-file Digits/mask_rcnn_R_18_FPN_gn_ws.yaml --num 20
        gnws browse --config-file ... --data my_images/ --split test

    The images are the same each time, and so is their augmentation; another SEED gives others.
    sheet.jpg in the output folder shows all of them.
    """
    parser.add_argument("--config-file", required=True, metavar="FILE", help=CONFIG)
    parser.add_argument("--num", type=int, default=20, help="how many images")
    _add_output(parser, "output/browse")
    parser.add_argument("--split", choices=["train", "test"], default="train")
    add_data_arguments(parser)
    _add_overrides(parser)


def _report(parser: Parser) -> None:
    """Write the report of a finished training or evaluation again.

        gnws report --output-dir output/digits
        gnws report --output-dir output/digits --weights output/digits/model_best.pth

    It reads config.yaml, metrics.json and inference/coco_instances_results.json of the folder and
    writes report/report.html, one page that needs no other file, with its plots and images beside
    it.
    """
    parser.add_argument("--output-dir", required=True, type=Path, metavar="FOLDER")
    parser.add_argument(
        "--weights", default="", metavar="FILE", help="what was evaluated; the last checkpoint"
    )
    parser.add_argument(
        "--images", type=int, default=3, help="how many of the worst, the best and random images"
    )
    _add_overrides(parser)


def _app(parser: Parser) -> None:
    """Serve a web page: drop an image, see what is detected, download boxes and masks.

        gnws app output/mine/model_best.pth
        gnws app small=output/small/model_best.pth large=output/large/model_best.pth --port 7861

    A model is a checkpoint that carries its config, as training writes them, an exported file, or a
    published detector such as gnws://mask-rcnn_r50_fpn_gn_ws-all_2x_coco. NAME= is its name on the
    page. The first model is loaded at once, others when they are chosen. The page is served to this
    machine alone, unless --host says otherwise. It needs Gradio: pip install "gradio>=6".
    """
    parser.add_argument("models", nargs="+", metavar="[NAME=]CHECKPOINT")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 serves other machines, too")
    parser.add_argument("--port", type=int, default=7860)
    parser.add_argument("--device", help="cpu, cuda, ...; by default as in the config")


def _zoo(parser: Parser) -> None:
    """List published checkpoints and configs, or download checkpoints into the cache.

        gnws zoo list
        gnws zoo prefetch imagenet/resnet50_gn_ws
        gnws zoo prefetch COCO-Detection/faster_rcnn_R_50_FPN_gn_ws_1x.yaml
        gnws zoo prefetch all

    $GNWS_D2_CACHE names the folder of the cache.
    """
    actions = parser.add_subparsers(dest="action", required=True, metavar="list|prefetch")
    actions.add_parser("list", help="show all published checkpoints and all configs")
    action = actions.add_parser("prefetch", help="download, verify, convert and cache")
    action.add_argument("names", nargs="+", metavar="NAME", help="names or configs, or all")


def _convert_weights(parser: Parser) -> None:
    """Convert a checkpoint file between MMDetection's names and Detectron2's.

        gnws convert-weights mask_rcnn_r50_fpn_gn_ws-all_2x.pth mask_rcnn.pth
        gnws convert-weights --to mmdet output/model_final.pth for_mmdet.pth

    Every tensor must fit the config that --config names, or one of the packaged configs. An
    existing file is not overwritten.
    """
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--to", choices=["detectron2", "mmdet"], default="detectron2")
    parser.add_argument("--config", metavar="FILE", help=CONFIG)


# name -> the module whose ``main`` takes the arguments, and what adds them, with the help
COMMANDS = {
    "train": ("gnws_d2.projects.detection.train_net", _train),
    "eval": ("gnws_d2.projects.detection.train_net", _eval),
    "predict": ("gnws_d2.projects.detection.demo", _predict),
    "export": ("gnws_d2.projects.export.export_model", _export),
    "check-data": ("gnws_d2.projects.own_data.check_data", _check_data),
    "convert": ("gnws_d2.projects.own_data.convert", _convert),
    "browse": ("gnws_d2.projects.report.browse", _browse),
    "report": ("gnws_d2.projects.report.report", _report),
    "app": ("gnws_d2.projects.detection.app", _app),
    "zoo": ("gnws_d2.projects.detection.zoo", _zoo),
    "convert-weights": ("gnws_d2.projects.detection.convert_weights", _convert_weights),
}
