"""List published checkpoints and configs, or cache checkpoints for a machine without a network.

python -m gnws_d2.model_zoo list
python -m gnws_d2.model_zoo prefetch imagenet/resnet50_gn_ws
python -m gnws_d2.model_zoo prefetch COCO-Detection/faster_rcnn_R_50_FPN_gn_ws_1x.yaml
python -m gnws_d2.model_zoo prefetch all
"""

from __future__ import annotations

import argparse
import logging
import sys

from tabulate import tabulate

from ..config import config_names
from ..errors import CheckpointError, add_debug_flag, is_debugging, one_line_errors
from ..files import CACHE_VARIABLE, cache_path
from .fetch import MIRROR_VARIABLE, cached, fetch
from .published import find, published

logger = logging.getLogger(__name__)


def list_all() -> None:
    rows = [
        [e.name, "" if e.is_backbone else e.config, e.box_ap, e.mask_ap, "yes" if cached(e) else ""]
        for e in published()
    ]
    header = ["name, after gnws://", "config", "box AP", "mask AP", "cached"]
    print(tabulate(rows, header, disable_numparse=True))
    detectors = {entry.config: entry.name for entry in published() if not entry.is_backbone}
    rows = [[name, detectors.get(name, "")] for name in config_names(lazy=True)]
    print("\n" + tabulate(rows, ["config, for --config-file", "trained detector"]))
    print(f"\nCache: {cache_path()} (${CACHE_VARIABLE}); mirror: ${MIRROR_VARIABLE}")


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
def main(argv: list[str] | None = None) -> int:
    """Run the command with the arguments ``argv``, by default those of the process."""
    parser = argparse.ArgumentParser(
        "python -m gnws_d2.model_zoo" if argv is None else "gnws zoo",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="show all published checkpoints and all configs")
    command = commands.add_parser("prefetch", help="download, verify, convert and cache")
    command.add_argument("names", nargs="+", help="names or configs, or all")
    args = add_debug_flag(parser).parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if args.command == "prefetch":
        return prefetch(args.names)
    list_all()
    return 0


if __name__ == "__main__":
    sys.exit(main())
