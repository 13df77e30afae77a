"""The one door to `rwkv_kernels`: what a block may take as its WKV.

A WKV here maps (r, k, v, w [B, T, H, N], u [H, N]) to y [B, T, H, N]; `w` is the decay logit.
"""

from collections.abc import Callable

from jaxtyping import Array, Float

from rwkv_kernels import bi_wkv6, wkv6

__all__ = ["Wkv", "bi_wkv6", "causal_wkv6", "wkv6"]

Wkv = Callable[
    [
        Float[Array, "B T H N"],
        Float[Array, "B T H N"],
        Float[Array, "B T H N"],
        Float[Array, "B T H N"],
        Float[Array, "H N"],
    ],
    Float[Array, "B T H N"],
]


def causal_wkv6(
    r: Float[Array, "B T H N"],
    k: Float[Array, "B T H N"],
    v: Float[Array, "B T H N"],
    w: Float[Array, "B T H N"],
    u: Float[Array, "H N"],
) -> Float[Array, "B T H N"]:
    """The causal WKV from a zero state, without the final state: a language model in training."""
    return wkv6(r, k, v, w, u)[0]
