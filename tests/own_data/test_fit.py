"""A config that names COCO files is fitted to them: classes, heads, masks, evaluation."""

import copy
import json
import logging
import re
from pathlib import Path

import pytest
import torch
from coco_files import MASKS, SKIP, change_all, changed, config, fit, make_coco, read, truth, write
from detectron2 import evaluation
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.structures import Boxes, Instances
from PIL import Image
from pycocotools import mask as mask_util
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

import gnws_d2
from gnws_d2.checkpoint import Provenance
from gnws_d2.config import portable_config
from gnws_d2.data import load_train_dataset
from gnws_d2.engine import build_evaluator
from gnws_d2.engine.evaluation import complete_truth
from gnws_d2.errors import ConfigError, DatasetError
from gnws_d2.projects.own_data import choose_config, coco_file, fit_to_data, kept_files


def test_classes_come_from_the_data_by_id(file, caplog):
    caplog.set_level(logging.INFO)
    cfg = config(file)
    before = copy.deepcopy(cfg)
    cfg.freeze()
    fitted = fit_to_data(cfg)
    assert fitted.is_frozen() and cfg == before
    assert fitted.DATASETS.CLASSES == ["dog", "cat"]
    assert fitted.DATASETS.CATEGORY_IDS == [3, 7]
    assert fitted.MODEL.ROI_HEADS.NUM_CLASSES == fitted.MODEL.RETINANET.NUM_CLASSES == 2
    assert fitted.MODEL.REMAKE_PREDICTORS
    assert "2 classes in the data: dog, cat, therefore now DATASETS.CLASSES is" in caplog.text
    provenance = Provenance.of(fitted, [])
    assert provenance.classes == ["dog", "cat"] and provenance.category_ids == [3, 7]
    caplog.clear()
    assert fit_to_data(fitted) == fitted and "therefore" not in caplog.text
    with pytest.raises(DatasetError, match=r"CLASSES has 'dgo'.*cat, dog.*Correct"):
        fit(file, (), "DATASETS.CLASSES", "['dgo', 'cat']")


@pytest.mark.parametrize(
    "members", [{}, {"categories": []}, {"categories": [{"id": 1, "name": "b"}]}]
)
def test_one_of_two_training_files_may_have_no_objects(tmp_path, members):
    file, empty = make_coco(tmp_path), tmp_path / "empty.json"
    write(empty, {**read(file), "annotations": [], **members})
    for opts, images in ([], 4), (["DATALOADER.FILTER_EMPTY_ANNOTATIONS", "False"], 8):
        cfg = fit((file, empty), (), "DATASETS.CLASSES", "['cat']", *opts)
        assert len(load_train_dataset(cfg)) == images


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({"iscrowd": 1}, "its 8 annotations are 8 crowds, which are not trained on (set iscrowd"),
        ({"bbox": [1, 1, 10, 0]}, "its 8 annotations are 8 without width or height."),
        ({"bbox": [1, 1, -1, 5]}, "its 8 annotations are 8 bad (gnws check-data lists them)."),
    ],
)
@pytest.mark.parametrize("empty_too", ["True", "False"])
def test_data_without_an_object_is_refused_to_train_on_and_said_to_score(
    tmp_path, members, said, empty_too, caplog
):
    file, good = make_coco(tmp_path), make_coco(tmp_path / "good")
    change_all(file, **members)
    opts = [*SKIP, "DATALOADER.FILTER", "detectron2"]
    opts += ["DATALOADER.FILTER_EMPTY_ANNOTATIONS", empty_too]
    with pytest.raises(DatasetError, match=re.escape(said)):
        fit(file, (), *opts)
    fit(good, file, *opts)
    assert f"{file}: nothing can be scored, AP will be nan: {said}" in caplog.text
    register_coco_instances("theirs", {}, str(file), str(tmp_path / "images"))
    with pytest.raises(DatasetError, match="none of 4 images has an object"):
        load_train_dataset(config("theirs", (), *opts))


def test_a_class_of_crowds_is_said(file, caplog):
    with changed(file) as coco:
        for annotation in coco["annotations"]:
            annotation["iscrowd"] = int(annotation["category_id"] == 7)
    fit(file)
    assert "No training image has an object of 'cat'." in caplog.text


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({"category_id": 7.0}, r"none of its 8 annotations.* category_id: the first has 7\.0\."),
        ({"category_id": None, "segments_info": []}, r"has None\. It is a panoptic file\."),
    ],
)
def test_annotations_of_no_class(file, members, said):
    change_all(file, **members)
    with pytest.raises(DatasetError, match=said):
        fit(file)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_pycocotools_can_read_the_truth_whatever_the_encoding(file, encoding):
    file.write_text(file.read_text(), encoding=encoding)
    fit(file)
    assert len(truth(file).anns) == 8


