"""Commands end in one line on an expected error, and show the traceback where asked to."""

import logging

import pytest
import torch

from gnws.arguments import parse
from gnws_d2.errors import ConfigError, DatasetError, one_line_errors, shorten


@pytest.fixture(autouse=True)
def no_debugging(monkeypatch):
    monkeypatch.delenv("GNWS_D2_DEBUG", raising=False)


def test_a_text_in_a_message_is_short_and_harmless():
    assert shorten("a\n  b\x1b[2J\0", quote=False) == r"a b\x1b[2J\x00"
    assert len(shorten("x" * 10**6, quote=False)) < 510
    assert len(shorten({"x" * 10**6: [["y" * 10**6] * 10**6]})) < 510


def failing(error: Exception, *also: type[Exception]) -> None:
    with one_line_errors(*also):
        raise error


def test_an_expected_error_is_one_line_and_any_other_is_raised():
    with pytest.raises(SystemExit, match=r"^error: first second$"):
        failing(ConfigError("first\n  second"))
    with pytest.raises(SystemExit, match="full"):
        failing(OSError("full"), OSError)
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
