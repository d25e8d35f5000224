"""The command ``gnws``: the programs of projects/ under one name."""

from __future__ import annotations

import importlib
import importlib.util
import sys

import gnws.openmp  # noqa: F401  before torch
from gnws.arguments import COMMANDS, parse


def main() -> int | None:
    args = parse()
    module, _ = COMMANDS[args.command]
    if args.command in ("train", "eval") and args.config_file.endswith(".py"):
        module = "gnws_d2.projects.detection.lazyconfig_train_net"
    spec = importlib.util.find_spec("detectron2")
    if spec is None or spec.origin is None:  # a clone's folder has no origin
        sys.exit(
            "error: Detectron2 is not installed. `python -m gnws.detectron2_pypi` installs a copy "
            "from PyPI; `python -m gnws.check_env` names the other way, and what else is missing."
        )
    return importlib.import_module(module).main(args)


if __name__ == "__main__":
    sys.exit(main())
