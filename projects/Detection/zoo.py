"""List published checkpoints and configs, or download checkpoints into the cache: ``gnws zoo``."""

import argparse
import logging
import os

from tabulate import tabulate

from gnws_d2.config import config_names
from gnws_d2.errors import CheckpointError, is_debugging, one_line_errors
from gnws_d2.files import CACHE_VARIABLE, cache_path
from gnws_d2.model_zoo.fetch import MIRROR_VARIABLE, cached, fetch
from gnws_d2.model_zoo.published import find, published

logger = logging.getLogger("gnws_d2.zoo")


def list_all() -> None:
    rows = [
        [e.name, "" if e.is_backbone else e.config, e.box_ap, e.mask_ap]
        + ["yes" if cached(e).is_file() else ""]
        for e in published()
    ]
    header = ["name, after gnws://", "config", "box AP", "mask AP", "cached"]
    print(tabulate(rows, header, disable_numparse=True))
    detectors = {entry.config: entry.name for entry in published() if not entry.is_backbone}
    rows = [[name, detectors.get(name, "")] for name in config_names(lazy=True)]
    print("\n" + tabulate(rows, ["config, for --config-file", "trained detector"]))
    mirror = os.environ.get(MIRROR_VARIABLE, "none")
    print(f"\nCache: {cache_path()} (${CACHE_VARIABLE}); mirror: {mirror} (${MIRROR_VARIABLE})")


def prefetch(names: list[str]) -> int:
    """Returns the exit code: 1 if a checkpoint could not be fetched."""
    failed = 0
    for entry in published() if names == ["all"] else [find(name) for name in names]:
        try:
            print(f"{entry.name}: {fetch(entry)}", flush=True)
        except (OSError, CheckpointError) as error:
            logger.error("%s: %s", entry.name, error, exc_info=is_debugging())
            failed = 1
    return failed


@one_line_errors(OSError)
def main(args: argparse.Namespace) -> int:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if args.action == "prefetch":
        return prefetch(args.names)
    list_all()
    return 0
