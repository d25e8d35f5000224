"""Objects of a made-up video keep their numbers."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import Metadata
from detectron2.structures import Boxes, Instances

from gnws.arguments import parse
from gnws_d2.errors import ConfigError
from gnws_d2.projects.detection import demo
from gnws_d2.projects.detection.inputs import Frame
from gnws_d2.projects.detection.results import Results
from gnws_d2.projects.detection.tracking import LOST, Tracks

SIZE = 240, 320  # height and width


def instances(boxes, classes):
    found = Instances(SIZE, pred_boxes=Boxes(torch.tensor(boxes).reshape(-1, 4).float()))
    found.pred_classes, found.scores = torch.tensor(classes).long(), torch.ones(len(classes))
    return found


def number(tracks, boxes, classes=None):
    return tracks.number(instances(boxes, classes or [0] * len(boxes))).tolist()


def test_moving_objects_in_any_order_that_are_missed_now_and_then():
    """Two rows that pass each other, of 12 objects, each missed in a tenth of the frames."""
    random, tracks, numbers = np.random.default_rng(0), Tracks(*SIZE[::-1]), {}
    for time in range(50):
        seen = [k for k in random.permutation(12).tolist() if random.random() > 0.1]
        lefts = [10 + 4 * time + 9 * (k % 3) if k % 2 else 250 - 4 * time for k in seen]
        tops = [18 * k for k in seen]
        noise = random.normal(0, 0.5, (len(seen), 4))
        boxes = [[x, y, x + 40, y + 17] for x, y in zip(lefts, tops, strict=True)] + noise
        for k, found in zip(seen, number(tracks, boxes.tolist()), strict=True):
            numbers.setdefault(k, set()).add(found)
    assert sorted(number for [number] in numbers.values()) == list(range(12))


def test_another_place_or_class_is_another_object_and_so_is_one_that_was_long_away():
    tracks, here, there = Tracks(*SIZE[::-1]), [10, 10, 50, 50], [200, 10, 240, 50]
    assert number(tracks, [here]) == [0]
    assert number(tracks, [there]) == [1]
    assert number(tracks, [there, here, here], [0, 0, 1]) == [1, 0, 2]
    for _ in range(LOST):
        assert number(tracks, []) == []
    assert number(tracks, [here]) == [0]
    for _ in range(LOST + 1):
        number(tracks, [])
    assert number(tracks, [here]) == [3]
    # The nearer of two, though the other comes first.
    near = [12, 10, 52, 50]
    assert number(tracks, [[20, 10, 60, 50], near]) == [4, 3]


class Still:
    classes, category_ids, channels = ["a", "b"], [5, 6], 3
    metadata = Metadata(thing_classes=classes)

    def __call__(self, image):
        return {"instances": instances([[9, 9, 60, 60], [90, 90, 200, 200]], [0, 1])}


def test_the_numbers_are_written_and_drawn(tmp_path):
    drawn = []
    for tracks in (None, Tracks(*SIZE[::-1])):
        written = Results(Still(), tmp_path)
        written.tracks = tracks
        for time in range(3):
            frame = Frame(Path("clip.mp4"), np.zeros((*SIZE, 3), np.uint8), time)
            drawn.append(written.add(frame, in_video=True))
        written.write()
        found = json.loads((tmp_path / "detections.json").read_text())["annotations"]
        assert [a.get("track_id") for a in found] == [None] * 6 if tracks is None else [0, 1] * 3
    assert np.abs(drawn[0].astype(int) - drawn[3]).sum() > 1000
    assert np.array_equal(drawn[3], drawn[5])


@pytest.mark.parametrize("words", [["--input", "a.png"], ["--video-input", "a.mp4", "--tile=64"]])
def test_images_and_tiles_are_refused(words):
    args = parse(words=["predict", "--weights", "w.pth", *words, "--track"])
    with pytest.raises(ConfigError, match=r"--track follows .* --video-input, and leave out"):
        demo.run(args)
