"""Keypoints that change places in a mirrored image, by their names; one list for all classes."""

import pytest
from coco_files import changed, fit, make_coco, truth
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.detection_utils import create_keypoint_hflip_indices

from gnws_d2.errors import DatasetError
from gnws_d2.projects.own_data.keypoints import flip_pairs

CONFIG = "Digits/keypoint_rcnn_R_18_FPN_gn_ws.yaml"
SPELLINGS = (
    "left_eye right_eye,Left_eye Right_eye,LeftEye RightEye,leftEye rightEye,lefteye righteye,"
    "LEFTEYE RIGHTEYE,eye_left eye_right,EYE_LEFT EYE_RIGHT,eyeLeft2 eyeRight2,eyeL eyeR,LEye REye,"
    "l_eye r_eye,L-eye R-eye,eye.l eye.r,eye(L) eye(R),L1 R1,L R,topleft topright,lt_eye rt_eye"
)
NOT_PAIRS = (
    "cleft leftover elbow upright light rover,left_eye right_ear,lock rock,eye eye2,ojo_izq ojo_der"
)


@pytest.mark.parametrize("names", SPELLINGS.split(","))
def test_sides_in_any_spelling(names):
    left, right = names.split(" ")
    assert flip_pairs(["nose", right, left]) == [(left, right)]


def test_words_that_only_contain_a_side_are_no_pairs():
    for names in NOT_PAIRS.split(","):
        assert flip_pairs(names.split(" ")) == []
    # Letters run together are taken for sides where two pairs say so.
    letters = [("lear", "rear"), ("leye", "reye")]
    assert flip_pairs(["lear", "rear", "nose", "leye", "reye"]) == letters
    spaced = ["left hand left finger", "right hand left finger"]
    spaced += [name.replace("hand left", "hand right") for name in spaced]
    assert sorted(flip_pairs(spaced)) == [(spaced[0], spaced[3]), (spaced[2], spaced[1])]


def fitted(tmp_path, keypoints, change=lambda coco: None):
    """A file whose categories 1 and 2 have the keypoints, and a config with horizontal flips."""
    file = make_coco(tmp_path, categories={1: "cat", 2: "dog"})
    with changed(file) as coco:
        for category, names in zip(coco["categories"], keypoints, strict=True):
            category["keypoints"] = names
        for annotation in coco["annotations"]:
            x, y, *_ = annotation["bbox"]
            points = keypoints[annotation["category_id"] - 1]
            annotation["keypoints"] = [x + 3, y + 2, 2] * len(points)
        change(coco)
    return file, fit(file, (), "INPUT.RANDOM_FLIP", "horizontal", name=CONFIG)


def test_keypoints_come_from_the_categories(tmp_path):
    """pycocotools and Detectron2 want keypoints of all objects where some have them."""
    names = ["nose", "left_eye", "right_eye"]

    def change(coco):
        del coco["annotations"][1]["keypoints"]
        coco["categories"][0]["skeleton"] = [[1, 2], [3, 1], [2, 4], [0, 1], [1, [2]], [1], "23", 7]

    file, cfg = fitted(tmp_path, [names] * 2, change)
    assert cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS == len(cfg.TEST.KEYPOINT_OKS_SIGMAS) == 3
    metadata = MetadataCatalog.get(str(file))
    assert metadata.keypoint_flip_map == [("left_eye", "right_eye")]
    lines = [line[:2] for line in metadata.keypoint_connection_rules]
    assert lines == [("nose", "left_eye"), ("right_eye", "nose")]
    first, second = DatasetCatalog.get(str(file))[0]["annotations"]
    assert first["keypoints"] == [7.5, 8.5, 2] * 3
    assert second["keypoints"][2] == truth(file).anns[101]["num_keypoints"] == 0


@pytest.mark.parametrize(
    ("names", "indices", "said"),
    [
        (["nose", "Right_eye", "Left_eye"], [0, 2, 1], ""),
        (["nariz", "ojo_izq", "ojo_der"], [0, 1, 2], "image: nariz, ojo_izq, ojo_der. If they"),
        (["left_eye", "right_eye", "left_ear"], [1, 0, 2], "image: left_ear. If they have sides"),
    ],
)
def test_detectron2_gets_the_pairs_and_a_warning_names_the_others(
    tmp_path, names, indices, said, caplog
):
    file, _ = fitted(tmp_path, [names, names])
    assert create_keypoint_hflip_indices((str(file),)) == indices
    assert said in caplog.text and bool(said) == ("RANDOM_FLIP is horizontal" in caplog.text)
    fitted(tmp_path, [["nose", "eyeL", "eyeR"], ["tip", "L", "R"]])  # other words, the same places


def hide(coco):
    for annotation in coco["annotations"]:
        annotation["keypoints"] = [0] * len(annotation["keypoints"])


NOT_ALL = "not all classes have the keypoints nose, eyeL, eyeR"


@pytest.mark.parametrize(
    ("other", "change", "said"),
    [
        (["nose", "eyeL", "eyeR"], hide, r"no annotation has keypoints.*MODEL\.KEYPOINT_ON"),
        (["eyeL", "eyeR"], lambda coco: None, NOT_ALL),
        (["eyeL", "eyeR", "nose"], lambda coco: None, NOT_ALL),
        (["tip"], lambda coco: coco["categories"][1].pop("keypoints"), NOT_ALL),
    ],
)
def test_keypoints_that_no_model_can_have(tmp_path, other, change, said):
    with pytest.raises(DatasetError, match=said):
        fitted(tmp_path, [["nose", "eyeL", "eyeR"], other], change)
