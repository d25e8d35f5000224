"""``gnws convert-weights``: a checkpoint between MMDetection's names and Detectron2's."""

import argparse

from gnws_d2.checkpoint.convert import convert_file
from gnws_d2.errors import one_line_errors


@one_line_errors(OSError)
def main(args: argparse.Namespace) -> None:
    count = convert_file(args.source, args.target, args.to, args.config)
    print(f"{count} tensors of {args.source} written to {args.target} under {args.to}'s names.")
