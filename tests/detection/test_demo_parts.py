"""The parts of demo.py: what it takes as inputs, and what it writes for each kind of model."""

import errno
import json
import os
import resource
import shutil
import tracemalloc
from pathlib import Path
from unittest.mock import Mock

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import Metadata
from detectron2.structures import Boxes, Instances
from PIL import Image, ImageDraw
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from gnws_d2 import Predictor
from gnws_d2.errors import FileError, GnwsError
from gnws_d2.projects.detection import demo, results, video
from gnws_d2.projects.detection.image_ids import ImageIds
from gnws_d2.projects.detection.inputs import Frame, find_files, read_frames
from gnws_d2.projects.detection.results import OutputNames, Results


@pytest.fixture
def predictor(checkpoint):
    """``predictor(config, *opts)``: of an untrained model, which finds something everywhere."""

    def make(name="mask_rcnn_R_18_FPN_gn_ws", *opts):
        return Predictor(weights=checkpoint(name, *opts))

    return make


class Stub:
    """A predictor that finds one box in the left half, of the second of two classes. It refuses
    what is narrow, as a predictor does."""

    classes, category_ids, channels = ["cat", "dog"], [17, 18], 3

    def __init__(self):
        self.metadata = Metadata(thing_classes=self.classes)

    def __call__(self, bgr):
        height, width = bgr.shape[:2]
        if height == 2:
            raise demo.DatasetError("an image of 20000 x 2 pixels cannot be resized")
        found = Instances((height, width), pred_boxes=Boxes(torch.tensor([[0, 0, width / 2, 9.0]])))
        found.scores, found.pred_classes = torch.tensor([0.75]), torch.tensor([1])
        return {"instances": found}


def frame(file, number=None, size=(40, 60)):
    return Frame(file, np.full((*size, 3), 90, np.uint8), number)


def save(file, size=(30, 20)):
    Image.new("RGB", size, (10, 20, 30)).save(file)
    return file


@pytest.mark.parametrize(("format", "mean"), [("L", "[99]"), ("RGBA", "[99, 99, 99, 99]")])
def test_models_of_one_and_four_channels(predictor, tmp_path, format, mean):
    """Frames have the alpha of their file; those of a video are opaque."""
    scale = ["MODEL.PIXEL_STD", mean.replace("99", "1"), "MODEL.PIXEL_MEAN", mean]
    model = predictor("mask_rcnn_R_18_FPN_gn_ws", "INPUT.FORMAT", format, *scale)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 40, 60, 4), dtype=np.uint8)
    first, second = map(Image.fromarray, pixels)
    first.save(tmp_path / "a.png", save_all=True, append_images=[second])
    frames = list(read_frames(tmp_path / "a.png", model))
    expected = [np.asarray(image.convert(format)).reshape(40, 60, -1) for image in (first, second)]
    for number, (f, rgba, e) in enumerate(zip(frames, pixels, expected, strict=True)):
        assert f.number == number and (f.bgr == rgba[..., 2::-1]).all() and (f.original == e).all()
    [still] = read_frames(save(tmp_path / "still.png"), Stub)
    assert still.number is None and still.bgr[5, 5].tolist() == [30, 20, 10]
    results = Results(model, tmp_path / "found")
    for one in [*frames, frame(tmp_path / "video.mp4", 0)]:
        results.add(one)
    results.write()
    scores = model(expected[1])["instances"].scores.tolist()
    found = results.detections.content()["annotations"]
    assert [a["score"] for a in found if a["image_id"] == 2] == scores


def test_names_say_which_input_and_never_collide(tmp_path):
    files = ["a/x.jpg", "b/x.jpg", "a/x.png", "a/X.JPG", "c/x.jpg_2", "d/x.jpg"]
    names = OutputNames()
    found = [names.of(frame(tmp_path / file)) for file in files]
    assert found == ["x.jpg", "x.jpg_2", "x.png", "X.JPG_3", "x.jpg_2_2", "x.jpg_4"]
    assert len({name.lower() for name in found}) == len(files)
    frames = [names.of(frame(tmp_path / "moving.gif", number)) for number in (0, 12)]
    assert frames == ["moving.gif_frame00000", "moving.gif_frame00012"]


