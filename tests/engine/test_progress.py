"""What a run shows: a bar on a terminal, plain lines elsewhere."""

import fcntl
import os
import pty
import re
import struct
import termios
import time
from pathlib import Path

import pytest
from processes import run, start
from tiny import FEW_PROPOSALS, TINY

ROOT = Path(__file__).parents[2]
PROGRAM = """
from detectron2.engine import TrainerBase
from detectron2.utils.logger import setup_logger
from gnws_d2.engine import FirstIterations, ProgressBar
class Quick(TrainerBase):
    def run_step(self):
        self.storage.put_scalar("total_loss", 40.0 - self.iter)
        if self.iter == 29:
            logger.info("a line of the log")
logger = setup_logger("output")
trainer = Quick()
trainer.register_hooks([FirstIterations(), ProgressBar(epoch=10)])
trainer.train(3, 40)
"""


def output(tmp_path: Path, **streams: str) -> None:
    program = tmp_path / "quick.py"
    program.write_text(PROGRAM)
    process = start(program, cwd=tmp_path, **streams)
    process.join(60)
    assert process.exitcode == 0


def iterations(text: str) -> list[int]:
    return [int(number) for number in re.findall(r" iter: (\d+) ", text)]


def test_the_first_iterations_are_shown_in_plain_lines(tmp_path):
    output(tmp_path, stdout=str(tmp_path / "out"), stderr=str(tmp_path / "err"))
    assert iterations((tmp_path / "out").read_text()) == [3, 4, 7, 12]
    assert (tmp_path / "err").read_text() == ""


def test_a_bar_on_a_terminal_leaves_the_lines_of_the_log_whole(tmp_path):
    main, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
    name = os.ttyname(terminal)
    output(tmp_path, stdout=name, stderr=name)
    time.sleep(0.1)
    shown = os.read(main, 100_000).decode()
    # Every line is a state of the bar, or one of the log alone.
    lines = [line for line in re.split(r"[\r\n]+", shown) if line.strip()]
    bars = [line for line in lines if "it/s" in line or "?it" in line]
    assert re.search(r"epoch 4\.0/4: 100%.* 40/40 .*loss 1\b", bars[-1]), bars
    assert sum("a line of the log" in line for line in lines) == 1
    assert not any("a line of the log" in line for line in bars)
    assert not iterations(shown)  # the bar says it
    log = (tmp_path / "output" / "log.txt").read_text()
    assert iterations(log) == [3, 4, 7, 12] and "\x1b" not in log


@pytest.mark.slow
def test_a_run_shows_few_lines_without_colours_and_warnings(tmp_path):
    words = [*TINY, *FEW_PROPOSALS, "SOLVER.MAX_ITER", "2", "DATALOADER.NUM_WORKERS", "1"]
    words += ["DATASETS.TEST", "()"]
    train_net = ROOT / "projects" / "Detection" / "train_net.py"
    config = ["--config-file", "Digits/mask_rcnn_R_18_FPN_gn_ws.yaml"]
    done = run(train_net, *config, "OUTPUT_DIR", tmp_path, *words, "MODEL.DEVICE", "cpu")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert len(done.stdout.splitlines()) < 60, done.stdout
    log = (tmp_path / "log.txt").read_text()
    assert "\x1b" not in log + done.stdout
    for text in ("MODEL:", "GeneralizedRCNN("):  # the file has everything
        assert text in log and text not in done.stdout
