"""The documents that are written from ``checkpoints.csv``, in a source tree."""

from __future__ import annotations

from pathlib import Path

import yaml
from tabulate import tabulate

from ..config import CONFIG_ROOT
from ..files import atomic_write
from ..marked_text import replace_marked
from .published import Published, published

ROOT = CONFIG_ROOT.parent
_REFERENCE = "https://github.com/open-mmlab/mmdetection/tree/main/configs/gn%2Bws"
_SCHEDULES = {"1x": "1x", "2x": "2x", "20_23_24e": "20-23-24e"}  # end of a config's name: its own

_MODEL_ZOO = """\
# Model zoo

Results, training memory and inference time (V100) are
[MMDetection's own]({reference}), on COCO val2017.

The GN+WS configs follow the training rules behind these results
([docs/reference.md](docs/reference.md)). No training here has reproduced them.

## Detectors

{detectors}

## ImageNet backbones

{backbones}

`SHA-256` holds the first digits of the hash, against which a download is verified.

## Use

In any Detectron2 program that imports `gnws_d2`, set `MODEL.WEIGHTS` to `gnws://` and a name.
`gnws_d2.model_zoo.get_checkpoint_url(config)` returns that of a config's detector. The first use
downloads, verifies, converts and caches the file:

    python projects/Detection/train_net.py --eval-only \\
        --config-file COCO-Detection/faster_rcnn_R_50_FPN_gn_ws_1x.yaml \\
        MODEL.WEIGHTS gnws://faster-rcnn_r50_fpn_gn_ws-all_1x_coco

`python -m gnws_d2.model_zoo list` shows all names and which are cached; `prefetch NAME ...` or
`prefetch all` caches them. See [docs/checkpoints.md](docs/checkpoints.md).

`python -m gnws_d2.model_zoo document` writes this page from `gnws_d2/model_zoo/checkpoints.csv`.
"""


def model_zoo() -> str:
    """MODEL_ZOO.md."""
    detectors = [
        [*_row(e), f"[{e.name}]({e.url})", f"`{e.sha256}`"]
        for e in published()
        if not e.is_backbone
    ]
    backbones = [[f"[{e.name}]({e.url})", f"`{e.sha256}`"] for e in published() if e.is_backbone]
    return _MODEL_ZOO.format(
        reference=_REFERENCE,
        detectors=_table(detectors, [*_HEADER, "name, published file", "SHA-256"]),
        backbones=_table(backbones, ["name, published file", "SHA-256"]),
    )


def readme_models(readme: str) -> str:
    """``readme`` with a new table of the detectors between its two marks."""
    table = _table([_row(e) for e in published() if not e.is_backbone], _HEADER)
    return replace_marked(readme, "models", table)


def metafile() -> str:
    """configs/metafile.yml, in the form of OpenMMLab's model index."""
    collection = {
        "Name": "Weight Standardization",
        "Metadata": {
            "Training Data": "COCO",
            "Training Techniques": ["SGD with Momentum", "Weight Decay"],
            "Training Resources": "8x V100 GPUs",
            "Architecture": ["FPN", "Group Normalization", "Weight Standardization", "ResNet"],
        },
        "Paper": {
            "URL": "https://arxiv.org/abs/1903.10520",
            "Title": "Weight Standardization",
        },
        "README": "MODEL_ZOO.md",
    }
    models = [_index_entry(entry) for entry in published() if not entry.is_backbone]
    text = yaml.safe_dump(
        {"Collections": [collection], "Models": models}, sort_keys=False, width=1000
    )
    return "# Made by python -m gnws_d2.model_zoo document.\n" + text


def documents() -> dict[Path, str]:
    """The text of every generated document, by its file."""
    readme = ROOT / "README.md"
    if not readme.is_file():
        raise FileNotFoundError(f"{readme} does not exist: run this in a source tree.")
    return {
        ROOT / "MODEL_ZOO.md": model_zoo(),
        ROOT / "configs" / "metafile.yml": metafile(),
        readme: readme_models(readme.read_text(encoding="utf-8")),
    }


def write() -> None:
    """Write the documents into the source tree."""
    for file, text in documents().items():
        with atomic_write(file) as partial:
            partial.write_text(text, encoding="utf-8")
        print(file)


_HEADER = ["config", "schedule", "box AP", "mask AP", "train mem (GB)", "inference (ms/im)"]


def _row(entry: Published) -> list[str]:
    stem = Path(entry.config).stem
    schedule = next(label for end, label in _SCHEDULES.items() if stem.endswith(f"_{end}"))
    results = [entry.box_ap, entry.mask_ap, entry.train_mem_gb, entry.inference_ms]
    return [f"[{stem}](configs/{entry.config})", schedule, *(value or "-" for value in results)]


def _table(rows: list[list[str]], header: list[str]) -> str:
    return tabulate(rows, header, tablefmt="github", disable_numparse=True)


def _index_entry(entry: Published) -> dict:
    metadata: dict = {"Training Memory (GB)": float(entry.train_mem_gb)}
    if entry.inference_ms:
        metadata["inference time (ms/im)"] = [
            {
                "value": float(entry.inference_ms),
                "hardware": "V100",
                "backend": "PyTorch",
                "batch size": 1,
                "mode": "FP32",
                "resolution": "(800, 1333)",
            }
        ]
    metadata["Epochs"] = int(entry.epochs)
    results = [("Object Detection", "box AP", entry.box_ap)]
    if entry.mask_ap:
        results.append(("Instance Segmentation", "mask AP", entry.mask_ap))
    return {
        "Name": entry.name,
        "In Collection": "Weight Standardization",
        "Config": f"configs/{entry.config}",
        "Metadata": metadata,
        "Results": [
            {"Task": task, "Dataset": "COCO", "Metrics": {metric: float(value)}}
            for task, metric, value in results
        ],
        "Weights": entry.url,
    }