@pytest.mark.skipif(os.name == "nt", reason="links and FIFOs")
def test_what_cannot_be_used_is_named_and_skipped(tmp_path, caplog):
    folder, output = tmp_path / "photos", tmp_path / "found"
    for name in ("photos", "parts/x", "texts"):
        (tmp_path / name).mkdir(parents=True)
    for name, side in (("a_good", 20), ("z_good", 20), ("narrow", 2)):
        save(folder / f"{name}.png", (30 if side > 2 else 20000, side))
    (folder / "dangling.png").symlink_to(folder / "gone.png")
    (folder / "folder.png").mkdir()
    os.mkfifo(folder / "pipe.png")
    Image.new("1", (20000, 20000)).save(folder / "bomb.png")
    (folder / "cut.png").write_bytes((folder / "a_good.png").read_bytes()[:60])
    for name in ("parts/x/1.png", "texts/1.txt", "photos/text.heic", "photos/film.mp4"):
        (tmp_path / name).write_text("no image")
    said = {
        **{"photos/dangling.png": "does not exist", "photos/folder.png": "has no image in it"},
        **{"photos/pipe.png": "is not a regular", "photos/bomb.png": "has more than 179 million"},
        **{"photos/narrow.png": "an image of 20000 x 2", "photos/cut.png": "cannot be read (Trunc"},
        "photos/text.heic": "cannot be read (Pillow does not know its format). Convert it to PNG",
        "photos/film.mp4": "is a video. Name it by --video-input",
        "parts": f"has no image in it. Name the folders in it: {tmp_path}/parts/*/",
        **{"texts": "has no image in it. Name a folder", "none/*.png": "does not exist"},
    }
    inputs = [str(tmp_path / name) for name in ("photos", "parts", "texts", "none/*.png")]
    written = Results(Stub(), output)
    assert demo.run_on_images(find_files(inputs), written, []) == len(said)
    written.write()
    for name, reason in said.items():
        [line] = [r.getMessage() for r in caplog.records if f"/{name} is" in r.getMessage()]
        assert line.startswith(f"{tmp_path}/{name} is skipped: {reason}") and "\n" not in line
    names = ["a_good.png.png", "detections.json", "z_good.png.png"]
    assert sorted(f.name for f in output.iterdir()) == names


IDS = [  # names in the file, inputs, and the name whose id each input gets
    (["a.png", "b.png"], ["x/b.png", "x/a.png"], ["b.png", "a.png"]),
    (["camA/1.png", "camB/1.png"], ["x/camB/1.png", "x/camA/1.png"], ["camB/1.png", "camA/1.png"]),
    (["camA\\1.png", "./camB//1.png"], ["camB/1.png"], ["./camB//1.png"]),
    (["/other/camA/1.png", "C:\\d\\camB\\1.png"], ["camB/1.png"], ["C:\\d\\camB\\1.png"]),
    (["../img/1.png", "1.png"], ["img/1.png", "other/1.png"], ["../img/1.png", "1.png"]),
    (["camA/1.png"], ["camA/1.png", "camB/1.png"], ["camA/1.png", None]),
    (["CamA/1%20a.JPG"], ["camA/1 a.jpeg"], ["CamA/1%20a.JPG"]),
    (["1.PNG", "1.png"], ["1.png"], ["1.png"]),
    (["w?.png"], ["w?.png"], ["w?.png"]),
    (["https://host/camA/1.png?v=2"], ["camA/1.png"], ["https://host/camA/1.png?v=2"]),
    (["im\u00e9.png"], ["ime\u0301.png", "new.png"], ["im\u00e9.png", None]),
    (["camA/1.png", "camB/1.png"], ["x/1.png"], r"truth.json, .*x/1\.png could be .* or .*\. Let"),
    (["1.png"], ["camA/1.png", "camB/1.png"], r"image .* could be .*camA/1\.png or .*camB/1\.png"),
    (["a.png"], ["b.png"], r"none of the 1 images is in .*truth\.json, which names .*'a\.png'"),
]


