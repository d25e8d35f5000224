"""The command ``gnws``: the programs of projects/ under one name."""

from __future__ import annotations

import importlib
import sys

import gnws.openmp  # noqa: F401  before torch
from gnws.arguments import COMMANDS, parse


def main() -> int | None:
    args = parse()
    module, _ = COMMANDS[args.command]
    if args.command in ("train", "eval") and args.config_file.endswith(".py"):
        module = "gnws_d2.projects.detection.lazyconfig_train_net"
    return importlib.import_module(module).main(args)


if __name__ == "__main__":
    sys.exit(main())
