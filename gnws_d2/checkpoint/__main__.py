"""Convert a checkpoint file between MMDetection's names and Detectron2's.

    python -m gnws_d2.checkpoint mask_rcnn_r50_fpn_gn_ws-all_2x.pth mask_rcnn.pth
    python -m gnws_d2.checkpoint --to mmdet output/model_final.pth for_mmdet.pth

Every tensor has to fit the packaged config that it fits best, or the one that --config names. An
existing file is not overwritten.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ..config import ConfigError
from .convert import convert_file
from .files import CheckpointError


def main() -> None:
    parser = argparse.ArgumentParser(
        "python -m gnws_d2.checkpoint",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--to", choices=["detectron2", "mmdet"], default="detectron2")
    parser.add_argument("--config", metavar="FILE", help="a path, or a packaged config's name")
    args = parser.parse_args()
    try:
        count = convert_file(args.source, args.target, args.to, args.config)
    except (CheckpointError, ConfigError, OSError) as error:
        sys.exit(f"{args.source} is not converted: {error}")
    print(f"{count} tensors of {args.source} written to {args.target} under {args.to}'s names.")


if __name__ == "__main__":
    main()
