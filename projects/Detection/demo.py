#!/usr/bin/env python3
"""Detect on images or a video and write the results: ``demo.py --help``."""

import argparse
import logging
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from detectron2.config import CfgNode
from detectron2.utils.logger import setup_logger
from torch import nn
from tqdm import tqdm

import gnws_d2
import gnws_d2.projects.digits  # registers the datasets
from gnws.arguments import parse
from gnws_d2.errors import ConfigError, DatasetError, one_line_errors
from gnws_d2.projects.acceleration import accelerate, add_acceleration_config
from gnws_d2.projects.detection import video
from gnws_d2.projects.detection.defaults import first_threshold
from gnws_d2.projects.detection.image_ids import ImageIds
from gnws_d2.projects.detection.inputs import find_files, read_frames
from gnws_d2.projects.detection.results import Results
from gnws_d2.projects.detection.tracking import Tracks

logger = logging.getLogger("gnws_d2.demo")


class Predictor(gnws_d2.Predictor):
    """Runs the model as the keys of projects/Acceleration say."""

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        return accelerate(super().build_model(cfg), cfg)


def make_predictor(args: argparse.Namespace) -> Predictor:
    predictor = Predictor(
        args.config_file, args.weights, opts=args.opts, add_configs=[add_acceleration_config]
    )
    threshold = args.confidence_threshold
    predictor.set_score_threshold(first_threshold(predictor) if threshold is None else threshold)
    return predictor


def run_on_images(files: Sequence[Path], results: Results, interrupted: Sequence[int]) -> int:
    """Detect on images. Returns the number of files that could not be used."""
    skipped = 0
    for file in tqdm(files, unit="image", disable=None):
        try:
            for frame in read_frames(file, results.predictor):
                if interrupted:
                    return skipped
                results.add(frame)
        except DatasetError as error:
            logger.error("%s is skipped: %s", file, str(error).removeprefix(f"{file} "))
            skipped += 1
    return skipped


def run_on_video(
    source: str, is_live: bool, results: Results, interrupted: Sequence[int], follows: bool = False
) -> None:
    """Detect on a video, or if ``is_live`` on a camera, whose frames are also shown in a window.
    Objects get numbers that they keep if it ``follows`` them."""
    file = Path(f"webcam_{Path(source).name}" if is_live else source)
    window = video.Window()
    with video.opened(source) as capture:
        name, rate = f"{file.name}.webm", video.frames_per_second(capture)
        if follows:
            results.tracks = Tracks(*video.size(capture))
        written = video.VideoFile(results.output / name, rate)
        try:
            for frame in tqdm(video.frames(capture, file), unit="frame", disable=None):
                drawn = results.add(frame, in_video=True)
                written.write(drawn)
                if interrupted or (is_live and window.show(drawn)):
                    break
        finally:
            written.close()
    if not results.detections.images:
        raise DatasetError(f"{source} has no frame that can be read.")


def run(args: argparse.Namespace) -> tuple[Results, int]:
    """Detect and write. Returns what was found, and the exit code of the program."""
    for name in ("gnws_d2", "fvcore", "detectron2"):
        setup_logger(name=name)
    if args.track and (args.input or args.tile < 1 << 30):
        raise ConfigError(
            "--track follows objects over the frames of a video. Name it by --video-input, and "
            "leave out --tile."
        )
    files = find_files(args.input or [])
    ids = ImageIds(args.image_ids, files)
    predictor = make_predictor(args)
    args.output.mkdir(parents=True, exist_ok=True)
    results = Results(predictor, args.output, ids)
    results.tiles = args.tile, args.overlap
    interrupted, skipped = [], 0

    def stop(number: int, frame: FrameType | None) -> None:  # at the end of the image
        interrupted.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    signal.signal(signal.SIGINT, stop)
    try:
        if args.input:
            skipped = run_on_images(files, results, interrupted)
        else:
            source = args.video_input or args.webcam
            run_on_video(source, bool(args.webcam), results, interrupted, args.track)
    finally:
        results.write()
    if interrupted:
        logger.error("Stopped. The detections so far are written.")
        return results, 128 + signal.SIGINT
    if skipped:
        logger.error("%d files could not be used", skipped)
    return results, 1 if skipped else 0


@one_line_errors(OSError)
def main(args: argparse.Namespace) -> int:
    return run(args)[1]


if __name__ == "__main__":
    sys.exit(main(parse("predict")))