@pytest.mark.parametrize("ids", [[70, 9], ["0009", "x"], [2**70, 3]])
@pytest.mark.parametrize(("names", "inputs", "expected"), IDS)
def test_ids_of_images_are_those_of_the_longest_path(
    tmp_path, caplog, ids, names, inputs, expected
):
    listed = {name: id for name, id in zip(names, ids, strict=False)}
    images = [{"id": id, "file_name": name} for name, id in listed.items()]
    (tmp_path / "truth.json").write_text(json.dumps({"images": images}), encoding="utf-8-sig")
    files = [tmp_path / "photos" / name for name in inputs]
    if isinstance(expected, str):
        with pytest.raises(GnwsError, match=expected):
            ImageIds(str(tmp_path / "truth.json"), files)
        return
    found = ImageIds(str(tmp_path / "truth.json"), files)
    new = max([0, *(id for id in listed.values() if isinstance(id, int))]) + 1
    assert [found.of(frame(file)) for file in files] == [listed.get(name, new) for name in expected]
    assert (f"1 images are not in {tmp_path}" in caplog.text) == (None in expected)


@pytest.mark.parametrize("ids", [[1, 2], [17, 18], [18, 17]])
def test_detections_score_against_the_dataset_s_own_file(tmp_path, monkeypatch, ids):
    """COCO's evaluation finds each of them right, whatever ids its classes and images have."""
    monkeypatch.setattr(Stub, "category_ids", ids)
    annotation = {"category_id": ids[1], "bbox": [0, 0, 30, 9], "area": 270, "iscrowd": 0}
    classes = zip(ids, Stub.classes, strict=True)
    truth = {
        "images": [{"id": n, "file_name": f"{n}.png", "width": 60, "height": 40} for n in (70, 9)],
        "categories": [{"id": id, "name": name} for id, name in classes],
        "annotations": [{**annotation, "id": n, "image_id": n} for n in (70, 9)],
    }
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    files = [tmp_path / name for name in ("9.png", "70.png")]
    written = Results(Stub(), tmp_path, ImageIds(str(tmp_path / "truth.json"), files))
    for file in files:
        written.add(frame(file))
    written.write()
    found = json.loads((tmp_path / "detections.json").read_text())
    assert found["categories"] == truth["categories"] and found["annotations"][0]["area"] == 270
    coco = COCO(tmp_path / "truth.json")
    evaluation = COCOeval(coco, coco.loadRes(found["annotations"]), "bbox")
    evaluation.evaluate(), evaluation.accumulate(), evaluation.summarize()
    assert evaluation.stats[0] == pytest.approx(1)


@pytest.fixture
def detect(predictor, tmp_path):
    """``detect(config, *opts)``: what the model finds in an image, and the folder of its results,
    which has the drawn image."""

    def make(name, *opts):
        model, folder, image = predictor(name, *opts), tmp_path / "found", frame(tmp_path / "a.png")
        model.set_score_threshold(0.05)
        written = Results(model, folder)
        written.add(image), written.write()
        assert (folder / "a.png.png").exists()
        return model(image.bgr), folder

    return make


def test_instances_have_the_area_of_their_masks(detect):
    _, folder = detect("mask_rcnn_R_18_FPN_gn_ws")
    annotations = json.loads((folder / "detections.json").read_text())["annotations"]
    areas = [rle.decode(annotation["segmentation"]).sum() for annotation in annotations]
    assert areas and [annotation["area"] for annotation in annotations] == areas


