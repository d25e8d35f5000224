"""The command ``gnws``: the programs of this folder under one name."""

from __future__ import annotations

import importlib
import itertools
import sys

_HERE = "gnws_d2.projects.detection"

# name -> (module, its function, arguments that the name stands for, what it does)
COMMANDS = {
    "train": (f"{_HERE}.train_net", "invoke_main", [], "train a detector, evaluate it, report"),
    "eval": (f"{_HERE}.train_net", "invoke_main", ["--eval-only"], "evaluate a checkpoint, report"),
    "predict": (f"{_HERE}.demo", "main", [], "detect in images and videos"),
    "export": (
        f"{_HERE}.export_model",
        "main",
        [],
        "write ONNX, OpenVINO, TorchScript, torch.export",
    ),
    "check-data": (f"{_HERE}.check_data", "main", [], "find what is wrong in a dataset"),
    "browse": (f"{_HERE}.browse", "main", [], "draw a dataset as training sees it"),
    "report": (f"{_HERE}.report", "main", [], "write the report of a finished run again"),
    "app": (f"{_HERE}.app", "main", [], "try a detector in the browser"),
    "zoo": ("gnws_d2.model_zoo.__main__", "main", [], "list and fetch configs and checkpoints"),
}


def usage() -> str:
    lines = [f"  {name:<11} {does}" for name, (*_, does) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: gnws COMMAND ...",
            "",
            *lines,
            "",
            "`gnws COMMAND --help` shows the options and an example. Start with",
            "  gnws train --data FOLDER",
            "where FOLDER has images and their annotations as COCO JSON.",
        ]
    )


def main() -> int | None:
    name, *words = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print(usage())
        return 0
    if name not in COMMANDS:
        sys.exit(f"error: gnws has no command {name!r}. It has {', '.join(COMMANDS)}.")
    module, function, given, _ = COMMANDS[name]
    if name in ("train", "eval") and _is_lazy(words):
        module = f"{_HERE}.lazyconfig_train_net"
    sys.argv = [f"gnws {name}", *given, *words]
    return getattr(importlib.import_module(module), function)()


def _is_lazy(words: list[str]) -> bool:
    """Whether ``--config-file`` names a config in Python."""
    values = [value for word, value in itertools.pairwise(words) if word == "--config-file"]
    values += [word for word in words if word.startswith("--config-file=")]
    return any(value.endswith(".py") for value in values)


if __name__ == "__main__":
    sys.exit(main())
