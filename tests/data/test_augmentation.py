"""Objects are where the image shows them: its pixels do not move with boxes, masks and points."""

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.data.transforms import ExtentTransform
from detectron2.structures import BitMasks, BoxMode
from detectron2.utils.env import seed_all_rng
from PIL import Image
from pycocotools import mask as mask_util

from gnws_d2 import load_config
from gnws_d2.data import Mapper
from gnws_d2.data.augmentation import drop_slivers

HEIGHT, WIDTH = 120, 170
OBJECTS = [(10, 12, 60, 40), (90, 8, 72, 48), (30, 60, 92, 56)]  # x, y, width, height
SIZES = "INPUT.MIN_SIZE_TRAIN (140,) INPUT.MAX_SIZE_TRAIN 190 INPUT.RANDOM_FLIP horizontal"
LIGHT, STRONG = "INPUT.AUGMENTATION light", "INPUT.AUGMENTATION strong"


@pytest.fixture(params=["polygon", "bitmask"])
def mapped(request, tmp_path):
    """What the model gets of a red, a green and a blue L, with a keypoint at each corner."""
    MetadataCatalog.get("shapes").keypoint_names = ["corner", "left", "right"]
    MetadataCatalog.get("shapes").keypoint_flip_map = [("left", "right")]
    image, labels = np.zeros((HEIGHT, WIDTH, 3), np.uint8), np.uint8(0)
    files = {key: str(tmp_path / f"{key}.png") for key in ("file_name", "sem_seg_file_name")}
    record = {**files, "annotations": []}
    for k, (x, y, w, h) in enumerate(OBJECTS):
        box = np.zeros((HEIGHT, WIDTH), np.uint8)
        box[y : y + h, x : x + w // 4] = box[y : y + h // 4, x : x + w] = 1
        image[..., k], labels = 200 * box, labels + np.uint8(k + 1) * box
        corners = np.array([(0, 0), (4, 0), (4, 1), (1, 1), (1, 4), (0, 4)]) * (w / 4, h / 4)
        rle = mask_util.encode(np.asfortranarray(box))
        mask = rle if request.param == "bitmask" else [(corners + (x, y)).ravel().tolist()]
        points = [x + 4, y + 4, 2, x + 4, y + h - 4, 2, x + w - 4, y + 4, 2]
        one = {"bbox_mode": BoxMode.XYWH_ABS, "category_id": k, "keypoints": points}
        record["annotations"].append({**one, "bbox": [x, y, w, h], "segmentation": mask})
    Image.fromarray(image).save(files["file_name"])
    Image.fromarray(labels).save(files["sem_seg_file_name"])

    def map_it(seed, options):
        opts = [*SIZES.split(), "INPUT.MASK_FORMAT", request.param, *options.split()]
        cfg = load_config("Digits/mask_rcnn_R_18_FPN_gn_ws.yaml", opts)
        cfg.MODEL.KEYPOINT_ON, cfg.DATASETS.TRAIN = True, ("shapes",)
        seed_all_rng(seed)
        return Mapper(cfg, is_train=True)(record)

    return map_it


def extent(pixels):
    rows, columns = np.nonzero(pixels)
    return np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])


@pytest.mark.parametrize("form", ["BGR", "RGB", "RGBA", "L"])
@pytest.mark.parametrize("level", ["light", "medium", "strong INPUT.ANY_WAY_UP True"])
def test_objects_and_labels_are_where_the_image_shows_them(level, form, mapped):
    resize, shapes = "cv2" if "RGB" in form else "pil", set()
    options = f"INPUT.FORMAT {form} INPUT.RESIZE_TRAIN {resize} INPUT.AUGMENTATION {level}"
    for seed in range(14):
        out = mapped(seed, options)
        labels, objects = out["sem_seg"].numpy(), out["instances"]
        shapes.add(labels.shape)
        assert (out["image"][3:] == 255).all() and np.all(np.sort(labels.shape) <= [140, 190])
        colors = out["image"].numpy().astype(int)[:3][:: -1 if form == "BGR" else 1]
        assert ((np.abs(colors - np.median(colors)).max(0) > 4) == (labels > 0)).mean() > 0.94
        masks = objects.gt_masks
        if not isinstance(masks, BitMasks):
            masks = BitMasks.from_polygon_masks(masks, *labels.shape)
        for n, k in enumerate(objects.gt_classes.tolist()):
            if len(colors) == 3:  # each object has one
                color = colors[k] - np.delete(colors, k, 0).max(0)
                box = extent(shown := color > color.max() / 2)
                assert np.abs(objects.gt_boxes.tensor[n].numpy() - box).max() <= 1.1
                assert (shown == masks.tensor[n].numpy()).mean() > 0.98
            for x, y, seen in objects.gt_keypoints.tensor[n].tolist():
                assert not seen or labels[int(y), int(x)] == k + 1
    assert len(objects) and (len(shapes) > 1) == (level != "light")


def test_all_eight_turns_are_exact_and_keypoints_change_sides(mapped):
    drawn = set()
    for seed in range(40):
        out = mapped(seed, "INPUT.MIN_SIZE_TRAIN (0,) INPUT.FORMAT RGB INPUT.ANY_WAY_UP True")
        pixels, objects = out["image"].permute(1, 2, 0).numpy(), out["instances"]
        drawn.add(pixels.tobytes())
        boxes = [extent(pixels[..., k]) for k in objects.gt_classes]
        assert np.abs(objects.gt_boxes.tensor.numpy() - boxes).max() < 1e-4
        corner, left, right = objects.gt_keypoints.tensor[..., :2].unbind(1)
        assert (torch.linalg.det(torch.stack([left - corner, right - corner], 1)) < 0).all()
    assert drawn == {np.rot90(p, k).tobytes() for p in (pixels, pixels[::-1]) for k in range(4)}


def test_colors_follow_the_seed_and_not_the_order_of_channels(mapped):
    one, same, other = (mapped(seed, STRONG)["image"] for seed in (1, 1, 2))
    assert torch.equal(one, same) and not (one.shape == other.shape and torch.equal(one, other))
    rgb, plain = (mapped(1, f"INPUT.FORMAT RGB {level}")["image"] for level in (LIGHT, ""))
    assert torch.equal(rgb, mapped(1, f"INPUT.FORMAT BGR {LIGHT}")["image"].flip(0))
    assert 0 < (rgb.int() - plain.int()).abs().max() < 100


@pytest.mark.parametrize(("x", "is_kept"), [(9.5, False), (8.5, True), (-5, True), (20, False)])
def test_a_crop_10_pixels_wide_leaves_no_slivers_of_a_box_as_wide(x, is_kept):
    objects = [{"bbox": [x, 0, 10, 4], "bbox_mode": BoxMode.XYWH_ABS}]
    drop_slivers(objects, ExtentTransform((0, 0, 10, 10), (10, 10)), (10, 10))
    assert len(objects) == is_kept
