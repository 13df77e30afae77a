"""Run by `make test-wheel` with an installed wheel: both packages work, and come from it."""

import sys
from pathlib import Path

import jax.numpy as jnp

import rwkv_jax
import rwkv_kernels
from rwkv_jax.data.tokenizer import Tokenizer

CHECKOUT = Path(__file__).resolve().parents[1]
for package in (rwkv_jax, rwkv_kernels):
    where = Path(package.__file__ or "").resolve()
    environment = Path(sys.prefix).resolve()
    assert environment in where.parents, f"{package.__name__} was imported from {where}"
ids = Tokenizer(77)(["a red heart"])  # needs the packaged vocabulary
assert ids.shape == (1, 77), ids.shape
ones = jnp.ones((1, 3, 1, 4))
y = rwkv_kernels.bi_wkv6(ones, ones, ones, ones, jnp.ones((1, 4)))
assert y.shape == ones.shape, y.shape
print("the installed wheel works: rwkv_jax, rwkv_kernels")
