"""The commands as functions: in one process again and again, and in two."""

import json
import logging
import os
import signal
import sys
from pathlib import Path

import pytest
from detectron2.utils.logger import setup_logger
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tiny import FEW_PROPOSALS, TINY

import gnws_d2
from gnws_d2.errors import CheckpointError, ConfigError, DatasetError, GnwsError
from gnws_d2.projects.detection import train_net
from gnws_d2.projects.export import load_exported

sys.path.append(str(Path(__file__).parents[1] / "own_data"))
from coco_files import forget_sources, make_coco  # noqa: F401

RCNN = "mask_rcnn_R_18_FPN_gn_ws"


@pytest.fixture(autouse=True)
def loggers():
    """Those of a command do not propagate, which later tests read."""
    found = [logging.getLogger(name) for name in ("detectron2", "fvcore", "gnws_d2")]
    before = [([*logger.handlers], logger.propagate) for logger in found]
    yield
    setup_logger.cache_clear()
    for logger, (handlers, propagates) in zip(found, before, strict=True):
        logger.handlers, logger.propagate = handlers, propagates


@pytest.mark.slow
def test_an_evaluation_in_one_and_two_processes_finds_what_pycocotools_does(
    checkpoint, digits, tmp_path
):
    """Against boxes that are there, and others that are not."""
    weights, images = checkpoint(RCNN), sorted((digits / "val").glob("*.png"))
    found = gnws_d2.predict(weights, images[:3], output=tmp_path / "found", threshold=0.05)
    assert found == json.loads((tmp_path / "found" / "detections.json").read_text())
    truth = {**found, "annotations": found["annotations"][1::2]}
    truth["images"] = [{**i, "file_name": Path(i["file_name"]).name} for i in found["images"]]
    file = tmp_path / "truth.json"
    file.write_text(json.dumps(truth))
    scored = COCOeval(COCO(str(file)), COCO(str(file)).loadRes(found["annotations"]), "bbox")
    scored.evaluate(), scored.accumulate(), scored.summarize()
    assert 10 < 100 * scored.stats[0] < 99
    classes = {"DATASETS.CLASSES": list("0123456789")}
    for processes in (1, 2):
        options = {"output": tmp_path / str(processes), "num_gpus": processes}
        source = f"{file}={digits / 'val'}"
        outcome = gnws_d2.evaluate(weights, test=source, overrides=classes, **options)
        results = outcome.results[f"{tmp_path.name}/truth.json"]
        assert results["bbox/AP"] == pytest.approx(100 * scored.stats[0], abs=1e-3)
        assert results["bbox/AP50"] == pytest.approx(100 * scored.stats[1], abs=1e-3)
        (page,) = outcome.reports
        assert page == options["output"] / "report" / "report.html"
        summary = json.loads(page.with_suffix(".json").read_text())
        assert outcome.threshold == summary["score_threshold"] > 0


@pytest.mark.slow
def test_trainings_follow_each_other_in_a_process(tmp_path, monkeypatch, capsys):
    make_coco(tmp_path, images=6)
    words = [*TINY, *FEW_PROPOSALS, "MODEL.DEVICE", "cpu", "SOLVER.MAX_ITER", "2"]
    overrides = dict(zip(words[::2], words[1::2], strict=True))
    del overrides["SEED"]

    class Scored(train_net.Trainer):
        @classmethod
        def test(cls, cfg, model, evaluators=None):
            if not values:
                os.kill(os.getpid(), signal.SIGINT)  # as Ctrl-C
            return {"bbox": {"AP": 1.5}, "segm": {"AP": values.pop(0) if values else 0.0}}

    monkeypatch.setattr(train_net, "Trainer", Scored)
    monkeypatch.chdir(tmp_path)
    best, last = {"TEST.EVAL_PERIOD": 1}, {"TEST.EVAL_PERIOD": 2, "TEST.BEST_METRIC": ""}
    values = [3.0, 4.0, 4.0, 3.0, 5.0, 6.0]  # the best of the second is evaluated once more
    for folder, weights, ap, more in (
        ("output/mine", "model_best.pth", 4.0, best),
        ("output/mine-2", "model_best.pth", 5.0, best),
        ("output/mine-3", "model_final.pth", 6.0, last),
    ):
        outcome = gnws_d2.train(".", name="mine", seed=3, overrides={**overrides, **more})
        assert outcome.weights == f"{folder}/{weights}" and outcome.output == Path(folder)
        assert list(outcome.results.values()) == [{"bbox/AP": 1.5, "segm/AP": ap}]
        said = capsys.readouterr().out.splitlines()
        assert sum(f"Results of {folder}" in line for line in said) == 1
        assert f"Results of {folder}" in (tmp_path / folder / "log.txt").read_text()
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        gnws_d2.train(".", output="stopped", overrides={**overrides, **best})
    assert Path("stopped/last_checkpoint").read_text() == "model_0000000.pth"
    assert signal.getsignal(signal.SIGINT) is handler


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda: gnws_d2.train("none"), DatasetError, "none: no such folder"),
        (lambda: gnws_d2.train("none", epoch_s=3), ConfigError, "Did you mean --epochs?"),
        (
            lambda: gnws_d2.train(epochs=3, overrides={"SOLVER.EPOCHS": 4}),
            ConfigError,
            "contradict",
        ),
        (lambda: gnws_d2.train("none", num_gpus=0), GnwsError, "--num-gpus is 0"),
        (lambda: gnws_d2.evaluate("none.pth"), CheckpointError, "none.pth does not exist"),
        (lambda: gnws_d2.predict("none.pth", __file__), CheckpointError, "none.pth does not exist"),
        (lambda: gnws_d2.export("none.pth", __file__), CheckpointError, "none.pth does not exist"),
    ],
)
def test_an_error_is_raised_as_what_it_is(call, error, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=said) as raised:
        call()
    assert raised.type is error and not capsys.readouterr().err


@pytest.mark.slow
def test_an_export_is_named_by_its_format_or_refused(checkpoint, digits, tmp_path):
    weights, image = checkpoint(RCNN), digits / "val" / "000000.png"
    options = {"output": tmp_path, "format": ["torchscript-trace"]}
    ((name, file),) = gnws_d2.export(weights, [image], **options).items()
    assert name == "torchscript-trace"
    assert load_exported(file).facts["classes"] == list("0123456789")
    with pytest.raises(GnwsError, match="torchscript-trace: of 10 detections"):
        gnws_d2.export(weights, image, tolerance=-1.0, **options)  # that nothing keeps
    with pytest.raises(DatasetError, match="No image can be read"):
        gnws_d2.predict(weights, [tmp_path / "none.png"], output=tmp_path)
