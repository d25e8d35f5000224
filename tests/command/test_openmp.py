"""OpenMP's waiting threads are set before torch is imported, unless the user has chosen."""

import os
import subprocess
import sys

import pytest

# Prints the variable when torch is imported, and ends there.
CODE = """
import os, runpy, sys
class Watch:
    def find_spec(self, name, *_):
        if name == "torch":
            sys.exit(os.environ.get("GOMP_SPINCOUNT", "unset"))
sys.meta_path.insert(0, Watch())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
ROOT = os.path.join(os.path.dirname(__file__), "..", "..", "projects")
PROGRAMS = ["Command/main.py", "Detection/train_net.py", "Detection/lazyconfig_train_net.py"]


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize(
    ("variables", "expected"),
    [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "PASSIVE"}, "unset")],
)
def test_what_torch_finds(program, variables, expected):
    chosen = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    others = {name: value for name, value in os.environ.items() if name not in chosen}
    words = [sys.executable, "-c", CODE, os.path.join(ROOT, program), "train", "--data", "x"]
    done = subprocess.run(words, env={**others, **variables}, capture_output=True, text=True)
    assert done.stderr.strip() == expected
