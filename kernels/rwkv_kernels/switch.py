"""The one switch of all kernels, for whoever suspects one: without them XLA makes everything.

What was traced before keeps what it was traced with; a function that JAX has cached is not traced
again because of the switch.
"""

import contextlib
import contextvars
from collections.abc import Iterator

_OFF = contextvars.ContextVar("without_kernels", default=False)


@contextlib.contextmanager
def without_kernels() -> Iterator[None]:
    """Inside, whatever this thread traces takes no kernel: the WKV is `chunked`, unless another
    implementation is named, and what surrounds it is XLA's.
    """
    before = _OFF.set(True)
    try:
        yield
    finally:
        _OFF.reset(before)


def switched_off() -> tuple[str, ...]:
    """Why no kernel serves inside `without_kernels`; nothing outside."""
    return ("kernels are switched off",) if _OFF.get() else ()
