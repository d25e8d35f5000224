"""Commands end in one line on an expected error, and show the traceback where asked to."""

import logging
import os
from pathlib import Path

import processes
import pytest
import torch

from gnws.arguments import parse
from gnws_d2.errors import (
    CheckpointError,
    ConfigError,
    DatasetError,
    FileError,
    GnwsError,
    one_line_errors,
    shorten,
)
from gnws_d2.model_zoo.published import published

PROJECTS = Path(__file__).parents[1] / "projects"
DIGITS = "Digits/mask_rcnn_R_18_FPN_gn_ws.yaml"
NO_FOLDER = {"GNWS_D2_CACHE": "/dev/null/cache"}


@pytest.fixture(autouse=True)
def no_debugging(monkeypatch):
    monkeypatch.delenv("GNWS_D2_DEBUG", raising=False)


def test_errors_are_builtin_exceptions_too():
    for kind, builtin in (
        (ConfigError, ValueError),
        (DatasetError, ValueError),
        (CheckpointError, RuntimeError),
        (FileError, OSError),
    ):
        assert issubclass(kind, GnwsError) and issubclass(kind, builtin)


def test_a_text_in_a_message_is_short_and_harmless():
    assert shorten("a\n  b\x1b[2J\0", quote=False) == r"a b\x1b[2J\x00"
    assert len(shorten("x" * 10**6, quote=False)) < 500
    assert len(shorten({"x" * 10**6: [["y" * 10**6] * 10**6]})) < 500


def failing(error: Exception, *also: type[Exception]) -> None:
    with one_line_errors(*also):
        raise error


def test_an_expected_error_is_one_line():
    with pytest.raises(SystemExit, match=r"^error: first second$"):
        failing(ConfigError("first\n  second"))
    with pytest.raises(SystemExit, match="full"):
        failing(OSError("full"), OSError)


def test_any_other_error_is_raised():
    with pytest.raises(OSError, match="full"):
        failing(OSError("full"))


def test_the_debug_flag_raises_the_error(monkeypatch):
    monkeypatch.setenv("GNWS_D2_DEBUG", "0")
    parse("report", ["--output-dir", "x"])
    with pytest.raises(SystemExit):
        failing(ConfigError("wrong"))
    parse("report", ["--output-dir", "x", "--debug"])
    with pytest.raises(ConfigError):
        failing(ConfigError("wrong"))


class Broken(torch.utils.data.Dataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        raise DatasetError("0.png cannot be used")


def test_the_traceback_of_a_loader_s_worker_is_left_out():
    with pytest.raises(SystemExit, match=r"^error: 0\.png cannot be used$"), one_line_errors():
        next(iter(torch.utils.data.DataLoader(Broken(), num_workers=1)))


def test_the_training_loop_logs_no_traceback_of_it(caplog):
    loop = logging.getLogger("detectron2.engine.train_loop")
    loop.addHandler(caplog.handler)
    try:
        for error in (ConfigError("expected"), RuntimeError("unexpected")):
            with pytest.raises((SystemExit, RuntimeError)), one_line_errors():
                try:
                    raise error
                except Exception:
                    loop.exception("Exception during training:")
                    raise
    finally:
        loop.removeHandler(caplog.handler)
    assert "unexpected" in caplog.text and "ConfigError" not in caplog.text
    assert not loop.filters


FCOS = "Digits/fcos_R_18_FPN_gn_ws.py"
# name -> (words of the command, environment, what its last line says)
COMMANDS = {
    "a config, train_net.py": (
        ["train_net.py", "--config-file", DIGITS, "SOLVER.MAX_ITERS", "3"],
        {},
        ["the config has no key SOLVER.MAX_ITERS. Did you mean SOLVER.MAX_ITER"],
    ),
    "a checkpoint, train_net.py": (
        ["train_net.py", "--eval-only", "--config-file", DIGITS, "MODEL.WEIGHTS", "cut_off.pth"],
        {},
        ["cut_off.pth", "it is damaged, cut off"],
    ),
    "an override, lazyconfig_train_net.py": (
        ["lazyconfig_train_net.py", "--config-file", FCOS, "train.max_itre=3"],
        {},
        ["the config has no key train.max_itre. Did you mean train.max_iter"],
    ),
    "a download, demo.py": (
        ["demo.py", "--config-file", DIGITS, "--input", "."]
        + ["--opts", "MODEL.WEIGHTS", "gnws://imagenet/resnet50_gn_ws"],
        {"GNWS_D2_MIRROR": "."},
        ["its SHA-256 does not begin with 15beedd8", "$GNWS_D2_MIRROR"],
    ),
    "a folder, run_demo.py": (["run_demo.py"], NO_FOLDER, ["The cache folder /dev/null/cache"]),
    "a checkpoint, conversion": (
        ["-m", "gnws.main", "convert-weights", "none.pth", "new.pth"],
        {},
        ["none.pth does not exist"],
    ),
    "a name, model zoo": (
        ["-m", "gnws.main", "zoo", "prefetch", "resnet50"],
        {},
        ["No published checkpoint is called 'resnet50'"],
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize(("words", "environment", "said"), COMMANDS.values(), ids=COMMANDS)
def test_a_command_ends_in_one_line(tmp_path, words, environment, said):
    torch.save({"model": {"weight": torch.zeros(10_000)}}, tmp_path / "whole.pth")
    (tmp_path / "cut_off.pth").write_bytes((tmp_path / "whole.pth").read_bytes()[:20_000])
    for entry in published():
        (tmp_path / entry.file_name).touch()
    if words[0].endswith(".py"):
        [script] = PROJECTS.glob(f"*/{words[0]}")
        words = [script, *words[1:]]
    environment = {**os.environ, "GNWS_D2_CACHE": str(tmp_path / "cache"), **environment}
    done = processes.run(*words, cwd=tmp_path, env=environment)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stdout + done.stderr, done.stdout + done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ") and all(text in last for text in said), done.stderr
