"""Convert a checkpoint file between MMDetection's names and Detectron2's.

    python -m gnws_d2.checkpoint mask_rcnn_r50_fpn_gn_ws-all_2x.pth mask_rcnn.pth
    python -m gnws_d2.checkpoint --to mmdet output/model_final.pth for_mmdet.pth

Every tensor must fit the config that --config names, or one of the packaged configs. An existing
file is not overwritten.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ..errors import add_debug_flag, one_line_errors
from .convert import convert_file


@one_line_errors(OSError)
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
    args = add_debug_flag(parser).parse_args()
    count = convert_file(args.source, args.target, args.to, args.config)
    print(f"{count} tensors of {args.source} written to {args.target} under {args.to}'s names.")


if __name__ == "__main__":
    main()
