#!/usr/bin/env python3
"""Find out what works with each kind of model by trying it: the table of docs/export.md.

    support.py                              # all rows, into the document: most of an hour
    support.py "Mask R-CNN" "Keypoint R-CNN"  # these rows of it
    support.py --dry-run "Mask R-CNN"       # printed only

Results are kept in docs/support.json; a row that is missing is "not measured yet".
Each config is built, trained for two steps on small images of Digits, evaluated, and exported to
every format. A format is supported if its file detects what the model detects, in images of two
sizes.
"""

import json
import os
import tempfile
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from pathlib import Path

import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import SimpleTrainer
from detectron2.evaluation import inference_on_dataset
from detectron2.utils.logger import setup_logger
from tabulate import tabulate
from torch import nn

import gnws_d2
from gnws.marked_text import update_marked
from gnws_d2.config import get_config_file
from gnws_d2.data import read_image
from gnws_d2.engine import Trainer
from gnws_d2.errors import GnwsError
from gnws_d2.files import CACHE_VARIABLE, atomic_write
from gnws_d2.projects import digits
from gnws_d2.projects.export import FORMATS as ALL_FORMATS
from gnws_d2.projects.export import ROUNDED, Exporter
from gnws_d2.projects.export.export_model import at_two_sizes

DOCS = Path(__file__).parents[2] / "docs"
RESULTS, DOCUMENT = DOCS / "support.json", DOCS / "export.md"
BACKBONES = {"R-50": "R_50", "R-101": "R_101", "X-50": "X_50_32x4d", "X-101": "X_101_32x4d"}
COCO = {
    "Faster R-CNN": "COCO-Detection/faster_rcnn_{}_FPN_gn_ws_1x.yaml",
    "Mask R-CNN": "COCO-InstanceSegmentation/mask_rcnn_{}_FPN_gn_ws_2x.yaml",
}
CONFIGS = {
    **{f"{kind}, {n}": file.format(b) for kind, file in COCO.items() for n, b in BACKBONES.items()},
    "Mask R-CNN": "Digits/mask_rcnn_R_18_FPN_gn_ws.yaml",
    "Mask R-CNN, BCN": "Digits/mask_rcnn_R_18_FPN_bcn_ws.yaml",
    "Mask R-CNN, deformable": "Digits/mask_rcnn_R_50_FPN_deform_gn_ws.yaml",
    "Cascade Mask R-CNN": "Digits/cascade_mask_rcnn_R_18_FPN_gn_ws.yaml",
    "Keypoint R-CNN": "Digits/keypoint_rcnn_R_18_FPN_gn_ws.yaml",
    "PointRend": "Digits/pointrend_R_18_FPN_gn_ws.yaml",
    "RetinaNet": "Digits/retinanet_R_18_FPN_gn_ws.yaml",
    "FCOS": "Digits/fcos_R_18_FPN_gn_ws.py",
    "Semantic FPN": "Digits/semantic_R_18_FPN_gn_ws.yaml",
    "Panoptic FPN": "Digits/panoptic_fpn_R_18_gn_ws.yaml",
    "DeepLabV3+": "Digits/deeplab_v3_plus_R_50_gn_ws.yaml",
}
SMALL = [
    *("MODEL.WEIGHTS", "", "MODEL.BACKBONE.FREEZE_AT", "0", "MODEL.ROI_HEADS.NUM_CLASSES", "10"),
    *("INPUT.MIN_SIZE_TRAIN", "(128,)", "INPUT.MIN_SIZE_TEST", "128", "SEED", "3"),
    *("SOLVER.IMS_PER_BATCH", "2", "SOLVER.REFERENCE_WORLD_SIZE", "0"),
    *("SOLVER.MAX_ITER", "2", "SOLVER.STEPS", "()", "SOLVER.WARMUP_ITERS", "0"),
    *("DATALOADER.NUM_WORKERS", "0", "VIS_PERIOD", "0", "MODEL.DEVICE", "cpu"),
    # Hardly trained: detections count at any score.
    *("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0", "MODEL.RETINANET.SCORE_THRESH_TEST", "0.0"),
    *("TEST.DETECTIONS_PER_IMAGE", "20"),
]
# In 8 bits of precision a model has to be trained to agree; the graph is that of float32.
FORMATS = {name: format for name, format in ALL_FORMATS.items() if format.tolerance != ROUNDED}
YES = "yes"


