"""Make the Digits dataset if it does not exist yet; print its folder and its counts."""

import argparse
import json
import logging

from ...errors import add_debug_flag, one_line_errors
from .make import json_file, make_digits
from .scans import SPLITS


@one_line_errors(OSError)
def main() -> None:
    parser = argparse.ArgumentParser("python -m gnws_d2.data.digits", description=__doc__)
    add_debug_flag(parser).parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    folder = make_digits()
    print(folder)
    for split in SPLITS:
        coco = json.loads(json_file(folder, split).read_text())
        print(f"{split}: {len(coco['images'])} images, {len(coco['annotations'])} digits")


if __name__ == "__main__":
    main()
