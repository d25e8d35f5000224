"""What an evaluation leaves alone, and what the end of a training writes and says."""

import hashlib
import json
import sys
from pathlib import Path

import pytest
import torch
from detectron2.config import instantiate
from processes import run
from pycocotools.coco import COCO
from tiny import FEW_PROPOSALS
from trainings import TRAIN_NET

from gnws.arguments import parse
from gnws_d2 import Predictor
from gnws_d2.checkpoint import Checkpointer
from gnws_d2.projects.detection import demo, train_net
from gnws_d2.projects.detection.defaults import evaluation_folder
from gnws_d2.projects.detection.lazy_config import load_lazy_config

sys.path.append(str(Path(__file__).parents[1] / "report"))
from coco_cases import jittered


def files(folder: Path) -> dict[Path, str]:
    found = (file for file in folder.rglob("*") if file.is_file())
    return {f: hashlib.md5(f.read_bytes()).hexdigest() for f in found if "eval" not in f.parts}


@pytest.mark.slow
@pytest.mark.parametrize("resume", [False, True])
def test_an_evaluation_changes_no_run(unbroken, digits, tmp_path, resume):
    before = files(unbroken)
    words = ["--eval-only", "--weights", unbroken / "model_0000002.pth"]
    words += ["--test", f"{digits / 'digits_val.json'}={digits / 'val'}", "--resume"][: 2 + resume]
    if resume:
        words += ["--config-file", unbroken / "config.yaml", "OUTPUT_DIR", unbroken]
    done = run(TRAIN_NET, *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert files(unbroken) == before and not list(tmp_path.iterdir())
    assert f"written to {unbroken / 'eval'}." in done.stdout
    evaluated = unbroken / ("model_final.pth" if resume else "model_0000002.pth")
    config = (unbroken / "eval" / "config.yaml").read_text()
    assert f"WEIGHTS: {evaluated}" in config and f"Results of {evaluated}" in done.stdout
    assert (unbroken / "eval" / "inference" / "coco_instances_results.json").exists()
    assert "Evaluating predictions" in (unbroken / "eval" / "log.txt").read_text()


@pytest.mark.slow
def test_an_evaluation_of_a_lazy_config_changes_no_run(digits, tmp_path):
    """With Detectron2's evaluator, whose folder is that of the run."""
    name, output = "Digits/fcos_R_18_FPN_gn_ws.py", f"train.output_dir={tmp_path}"
    model = instantiate(load_lazy_config(name).model)
    Checkpointer(model, str(tmp_path)).save("model_0000001")
    before = files(tmp_path)
    target = "detectron2.evaluation.COCOEvaluator"
    opts = [
        f"dataloader.evaluator._target_={target}",
        f"+dataloader.evaluator.output_dir={tmp_path}",
    ]
    words = ["--eval-only", "--resume", "--config-file", name, output, "train.device=cpu", *opts]
    done = run(TRAIN_NET.with_name("lazyconfig_train_net.py"), *words)
    assert done.returncode == 0, done.stderr
    assert files(tmp_path) == before and (tmp_path / "eval" / "config.yaml").exists()
    assert (tmp_path / "eval" / "coco_instances_results.json").exists()


def test_the_folder_of_an_evaluation(tmp_path):
    assert evaluation_folder(str(tmp_path)) == str(tmp_path)
    assert evaluation_folder("output", is_chosen=False) == "output/eval"
    (tmp_path / "last_checkpoint").touch()
    assert evaluation_folder(str(tmp_path)) == str(tmp_path / "eval")


@pytest.mark.slow
@pytest.mark.parametrize("values", [[1.0, 2.0], [2.0, 1.0]], ids=["last is best", "first is best"])
def test_the_end_of_a_training(tiny_config, tiny_digits, monkeypatch, caplog, values):
    """Validation is evaluated once if the last checkpoint is the best, which carries the threshold
    that the report suggests, and is otherwise as it was saved."""
    opts = ["SOLVER.MAX_ITER", "2", "TEST.EVAL_PERIOD", "1"]
    cfg = tiny_config("Digits/mask_rcnn_R_18_FPN_gn_ws.yaml", *FEW_PROPOSALS, *opts)
    output, evaluated, saved = Path(cfg.OUTPUT_DIR), [], {}
    rows = jittered(COCO(tiny_digits / "digits_val.json"))

    class Scored(train_net.Trainer):
        @classmethod
        def test(cls, cfg, model, evaluators=None):
            results = output / "inference" / "coco_instances_results.json"
            results.parent.mkdir(exist_ok=True)
            results.write_text(json.dumps(rows))
            evaluated.append(cfg.DATASETS.TEST)
            if (output / "model_best.pth").exists():
                saved.update(torch.load(output / "model_best.pth", weights_only=True))
            return {"segm": {"AP": values[min(len(evaluated), 2) - 1]}}

    monkeypatch.setattr(train_net, "Trainer", Scored)
    caplog.set_level("INFO", logger="gnws_d2")
    train_net.train(parse("train", []), cfg, Scored(cfg))
    assert evaluated == [("tiny_digits_val",)] * (2 if values[1] > values[0] else 3)
    best = torch.load(output / "model_best.pth", weights_only=True)
    assert best["iteration"] == values.index(2.0)
    assert best.keys() == {"model", "gnws_d2", "iteration"}  # it is not resumed
    summary = json.loads((output / "report" / "report.json").read_text())
    threshold = best["gnws_d2"].pop("score_threshold")
    assert 0 < threshold == summary["score_threshold"] < 1
    assert (output / "last_checkpoint").read_text() == "model_final.pth"
    if values[1] > values[0]:
        final = torch.load(output / "model_final.pth", weights_only=True)
        saved = {**best, "model": final["model"], "gnws_d2": final["gnws_d2"]}
    assert saved["gnws_d2"].pop("score_threshold") is None
    assert best.pop("gnws_d2") == saved.pop("gnws_d2") and list(best) == list(saved)
    torch.testing.assert_close(best, saved, rtol=0, atol=0)

    [*_, end] = caplog.messages
    assert f"tiny_digits_val: segm/AP {values[1]}" in end
    assert f"{output / 'report' / 'report.html'}" in end and f"F1: {threshold:.2f}" in end
    assert end.endswith(f"gnws predict --weights {output / 'model_best.pth'} --input FOLDER")
    # And that command starts from it.
    words = ["--weights", str(output / "model_best.pth"), "--input", "a.png"]
    for more, expected in (([], threshold), (["--confidence-threshold", "0.3"], 0.3)):
        predictor = demo.make_predictor(parse("predict", [*words, *more]))
        assert predictor.model.roi_heads.box_predictor.test_score_thresh == expected
    assert f"scores from {threshold:.2f}, which the report suggests" in caplog.text
    own = Predictor(weights=output / "model_best.pth")
    assert own.model.roi_heads.box_predictor.test_score_thresh == 0.05
    assert own.suggested_threshold == threshold