def row(config_file: str, output: Path) -> list[str]:
    """The cells of one model: it trains, its tasks, and for each format "yes" or why not."""
    is_lazy = config_file.endswith(".py")
    model, tasks = train_lazy(config_file) if is_lazy else train(config_file, output)
    files = [record["file_name"] for record in DatasetCatalog.get("digits_val")[:2]]
    images = [torch.tensor(read_image(file, "RGB").transpose(2, 0, 1)).float() for file in files]
    images = [image for original in images for image in at_two_sizes(original[:, :128, :128])]
    return [YES, ", ".join(tasks), *exports(model, images, output)]


def train(config_file: str, output: Path) -> tuple[nn.Module, list[str]]:
    cfg = gnws_d2.load_config(config_file, [*SMALL, "OUTPUT_DIR", str(output)])
    if config_file.startswith("COCO"):
        cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("digits_train",), ("digits_val",)
        cfg.INPUT.MASK_FORMAT = "bitmask"
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    return trainer.model, list(trainer.train() or trainer._last_eval_results)


def train_lazy(config_file: str) -> tuple[nn.Module, list[str]]:
    cfg = LazyConfig.load(get_config_file(config_file))
    cfg.dataloader.train.total_batch_size = 2
    cfg.optimizer.params.model = model = instantiate(cfg.model)
    data = {name: instantiate(part) for name, part in cfg.dataloader.items()}
    SimpleTrainer(model, data["train"], instantiate(cfg.optimizer)).train(0, 2)
    model.test_score_thresh = 0.0
    return model, list(inference_on_dataset(model, data["test"], data["evaluator"]))


def exports(model: nn.Module, images: list[torch.Tensor], output: Path) -> list[str]:
    """For each format, "yes", or why it does not support the model."""
    found, exporter = [], Exporter(model, images)
    for name, how in FORMATS.items():
        try:
            results = exporter.export(name, output / how.file)
            found.append(YES if any(r.same for r in results) else "nothing was detected")
        except GnwsError as error:
            reason = str(error).rstrip(".").removeprefix(f"{name} does not support this model: ")
            found.append(reason.split(";")[0])  # without the part at which this model differs
    return found


def table(rows: dict[str, list[str]]) -> str:
    """A table in which "no" has a number, and the reasons below it."""
    reasons: dict[str, int] = {}
    cells = []
    for name in CONFIGS:
        link = f"[{name}](../configs/{CONFIGS[name]})"
        if name not in rows:
            cells.append([link, *["not measured yet"] * (2 + len(FORMATS))])
            continue
        trains, tasks, *formats = rows[name]
        marks = [
            cell if cell == YES else f"no ({reasons.setdefault(cell, len(reasons) + 1)})"
            for cell in formats
        ]
        cells.append([link, trains, tasks, *marks])
    header = ["model", "builds, trains", "evaluates", *FORMATS]
    text = tabulate(cells, header, tablefmt="github", disable_numparse=True)
    notes = [f"{number}. {reason[0].upper()}{reason[1:]}." for reason, number in reasons.items()]
    return "\n".join([text, "", *notes])


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    of = f"of {', '.join(CONFIGS)}"
    parser.add_argument("names", nargs="*", choices=CONFIGS, metavar="MODEL", help=of)
    parser.add_argument("--dry-run", action="store_true", help="write nothing")
    args = parser.parse_args()
    setup_logger(name="gnws_d2")
    rows = {} if args.dry_run else json.loads(RESULTS.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        os.environ[CACHE_VARIABLE] = folder
        digits.register()
        few = digits.make_digits(Path(folder), num_train=8, num_val=4)
        few.rename(Path(MetadataCatalog.get("digits_train").json_file).parent)
        for i, name in enumerate(args.names or CONFIGS):
            output = Path(folder) / str(i)
            output.mkdir()
            rows[name] = row(CONFIGS[name], output)
            print(f"\n{name}: {rows[name]}\n", flush=True)
            if not args.dry_run:  # after each row: a run of hours may be stopped
                with atomic_write(RESULTS) as partial:
                    partial.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
                update_marked(DOCUMENT, {"support": table(rows)})
    print(table(rows))


if __name__ == "__main__":
    main()
