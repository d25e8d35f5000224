"""List published checkpoints and configs, or cache checkpoints for a machine without a network.

python -m gnws_d2.model_zoo list
python -m gnws_d2.model_zoo prefetch imagenet/resnet50_gn_ws
python -m gnws_d2.model_zoo prefetch COCO-Detection/faster_rcnn_R_50_FPN_gn_ws_1x.yaml
python -m gnws_d2.model_zoo prefetch all
python -m gnws_d2.model_zoo document    # in a source tree: write MODEL_ZOO.md and metafile.yml
"""

from __future__ import annotations

import argparse
import logging
import sys

from tabulate import tabulate

from ..cache import CACHE_VARIABLE, cache_path
from ..checkpoint import CheckpointError
from ..config import config_names
from ..errors import add_debug_flag, is_debugging, one_line_errors
from . import documents
from .fetch import MIRROR_VARIABLE, cached, fetch
from .published import find, published


def list_all() -> None:
    rows = [
        [
            e.name,
            "-" if e.is_backbone else e.config,
            e.box_ap,
            e.mask_ap,
            "yes" if cached(e) else "",
        ]
        for e in published()
    ]
    header = ["name, after gnws://", "config", "box AP", "mask AP", "cached"]
    print(tabulate(rows, header, disable_numparse=True))
    trained = {e.config: e.name for e in published() if not e.is_backbone}
    rows = [[name, trained.get(name, "")] for name in config_names(lazy=True)]
    header = ["config, for --config-file", "trained detector"]
    print(f"\n{tabulate(rows, header, disable_numparse=True)}")
    print(f"\nCache: {cache_path()} (${CACHE_VARIABLE}); mirror: ${MIRROR_VARIABLE}")


def prefetch(names: list[str]) -> int:
    """Returns the exit code: 1 if a checkpoint could not be fetched."""
    failed = 0
    for entry in published() if names == ["all"] else [find(name) for name in names]:
        try:
            print(f"{entry.name}: {fetch(entry)}", flush=True)
        except (OSError, CheckpointError) as error:
            if is_debugging():
                raise
            print(f"{entry.name}: {error}", file=sys.stderr, flush=True)
            failed = 1
    return failed


@one_line_errors(OSError)
def main() -> int:
    parser = argparse.ArgumentParser(
        sys.argv[0] if sys.argv[0].startswith("gnws ") else "python -m gnws_d2.model_zoo",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="show all published checkpoints and all configs")
    command = commands.add_parser("prefetch", help="download, verify, convert and cache")
    command.add_argument("names", nargs="+", help="names or configs, or all")
    commands.add_parser("document", help="write MODEL_ZOO.md and configs/metafile.yml")
    args = add_debug_flag(parser).parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if args.command == "list":
        list_all()
    elif args.command == "document":
        documents.write()
    else:
        return prefetch(args.names)
    return 0


if __name__ == "__main__":
    sys.exit(main())