def test_a_damaged_copy_of_the_truth_is_written_again(tmp_path):
    name = f"{make_coco(tmp_path)}#train"
    fit(name)
    Path(MetadataCatalog.get(name).json_file).write_text("{")
    fit(name)
    assert len(truth(name).imgs) == 3


# A band of 8 pixels across the box [10, 10, 60, 60]: 60 * 60 - 2 * 52 * 52 / 2 = 896.
BAND = [[10, 10, 18, 10, 70, 62, 70, 70, 62, 70, 10, 18]]
PIXELS = mask_util.frPyObjects(BAND, 100, 100)[0]
AREAS = {
    "polygon": (BAND, 896),
    "polygons": ([BAND[0], BAND[0]], 896),
    "RLE": ({"size": [100, 100], "counts": PIXELS["counts"].decode()}, 896),
    "runs": ({"size": [100, 100], "counts": [1010, *[10, 90] * 59, 10, 3080]}, 600),
    "box": ([], 3600),
}


@pytest.mark.parametrize("case", AREAS)
@pytest.mark.parametrize("area", [{}, {"area": 0}, {"area": None}])
def test_an_area_that_is_missing_is_the_masks(tmp_path, case, area):
    mask, expected = AREAS[case]
    Image.new("RGB", (100, 100)).save(tmp_path / "a.png")
    annotation = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 10, 60, 60], **area}
    coco = {"images": [{"id": 1, "file_name": "a.png", "width": 100, "height": 100}]}
    coco["annotations"] = [{**annotation, "segmentation": mask}]
    file = tmp_path / "mine.json"
    write(file, {**coco, "categories": [{"id": 1, "name": "a"}]})
    fit(file)
    found = truth(file).anns[1]["area"]
    theirs = COCO(str(file))
    complete_truth(theirs)
    assert found == theirs.anns[1]["area"] == expected


def test_a_config_without_files_stays_itself(tmp_path):
    cfg = gnws_d2.load_config("")
    checked = []
    assert fit_to_data(cfg, checked.append) is cfg and checked == [cfg]


