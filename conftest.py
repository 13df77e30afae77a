"""Puts the two source roots on the path: the tests run from a checkout that is not installed."""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
for root in (ROOT, ROOT / "kernels"):
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))


# Mosaic's interpreter runs a block's two warpgroups as a program each, called from a third. One
# that waits for the other keeps one of XLA's threads, of which there are as many as cores: on two
# cores none is left for the other to come.
os.environ.setdefault("PJRT_NPROC", "4")


def pytest_configure() -> None:
    from rwkv_jax.host_memory import keep_freed_memory

    keep_freed_memory()
