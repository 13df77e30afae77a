"""Puts the two source roots on the path: the tests run from a checkout that is not installed."""

import importlib.metadata
import importlib.util
import os
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent
for root in (ROOT, ROOT / "kernels"):
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))


# Mosaic's interpreter runs a block's two warpgroups as a program each, called from a third. One
# that waits for the other keeps one of XLA's threads, of which there are as many as cores: on two
# cores none is left for the other to come.
os.environ.setdefault("PJRT_NPROC", "4")

# Nothing here is about speed, and most of a test's time is compiling: LLVM's optimiser is half of
# that, XLA's emitter of fusions (of which JAX 0.11 leaves no choice) up to half of what is left,
# and programs that took long are kept for the next test, process and run. Not beside the compilers
# of TPUs and GPUs, whose own output is looked at.
if not any(map(importlib.util.find_spec, ("libtpu", "jax_plugins"))):
    quick = ["--xla_backend_optimization_level=0"]
    if importlib.metadata.version("jaxlib").startswith("0.10."):
        quick.append("--xla_cpu_use_fusion_emitters=false")
    os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *quick]).strip()
    os.environ.setdefault(
        "JAX_COMPILATION_CACHE_DIR", str(Path(tempfile.gettempdir()) / "rwkv_jax_test_cache")
    )
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")


def pytest_configure() -> None:
    from rwkv_jax.host_memory import keep_freed_memory

    keep_freed_memory()
