#!/usr/bin/env python3
"""Measure a training step of the demo's model, with Detectron2's optimizer and with that optimizer
fused, paired in one process, and the optimizer alone. One thread: set OMP_NUM_THREADS=1."""

import argparse
import functools

import numpy as np
import torch
from detectron2.engine import DefaultTrainer
from detectron2.utils.events import EventStorage
from measure import paired_times, ratio
from results import publish
from tabulate import tabulate

import gnws_d2
import gnws_d2.projects.digits  # registers the datasets
from gnws_d2.engine import Trainer
from gnws_d2.engine.accumulation import fused

CONFIG = "Digits/mask_rcnn_R_18_FPN_gn_ws.yaml"


def step(model, optimizer, batch) -> None:
    optimizer.zero_grad()
    torch.manual_seed(0)  # the samples of anchors and proposals
    with EventStorage():
        sum(model(batch).values()).backward()
    optimizer.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    rounds = parser.parse_args().rounds
    cfg = gnws_d2.load_config(CONFIG, ["MODEL.DEVICE", "cpu", "DATALOADER.NUM_WORKERS", "0"])
    cfg.SOLVER.BASE_LR = 0.0  # all steps do the same work
    batch = next(iter(Trainer.build_train_loader(cfg)))
    steps = {}
    for name, wrap in (("plain", lambda optimizer: optimizer), ("fused", fused)):
        model = Trainer.build_model(cfg)
        optimizer = wrap(DefaultTrainer.build_optimizer(cfg, model))
        steps[name] = functools.partial(step, model, optimizer, batch)
        steps[f"{name}, optimizer alone"] = optimizer.step
    times = paired_times(steps, rounds)
    rows = []
    for name in ("plain", "plain, optimizer alone", "fused", "fused, optimizer alone"):
        base = times[name.replace("fused", "plain")]
        rows.append([name, 1000 * np.median(times[name]), *ratio(times[name], base)])
    header = ["step", "ms", "of plain", "from", "to (95%)"]
    table = tabulate(rows, header, tablefmt="github", floatfmt=(None, ".0f", *[".2f"] * 3))
    publish("small-step", table, f"Rounds: {rounds}")


if __name__ == "__main__":
    main()
