"""Where the tests of Triton's kernels run: on a GPU, and elsewhere through Triton's interpreter.

The interpreter is chosen by an environment variable when Triton is imported, so that a test file
runs itself once more in a process of its own.
"""

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
runs = pytest.mark.skipif(
    not INTERPRETED and not torch.cuda.is_available(),
    reason="needs a GPU, or TRITON_INTERPRET=1 as test_through_the_interpreter has it",
)
only_from_outside = pytest.mark.skipif(
    INTERPRETED or torch.cuda.is_available(), reason="runs without it"
)


def _repair_bounds_of_loops() -> None:
    """Triton 3.6's interpreter makes them numbers in a way that numpy 2.4 refuses:
    https://github.com/triton-lang/triton/issues/9171"""
    from triton.runtime import interpreter

    original = interpreter._patch_lang_tensor

    def patched(tensor: Any, scope: Any) -> None:
        original(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    interpreter._patch_lang_tensor = patched


if INTERPRETED:  # in a process of its own
    _repair_bounds_of_loops()


def run_interpreted(file: str) -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    words = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", file]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout


def compile_for_h100(kernel: Any, types: Mapping[str, str], constants: Mapping[str, Any]) -> None:
    """Without a GPU: the interpreter takes more than the compiler does. Integers need no type."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    fixed = {name: constants[name] for name in kernel.arg_names if name in constants}
    signature = {name: types.get(name, "i32") for name in kernel.arg_names}
    signature |= dict.fromkeys(fixed, "constexpr")
    source = ASTSource(fn=kernel, signature=signature, constexprs=fixed)
    binary = triton.compile(source, target=GPUTarget("cuda", 90, 32))
    assert binary.asm["cubin"]
    # No atomics: a second run would not give the same bits.
    assert not re.search(r"^\s*(@\S+ )?(atom|red)\.", binary.asm["ptx"], re.MULTILINE)
