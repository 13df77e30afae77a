"""Puts the two source roots on the path: the tests run from a checkout that is not installed."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
for root in (ROOT, ROOT / "kernels"):
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))


def pytest_configure() -> None:
    from rwkv_jax.host_memory import keep_freed_memory

    keep_freed_memory()