@pytest.mark.parametrize("opts", [[], ["DATASETS.TRAIN", "()", "DATASETS.TEST", "()"]])
def test_semantic_results(detect, opts):
    found, folder = detect("semantic_R_18_FPN_gn_ws", *opts)
    labels = np.asarray(Image.open(folder / "labels" / "a.png.png"))
    assert labels.dtype == np.uint8
    assert np.array_equal(labels, found["sem_seg"].argmax(0).numpy())


def test_panoptic_results(detect):
    overlaps = ["MODEL.PANOPTIC_FPN.COMBINE.OVERLAP_THRESH", "1.0"]
    found, folder = detect("panoptic_fpn_R_18_gn_ws", *overlaps)
    segments, infos = found["panoptic_seg"]
    colors = np.asarray(Image.open(folder / "panoptic" / "a.png.png")).astype(int)
    assert np.array_equal(colors @ [1, 256, 65536], segments.numpy())
    content = json.loads((folder / "panoptic.json").read_text())
    known = {(category["id"], category["isthing"]) for category in content["categories"]}
    [annotation] = content["annotations"]
    assert annotation["file_name"] == "a.png.png" and len(infos) > 0
    assert [s["id"] for s in annotation["segments_info"]] == [info["id"] for info in infos]
    for segment in annotation["segments_info"]:
        assert segment["area"] == (segments == segment["id"]).sum()
        assert (segment["category_id"], segment["isthing"]) in known


def test_what_was_found_waits_in_lines_on_the_disk_and_not_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "draw", lambda bgr, *_, **__: bgr)
    written, (_, most) = Results(Stub(), tmp_path), resource.getrlimit(resource.RLIMIT_FSIZE)
    tracemalloc.start()
    for number in range(800):
        written.add(frame(Path("clip.mp4"), number), in_video=True)
    grown = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    [lines] = tmp_path.iterdir()
    size = lines.stat().st_size
    assert size > 5 * grown
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, most))
    try:
        with pytest.raises(FileError, match=r"jsonl cannot be written .*large"):
            written.add(frame(Path("clip.mp4"), 800), in_video=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    found = list(map(json.loads, lines.read_text().splitlines()[:1600]))
    written.write()
    content = json.loads((tmp_path / "detections.json").read_text())
    assert [a["image_id"] for a in content["annotations"]] == list(range(1, 802))
    for kind in ("images", "annotations"):
        assert content[kind][:800] == [one[kind] for one in found if kind in one]
    assert not lines.exists()


def test_on_a_full_disk_what_was_detected_takes_the_place_of_images(tmp_path, monkeypatch):
    written, output = Results(Stub(), tmp_path / "found"), tmp_path / "found"
    for name in "abc":
        written.add(frame(tmp_path / f"{name}.png"))
    opened, full = Path.open, OSError(errno.ENOSPC, "No space left on device")

    def open_(file, *how, **options):
        if (output / "b.png.png").exists():
            raise full
        return opened(file, *how, **options)

    monkeypatch.setattr(Path, "open", open_)
    written.write()
    assert sorted(f.name for f in output.iterdir()) == ["a.png.png", "detections.json"]
    assert len(json.loads((output / "detections.json").read_text())["images"]) == 3

    monkeypatch.setattr(Image.Image, "save", Mock(side_effect=full))
    written = Results(Stub(), output)
    with pytest.raises(FileError, match=r"d\.png\.png cannot be written .*Make room"):
        written.add(frame(tmp_path / "d.png"))
    assert not (output / "d.png.png").exists()
    # A disk that is not full, but cannot be used.
    read_only = OSError(errno.EROFS, "Read-only file system")
    monkeypatch.setattr(Path, "open", Mock(side_effect=read_only))
    with pytest.raises(FileError, match="Read-only"):
        written.write()
    assert (output / "a.png.png").exists()


@pytest.fixture
def clip(tmp_path):
    """A video of 8 frames, in which a white square moves right by 6 pixels a frame."""
    file = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(file), cv2.VideoWriter.fourcc(*"MJPG"), 12.0, (96, 64))
    for left in range(0, 48, 6):
        image = Image.new("RGB", (96, 64))
        ImageDraw.Draw(image).rectangle((left, 20, left + 20, 40), fill="white")
        writer.write(np.asarray(image))
    writer.release()
    return file


