"""How every kernel is called: in 32 bits, whatever JAX has; and of no derivative, with an error.

The derivatives of what is computed here are kernels of their own (`jax.custom_vjp`); second ones
there are none.
"""

from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array


def launch(kernel: Callable[..., Any], *arrays: Array) -> Any:
    """kernel(*arrays), a Pallas call's.

    Raises:
      NotImplementedError: where it is differentiated, with what to do.
    """

    @jax.custom_jvp
    def call(*arrays):
        return kernel(*arrays)

    @call.defjvp
    def refuse(primals, tangents):
        raise NotImplementedError(
            "the kernels have first derivatives only: for second ones take the WKV with "
            "implementation='chunked', and a model inside rwkv_kernels.without_kernels()"
        )

    with jax.enable_x64(False):  # Python's numbers are of 32 bits then, as indices of blocks are
        return call(*arrays)
