"""Several processes with data workers augment differently from each other, and the same with any
number of workers."""

import itertools
import json
from pathlib import Path

import pytest
from detectron2.utils import comm
from tiny import TINY, register_tiny_digits

import gnws_d2
from gnws_d2.engine import launch
from gnws_d2.engine.data_order import ResumableLoader

OPTS = [
    *(*TINY, "INPUT.MIN_SIZE_TRAIN", "(48, 56, 64, 72, 80)", "MODEL.DEVICE", "cpu"),
    *("DATASETS.TRAIN", "('tiny_digits_train',)", "INPUT.RANDOM_FLIP", "horizontal"),
]


def write_batches(digits: Path, out: Path) -> None:
    register_tiny_digits(digits)
    seen = {}
    for workers in ("0", "1", "2"):
        cfg = gnws_d2.load_config(
            "Digits/mask_rcnn_R_18_FPN_gn_ws.yaml", [*OPTS, "DATALOADER.NUM_WORKERS", workers]
        )
        loader = ResumableLoader(cfg)
        loader.seek(seed=5, iteration=3)
        batches = itertools.islice(loader, 12)
        # Of an image of 160x160: its size says which was drawn, its first pixels whether flipped.
        seen[workers] = [
            (Path(d["file_name"]).name, list(d["image"].shape), float(d["image"][:, :, 0].sum()))
            for batch in batches
            for d in batch
        ]
    (out / f"{comm.get_rank()}.json").write_text(json.dumps(seen))


@pytest.mark.slow
def test_processes_draw_their_own_augmentations_with_any_number_of_workers(digits, tmp_path):
    launch(write_batches, 2, dist_url="auto", args=(digits, tmp_path))
    zero, one = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert zero["0"] == zero["1"] == zero["2"] and one["0"] == one["1"] == one["2"]
    # 12 of 16 images each: several are seen by both, in different epochs or not.
    sizes = [[shape for _, shape, _ in rank["1"]] for rank in (zero, one)]
    assert sizes[0] != sizes[1]
    shared = {name for name, _, _ in zero["1"]} & {name for name, _, _ in one["1"]}
    assert shared and any(
        [row[1:] for row in zero["1"] if row[0] == name]
        != [row[1:] for row in one["1"] if row[0] == name]
        for name in shared
    )