def perfect(file, name):
    """The objects in the user's file as a model's results: (input, output) of each image of the
    dataset ``name``."""
    coco = read(file)
    names = {category["id"]: category["name"] for category in coco["categories"]}
    classes = MetadataCatalog.get(name).thing_classes
    for image in DatasetCatalog.get(name):
        found = [a for a in coco["annotations"] if a["image_id"] == image["image_id"]]
        boxes = torch.tensor([a["bbox"] for a in found], dtype=torch.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        labels = torch.tensor([classes.index(names[a["category_id"]]) for a in found])
        result = Instances((image["height"], image["width"]), pred_boxes=Boxes(boxes))
        result.pred_classes, result.scores = labels, torch.ones(len(found))
        yield {"image_id": image["image_id"]}, {"instances": result}


def evaluate(evaluator, results):
    evaluator.reset()
    for inputs, outputs in results:
        evaluator.process([inputs], [outputs])
    return evaluator.evaluate()["bbox"]


def drop_members(coco):
    for annotation in coco["annotations"]:
        del annotation["iscrowd"], annotation["area"]


def spoil(coco):
    coco["annotations"].append({**coco["annotations"][0], "id": 999, "bbox": [0, 0, -1, 5]})


def count_from_0(coco):
    coco["categories"].append({"id": 0, "name": "animals", "supercategory": "none"})
    for index, annotation in enumerate(coco["annotations"]):
        annotation["id"] = index


@pytest.mark.parametrize(
    ("change", "part"),
    [
        *((lambda coco: None, part) for part in ("", "#val", "#train")),
        *((drop_members, ""), (spoil, ""), (count_from_0, "")),
    ],
)
def test_detectron2s_own_evaluator_scores_a_perfect_prediction_100(tmp_path, change, part):
    sound, file = (make_coco(tmp_path, name) for name in ("sound.json", "mine.json"))
    with changed(file) as coco:
        change(coco)
    name = f"{file}{part}"
    fit(name, (), *SKIP)
    is_as_it_is = read(sound) == read(file) and not part
    assert (MetadataCatalog.get(name).json_file == name) == is_as_it_is
    evaluator = evaluation.COCOEvaluator(name, output_dir=str(tmp_path))
    found = evaluate(evaluator, perfect(sound, name))
    assert [found[key] for key in ("AP", "AP-dog", "AP-cat")] == pytest.approx([100] * 3)
    # pycocotools scores the same results against the user's own ids.
    own = COCO(str(sound))
    results = own.loadRes(str(tmp_path / "coco_instances_results.json"))
    scores = COCOeval(own, results, "bbox")
    scores.params.imgIds = [image["image_id"] for image in DatasetCatalog.get(name)]
    scores.evaluate(), scores.accumulate(), scores.summarize()
    assert scores.stats[0] == pytest.approx(1)


def test_a_registered_file_with_id_0_and_without_area_is_evaluated(tmp_path):
    """pycocotools takes id 0 for unmatched, and reads ``area`` and ``iscrowd``."""
    file, name = make_coco(tmp_path), str(tmp_path)
    with changed(file) as coco:
        drop_members(coco), count_from_0(coco)
    register_coco_instances(name, {}, str(file), str(tmp_path / "images"))
    DatasetCatalog.get(name)
    evaluator = build_evaluator(gnws_d2.load_config("", ["OUTPUT_DIR", name]), name)
    assert evaluate(evaluator, perfect(file, name))["AP"] == pytest.approx(100)


@pytest.mark.parametrize("categories", [{1: "cat", 9: "dog"}, {3: "cat"}])
def test_the_ap_of_a_class_is_named_rightly_whatever_the_ids(tmp_path, categories):
    """The first file names the classes; the second has their ids in the other order, or one class
    alone under the id of the other."""
    train = make_coco(tmp_path / "a")
    val = make_coco(tmp_path / "b", categories=categories)
    cfg = fit(train, val)
    assert cfg.DATASETS.CLASSES == ["dog", "cat"] and cfg.DATASETS.CATEGORY_IDS == [3, 7]
    every = [(inputs, outputs["instances"]) for inputs, outputs in perfect(val, str(val))]
    cats = [(inputs, {"instances": found[found.pred_classes == 1]}) for inputs, found in every]
    found = evaluate(build_evaluator(cfg, str(val)), cats)
    assert found["AP-cat"] == 100 and not found["AP-dog"] > 0
    assert found["AP"] == pytest.approx(100 / len(categories))


def test_an_unused_supercategory_is_left_out(tmp_path, caplog):
    """As Roboflow exports it: category 0, whose name may be that of the only class."""
    caplog.set_level(logging.INFO)
    file = make_coco(tmp_path, categories={1: "cell"})
    with changed(file) as coco:
        coco["categories"].insert(0, {"id": 0, "name": "cell", "supercategory": "none"})
        coco["categories"].append({"id": 5, "name": "never", "supercategory": "cell"})
        coco["annotations"][0]["id"] = 0  # Roboflow counts from 0, which pycocotools misreads
    cfg = fit(file, file)
    assert cfg.DATASETS.CLASSES == ["cell"] and cfg.DATASETS.CATEGORY_IDS == [1]
    assert caplog.text.count("Categories without annotations are left out: 'never'\n") == 1
    assert evaluate(build_evaluator(cfg, str(file)), perfect(file, str(file)))["AP"] == 100


def test_several_files_are_merged_by_name(tmp_path):
    one = make_coco(tmp_path / "a", categories={1: "cat", 2: "dog"})
    two = make_coco(tmp_path / "b", categories={1: "dog", 2: "cow"})
    cfg = fit((one, two))
    assert cfg.DATASETS.CLASSES == ["cat", "dog", "cow"]
    assert cfg.DATASETS.CATEGORY_IDS == [1, 2, 3]  # 2 is dog's: cow gets another
    classes = {a["category_id"] for r in DatasetCatalog.get(str(two)) for a in r["annotations"]}
    assert classes == {1, 2}
    assert len(load_train_dataset(cfg)) == 8


def test_a_registered_training_set_names_the_classes(tmp_path, caplog):
    file = make_coco(tmp_path, categories={1: "3", 2: "cow"})
    cfg = fit(("digits_train", file))
    assert cfg.DATASETS.CLASSES == list("0123456789")
    assert f"{file}: annotations of 'cow' are left out" in caplog.text
    classes = [a["category_id"] for r in DatasetCatalog.get(str(file)) for a in r["annotations"]]
    assert classes == [3] * 4
    other = make_coco(tmp_path / "other")
    with pytest.raises(DatasetError, match=r"none of the model's classes \(0, 1.*but cat, dog"):
        fit(("digits_train", other))
    assert fit("digits_train", other).DATASETS.CLASSES == ["dog", "cat"]


def test_a_saved_config_matches_its_classes_by_name(tmp_path):
    train = make_coco(tmp_path / "a")
    fitted = fit(train)
    saved = tmp_path / "saved.yaml"
    saved.write_text(portable_config(fitted).dump())
    other = make_coco(tmp_path / "b", categories={1: "cat", 2: "cow"})
    cfg = gnws_d2.load_config(saved, ["DATASETS.TEST", str(other)])
    train.unlink()  # not needed where the config is only evaluated
    cfg = fit_to_data(cfg)
    assert cfg.DATASETS.CLASSES == ["dog", "cat"] and cfg.MODEL.ROI_HEADS.NUM_CLASSES == 2
    assert {a["category_id"] for a in truth(other).anns.values()} == {1}
    assert MetadataCatalog.get(str(other)).thing_dataset_id_to_contiguous_id == {3: 0, 1: 1}


def test_masks_follow_the_data(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    assert not fit(make_coco(tmp_path / "boxes", masks=False), name=MASKS).MODEL.MASK_ON
    assert "boxes only, therefore now MODEL.MASK_ON is False" in caplog.text
    file, mask = make_coco(tmp_path), {"size": [48, 64], "counts": [0, 48 * 20, 48 * 44]}
    with changed(file) as coco:
        coco["annotations"][0].update(segmentation=mask, bbox=[0, 0, 20, 48])
    fitted = fit(file, name=MASKS)
    assert fitted.MODEL.MASK_ON and fitted.INPUT.MASK_FORMAT == "bitmask"
    assert "masks as RLE, therefore now INPUT.MASK_FORMAT is bitmask" in caplog.text


def test_some_without_masks_are_an_error_that_says_which(tmp_path, file):
    with changed(file) as coco:
        del coco["annotations"][3]["segmentation"]
        coco["annotations"][5]["segmentation"] = []
    said = r"annotation 103 of '1\.png': no segmentation, although 6 of 8 objects have one.*1 more"
    with pytest.raises(DatasetError, match=said):
        fit(file, name=MASKS)
    assert fit(file).MODEL.ROI_HEADS.NUM_CLASSES == 2
    fit(file, (), *SKIP, name=MASKS)
    kept = [a["id"] for r in DatasetCatalog.get(str(file)) for a in r["annotations"]]
    assert kept == [100, 101, 102, 104, 106, 107]
    (skipped,) = json.loads((tmp_path / "output/skipped_annotations.json").read_text()).values()
    assert [problem["annotation"] for problem in skipped] == [103, 105]


def test_label_images_are_needed_to_train_panoptic_and_semantic_models(file):
    panoptic = "Digits/panoptic_fpn_R_18_gn_ws.yaml"
    cfg = fit("digits_train", file, name=panoptic)
    # A dataset with several kinds of truth is evaluated for what the model predicts.
    assert type(build_evaluator(cfg, "digits_panoptic_val")) is evaluation.DatasetEvaluators
    cfg.MODEL.WS.META_ARCHITECTURE = cfg.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
    assert isinstance(build_evaluator(cfg, "digits_panoptic_val"), evaluation.COCOEvaluator)
    with pytest.raises(ConfigError, match="PanopticFPN needs label images"):
        fit(file, name=panoptic)
    with pytest.raises(ConfigError, match=r"SemanticSegmentor needs label images.*Choose"):
        fit(file, name="Digits/semantic_R_18_FPN_gn_ws.yaml")


def test_a_file_is_read_once(file, monkeypatch):
    reads = []
    read_json = coco_file.read_json
    monkeypatch.setattr(coco_file, "read_json", lambda f: reads.append(f) or read_json(f))
    train, val = f"{file}#train", f"{file}#val"
    with kept_files():
        choose_config([train])
        fit(train, val)
    assert reads.count(str(file)) == 1


def test_a_changed_file_is_registered_again(file):
    fit(file)
    with changed(file) as coco:
        del coco["annotations"][3:]
    fit(file)
    assert [len(record["annotations"]) for record in DatasetCatalog.get(str(file))] == [2, 1, 0, 0]
