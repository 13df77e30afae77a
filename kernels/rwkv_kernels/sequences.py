"""From [B, T, H, N] to what the chunked WKV works on, and back: groups, heads, chunks."""

import jax
import jax.numpy as jnp

from rwkv_kernels.plan import Plan
from rwkv_kernels.reference import log_decay


class Sequences:
    """One group's inputs, cut into [chunks, G, C, N], G = group * H: what the scans run over."""

    def __init__(self, how: Plan, dtype, r, k, v, w, u):
        self.how, self.dtype, self.shape, self.inputs = how, dtype, r.shape, (r, k, v, w)
        decay = jnp.exp(log_decay(w.astype(dtype)))
        self.tokens = (self.cut(r), self.cut(k), self.cut(v), self.cut(decay, fill=1))
        group, _, _, N = r.shape
        self.bonus = jnp.tile(u.astype(dtype), (group, 1)).reshape(-1, 1, N)  # [G, 1, N]

    def cut(self, x, fill=0):
        """[group, T, H, N] -> [chunks, G, C, N]. Tokens that pad have no k, no r, and a decay of 1.

        No step has more than four axes: jaxlib 0.10.2 crashes on reshapes of rank 6 and 7.
        """
        group, T, H, N = self.shape
        chunks, C = self.how.chunks, self.how.chunk.steps
        x = x.astype(self.dtype)
        if chunks * C > T:
            padding = ((0, 0), (0, chunks * C - T), (0, 0), (0, 0))
            x = jnp.pad(x, padding, constant_values=fill)
        x = jnp.swapaxes(x.reshape(group * chunks, C, H, N), 1, 2)  # [group * chunks, H, C, N]
        x = jnp.swapaxes(x.reshape(group, chunks, H, C * N), 0, 1)  # [chunks, group, H, C * N]
        return x.reshape(chunks, group * H, C, N)

    def restore(self, x, dtype):
        """[chunks, G, C, N] -> [group, T, H, N], in the dtype asked for."""
        group, T, H, N = self.shape
        chunks, C = self.how.chunks, self.how.chunk.steps
        x = jnp.swapaxes(x.reshape(chunks, group, H, C * N), 0, 1)  # [group, chunks, H, C * N]
        x = jnp.swapaxes(x.reshape(group * chunks, H, C, N), 1, 2)  # [group * chunks, C, H, N]
        return x.reshape(group, chunks * C, H, N)[:, :T].astype(dtype)

    def restore_gradients(self, dr, dk, dv, dlog, dbonus):
        """In the inputs' shapes and dtypes; the bonus's for each batch element, [group, H, N]."""
        group, _, H, N = self.shape
        r, k, v, w = self.inputs
        # log d = -exp(w), so dw = log d * (the gradient of log d).
        dw = log_decay(w.astype(self.dtype)) * self.restore(dlog, self.dtype)
        restored = [self.restore(d, x.dtype) for d, x in ((dr, r), (dk, k), (dv, v))]
        return *restored, dw.astype(w.dtype), dbonus.reshape(group, H, N)

    def zero_state(self):
        group, _, H, N = self.shape
        return jnp.zeros((group * H, N, N), self.dtype)

    def zero_bonus(self):
        group, _, H, N = self.shape
        return jnp.zeros((group * H, N), self.dtype)


def flatten_heads(state):
    return state.reshape(-1, *state.shape[2:])  # [group, H, N, N] -> [G, N, N]


def map_groups(how: Plan, function, arrays):
    """`function` over groups of the batch, one after the other.

    Slices are taken by index: split up as [B / group, group, ...], a group of one would have an
    axis whose layout XLA is free to choose, and it then copies every input.
    """
    B = arrays[0].shape[0]
    if how.group == B:
        return function(arrays)

    def at(start):
        return function([jax.lax.dynamic_slice_in_dim(x, start, how.group) for x in arrays])

    out = jax.lax.map(at, jnp.arange(0, B, how.group))
    return jax.tree.map(lambda x: x.reshape(B, *x.shape[2:]), out)  # from [B / group, group, ...]
