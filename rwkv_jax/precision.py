"""The one place of dtype policy.

Parameters and optimizer state are float32. Matrix products and the activations between them are in
the compute dtype: bfloat16 on accelerators, whose matrix units run it several times faster than
float32 and whose memory traffic (the limit of a training step) it halves; float32 on a CPU, which
has no fast bfloat16. Always float32: decay logits, the WKV's state, norms, features, losses.
"""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from rwkv_jax.wkv import platform

_BY_NAME = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def compute_dtype(name: str) -> jnp.dtype:
    """The compute dtype for "auto" (by platform), "float32" or "bfloat16".

    Raises:
        ValueError: another name.
    """
    if name == "auto":
        name = "float32" if platform() == "cpu" else "bfloat16"
    if name not in _BY_NAME:
        known = ", ".join(("auto", *_BY_NAME))
        raise ValueError(f"precision {name!r} is unknown: choose one of {known}")
    return jnp.dtype(_BY_NAME[name])


def matmul_precision(dtype: DTypeLike) -> jax.lax.Precision | None:
    """Makes float32 mean float32: accelerators else round its operands to TF32 or bfloat16."""
    return jax.lax.Precision.HIGHEST if jnp.dtype(dtype) == jnp.float32 else None
