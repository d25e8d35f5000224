"""``report.py`` and ``browse.py`` as their users run them, and the images of a training."""

import json
from pathlib import Path

import processes
import pytest
from coco_cases import jittered
from PIL import Image
from pycocotools.coco import COCO
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny import FEW_PROPOSALS, TINY

import gnws_d2
from gnws_d2.errors import DatasetError
from gnws_d2.projects.detection.train_net import Trainer
from gnws_d2.projects.report import report_run

REPORT = processes.ROOT / "projects" / "Report"
CONFIG = "Digits/mask_rcnn_R_18_FPN_gn_ws.yaml"
FLIP = ("INPUT.RANDOM_FLIP", "horizontal")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def source(tiny_digits) -> str:
    """Digits' validation images by the name of their file."""
    return f"{tiny_digits / 'digits_val.json'}={tiny_digits / 'val'}"


def test_browse_shows_augmented_images_the_same_each_time(source, tmp_path):
    def browse(name: str, *words: str) -> dict[str, bytes]:
        done = processes.run(
            *(REPORT / "browse.py", "--config-file", CONFIG, "--output", tmp_path / name),
            *("--num", "3", "--train", source, *words),
        )
        assert done.returncode == 0, done.stderr
        return {file.name: file.read_bytes() for file in (tmp_path / name).iterdir()}

    opts = (*TINY, "MODEL.DEVICE", "cpu")
    drawn = browse("one", *opts, *FLIP)
    assert len(drawn) == 4 and "sheet.jpg" in drawn
    assert Image.open(tmp_path / "one" / "sheet.jpg").size == (3 * 320, 320)
    assert browse("two", *opts, *FLIP) == drawn
    for name, others in (("seed", (*FLIP, "SEED", "8")), ("as it is", ())):
        assert browse(name, *opts, *others)["sheet.jpg"] != drawn["sheet.jpg"]
    # Without --val a fifth of the images is the test split.
    assert len(browse("test", "--split", "test", *opts)) == 2


def test_a_training_gives_tensorboard_images_and_its_report_can_be_written_again(
    tiny_config, tiny_digits, source
):
    cfg = tiny_config(CONFIG, *FEW_PROPOSALS, "TEST.EVAL_PERIOD", "2")
    Trainer(cfg).train()
    output = Path(cfg.OUTPUT_DIR)

    events = EventAccumulator(str(output), size_guidance={"images": 0}).Reload()
    tags = [f"tiny_digits_val/{i}" for i in range(4)]
    assert events.Tags()["images"] == tags
    for tag in tags:
        assert [event.step for event in events.Images(tag)] == [1, 4]
        assert events.Images(tag)[0].width == 2 * 540 + 8

    # A detector of four iterations finds nothing, so that there would be little to see.
    results = output / "inference" / "coco_instances_results.json"
    results.write_text(json.dumps(jittered(COCO(tiny_digits / "digits_val.json"))))
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = (source,)
    cfg.TEST.KEYPOINT_OKS_SIGMAS = [0.05] * 4
    (output / "config.yaml").write_text(cfg.dump())
    done = processes.run(REPORT / "report.py", "--output-dir", output, "--images", "1")
    assert done.returncode == 0, done.stderr
    page = (output / "report" / "report.html").read_text()
    assert "model_best.pth" in page and "Learning rate" in page and "Keypoint AP" in page


def test_a_folder_without_a_run_says_so(tmp_path):
    done = processes.run(REPORT / "report.py", "--output-dir", tmp_path)
    assert done.returncode == 1 and done.stderr.splitlines()[-1].startswith("error: ")
    assert "config.yaml does not exist" in done.stderr


def test_data_that_is_gone_is_named(tmp_path):
    name = str(tmp_path / "gone" / "mine.json")
    cfg = gnws_d2.load_config(CONFIG, ["DATASETS.TEST", repr((name,)), "OUTPUT_DIR", str(tmp_path)])
    (tmp_path / "inference").mkdir()
    (tmp_path / "inference" / "coco_instances_results.json").write_text("[]")
    with pytest.raises(DatasetError, match=r"mine\.json does not exist"):
        report_run(cfg)