def test_a_video(predictor, clip, tmp_path, capfd):
    model, output = predictor(), tmp_path / "found"
    output.mkdir()
    written = Results(model, output)
    demo.run_on_video(str(clip), is_live=False, results=written, interrupted=[])
    written.write()
    assert sorted(f.name for f in output.iterdir()) == ["clip.avi.webm", "detections.json"]
    assert "OpenCV" not in capfd.readouterr().err
    with video.opened(str(output / "clip.avi.webm")) as capture:
        assert int(capture.get(cv2.CAP_PROP_FOURCC)) == cv2.VideoWriter.fourcc(*"VP80")
        assert video.frames_per_second(capture) == pytest.approx(12)
        drawn = list(video.frames(capture, clip))
    assert [f.bgr.shape for f in drawn] == [(64, 96, 3)] * 8
    content = json.loads((output / "detections.json").read_text())
    assert [image["frame"] for image in content["images"]] == list(range(8))
    with video.opened(str(clip)) as capture:
        fifth = list(video.frames(capture, clip))[5]
    assert fifth.bgr[30, 40].min() > 200 > 50 > fifth.bgr[30, 5].max()  # the square is there
    expected = model(fifth.bgr)["instances"]
    ours = [a["score"] for a in content["annotations"] if a["image_id"] == 6]
    assert ours == pytest.approx(expected.scores.tolist())


def test_a_camera_is_shown_until_esc(clip, tmp_path, monkeypatch):
    """A file stands for the camera; and without a window, frames are written all the same."""
    (tmp_path / "found").mkdir()
    shown, keys = [], [0, 0, video.ESCAPE]

    def show(name, bgr):
        if not keys:
            raise cv2.error("The function is not implemented")
        shown.append(bgr.shape)

    monkeypatch.setattr(cv2, "imshow", show)
    monkeypatch.setattr(cv2, "waitKey", lambda delay: keys.pop(0))
    for expected in (3, 8):
        written = Results(Stub(), tmp_path / "found")
        demo.run_on_video(str(clip), is_live=True, results=written, interrupted=[])
        assert written.detections.images == expected and shown == [(64, 96, 3)] * 3
    with video.opened(str(tmp_path / "found" / "webcam_clip.avi.webm")) as capture:
        last = list(video.frames(capture, clip))[7].bgr
    assert last[30, 55].min() > 200 > 50 > last[30, 85].max()  # the square, beside the box


def test_a_video_that_cannot_be_read_is_named(tmp_path, clip):
    written = Results(Stub(), tmp_path)
    for name, message in (("no.mp4", "is not a file"), ("text.mp4", "cannot be opened")):
        (tmp_path / "text.mp4").write_text("no video")
        with pytest.raises(GnwsError, match=rf"{name} {message}"):
            demo.run_on_video(str(tmp_path / name), is_live=False, results=written, interrupted=[])
    cut = tmp_path / "cut.avi"
    shutil.copy(clip, cut)
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size * 3 // 4])
    demo.run_on_video(str(cut), is_live=False, results=written, interrupted=[])  # as far as it goes
    assert 0 < written.detections.images < 8


def test_find_files(tmp_path, monkeypatch):
    for name in ("a.png", "b.JPG", "c.heic", "d.dng", "labels.json", "notes.txt", "sub/e.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    inputs = [str(tmp_path), f"{tmp_path}/*.txt", f"{tmp_path}/no*.gif", f"{tmp_path}/**/e.png"]
    monkeypatch.chdir(tmp_path)
    found = [f.name for f in find_files([*inputs, f"{tmp_path}/*/", "./a.png", "a.png"])]
    images = ["a.png", "b.JPG", "c.heic", "d.dng"]
    assert found == [*images, "notes.txt", "no*.gif", "e.png"]
