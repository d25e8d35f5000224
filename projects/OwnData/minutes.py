"""How much training fits into a number of minutes, by running a few iterations before it."""

import tempfile
import time

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.utils import comm
from detectron2.utils.events import EventStorage

from gnws.upstream import quiet
from gnws_d2.checkpoint.resume import from_main_process
from gnws_d2.engine import Trainer
from gnws_d2.errors import ConfigError

MEASURED, WARM_UP = 8, 2  # iterations, of which the first are slower
LEAST = 10  # iterations that a training has
EVALUATIONS, SHARE = 10, 0.2  # in a run, and of its time, at most
FORWARD = 0.35  # of the time of a training step, for the loss alone, as with configs/Small
AROUND = 25.0  # seconds that a command takes to import and to write its reports, about


def within_minutes(cfg: CfgNode, began: float) -> tuple[int, int, str]:
    """The number of iterations and of evaluations that take SOLVER.MINUTES, and why.

    Args:
        began: when the command did, by ``time.monotonic``: reading the data counts.

    Raises:
        ConfigError: that is too short.
    """
    paces = seconds_of(cfg)  # in all processes, which wait for each other
    iteration, image = from_main_process(lambda: paces)
    world = comm.get_world_size()
    once, final = (
        image * sum(len(DatasetCatalog.get(name)) for name in names) / world
        for names in (cfg.DATASETS.TEST, cfg.DATASETS.FINAL_TEST)
    )
    again = once  # the best checkpoint, if it is not the last
    images = min(cfg.TEST.LOSS_IMAGES, sum(len(DatasetCatalog.get(n)) for n in cfg.DATASETS.TEST))
    once += FORWARD * iteration * images / cfg.SOLVER.IMS_PER_BATCH
    before = from_main_process(lambda: AROUND + time.monotonic() - began)
    left = 60 * cfg.SOLVER.MINUTES - before - final
    evaluations = int(min(max(SHARE * left / (once or 1), 1), EVALUATIONS))
    again *= evaluations > 1
    iterations = int((left - evaluations * once - again) / iteration)
    if iterations < LEAST:
        least = (before + final + once + LEAST * iteration) / 60
        raise ConfigError(
            f"SOLVER.MINUTES is {cfg.SOLVER.MINUTES:g}, but {LEAST} iterations of {iteration:.2g} "
            f"s and one evaluation take {least:.1f} minutes. Allow more, or use a smaller model."
        )
    minutes, paces = f"{cfg.SOLVER.MINUTES:g} minutes", f"{iteration:.2g} s an iteration"
    return iterations, evaluations, f"{minutes}, at {paces} and {once:.2g} s an evaluation"


def seconds_of(cfg: CfgNode) -> tuple[float, float]:
    """How long an iteration takes, and an image in evaluation: of an untrained model, on the
    registered data."""
    with tempfile.TemporaryDirectory() as folder, quiet():
        cfg = cfg.clone()
        cfg.defrost()
        cfg.OUTPUT_DIR, cfg.SOLVER.MINUTES, cfg.TEST.LOSS_IMAGES = folder, 0.0, 0
        trainer = Trainer(cfg)
        with EventStorage() as trainer.storage:
            iterations = []
            for trainer.iter in range(MEASURED):
                start = time.perf_counter()
                trainer.run_step()
                iterations.append(time.perf_counter() - start)
        trainer._trainer._data_loader_iter_obj = None  # ends the loader's workers
        cfg.DATALOADER.NUM_WORKERS = 0
        model, images = trainer.model.eval(), []
        for name in cfg.DATASETS.TEST[:1]:
            loader = iter(Trainer.build_test_loader(cfg, name))
            for _ in range(min(MEASURED, len(loader))):
                start = time.perf_counter()
                with torch.no_grad():
                    model(next(loader))
                images.append(time.perf_counter() - start)
    later = [times[WARM_UP:] or times or [0] for times in (iterations, images)]
    return float(np.median(later[0])), float(np.median(later[1]))
