"""What a tracker is sent of a training."""

import json
import logging
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from detectron2.utils.events import EventStorage

from gnws.arguments import parse
from gnws_d2.errors import ConfigError
from gnws_d2.projects.detection.trackers import TrackerWriter, open_tracker


def write(writer: TrackerWriter, iterations: range) -> None:
    """An evaluation after each second iteration, and writing after each third."""
    with EventStorage(iterations[0]) as storage:
        for storage.iter in iterations:
            storage.put_scalar("total_loss", float(storage.iter), cur_iter=storage.iter)
            if storage.iter % 2:
                storage.put_scalars(**{"bbox/AP-a (b)": 7.0}, smoothing_hint=False)
            if storage.iter % 3 == 2:
                writer.write()
        writer.write()


def test_each_value_is_sent_once_in_order():
    sent = []
    writer = TrackerWriter("wandb", lambda values, step: sent.append((step, values)), sent.clear)
    write(writer, range(6))
    # The loss is the median so far; what has not changed since the last writing is not sent.
    assert sent == [
        *[(1, {"bbox/AP-a _b_": 7.0}), (2, {"total_loss": 1.0})],
        (5, {"total_loss": 2.5, "bbox/AP-a _b_": 7.0}),
    ]
    writer.close()
    assert not sent


def test_a_tracker_that_fails_does_not_end_the_training(caplog):
    calls = []

    def fail(values, step):
        calls.append(step)
        raise ConnectionError("no network")

    writer = TrackerWriter("mlflow", fail, lambda: calls.append("end"))
    write(writer, range(9))
    writer.close()
    assert calls == [1]
    (record,) = [r for r in caplog.records if r.levelno == logging.WARNING]
    assert record.getMessage() == "mlflow fails (no network): nothing more is written there."


def test_a_resumed_run_goes_on_where_it_was(tiny_config, monkeypatch):
    cfg, opened = tiny_config(), []

    def init(**arguments):
        opened.append(arguments)
        return SimpleNamespace(id=arguments["id"] or f"run{len(opened)}", log=None, finish=None)

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    Path(cfg.OUTPUT_DIR).mkdir()
    for resume in (False, True, False):
        open_tracker("wandb", cfg, resume)
    assert [(a["id"], a["resume"]) for a in opened] == [
        (None, None),
        ("run1", "allow"),
        (None, None),
    ]
    assert opened[0]["name"] == "output" and opened[0]["config"]["SOLVER.MAX_ITER"] == 4
    stored = json.loads(Path(cfg.OUTPUT_DIR, "trackers.json").read_text())
    assert stored == {"wandb": "run3"}


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_package_and_a_refusal_are_one_line(tiny_config, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=rf"--logger {name} needs .* pip install {name}"):
        open_tracker(name, tiny_config(), False)

    def refuse(*args, **kwargs):
        raise RuntimeError("no key\nof yours")

    monkeypatch.setitem(sys.modules, name, SimpleNamespace(init=refuse, start_run=refuse))
    with pytest.raises(ConfigError, match=rf"--logger {name} cannot be used: no key"):
        open_tracker(name, tiny_config(), False)


def test_a_lazy_config_refuses_it(capsys):
    with pytest.raises(SystemExit):
        parse(words=["train", "--config-file", "a.py", "--logger", "wandb"])
    assert "--logger is for YAML configs" in capsys.readouterr().err
    assert parse(words=["train", "--logger", "wandb", "mlflow"]).logger == ["wandb", "mlflow"]
