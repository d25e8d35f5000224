"""``python -m gnws_d2.data.digits``: make Digits if needed, print its folder and its counts."""

import json
import logging

from .make import json_file, make_digits
from .scans import SPLITS


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    folder = make_digits()
    print(folder)
    for split in SPLITS:
        coco = json.loads(json_file(folder, split).read_text())
        print(f"{split}: {len(coco['images'])} images, {len(coco['annotations'])} digits")


if __name__ == "__main__":
    main()
