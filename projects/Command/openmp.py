"""Let OpenMP's threads sleep after a short wait. Import this before torch, which reads the setting.

libgomp, which torch uses on Linux, lets a thread that waits for the others spin. On a machine that
other programs use, too, it then keeps the core that the others need. Sleeping at once costs time on
an idle machine: projects/Benchmark/shared_machine.py measures both.
"""

import os
import sys

SPINS = "1000"  # rounds of waiting, some microseconds
VARIABLES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")

is_set_here = not any(name in os.environ for name in VARIABLES)
if is_set_here:
    os.environ[VARIABLES[0]] = SPINS  # also for the processes that this one starts
    is_set_here = "torch" not in sys.modules  # a script or notebook may have imported it
