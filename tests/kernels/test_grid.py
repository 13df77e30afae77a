"""Each block of a Hopper kernel's grid has work of its own."""

import itertools

import jax
import jax.numpy as jnp
import pytest

from rwkv_kernels.gpu import stream
from rwkv_kernels.gpu.grid import Grid


@pytest.mark.parametrize("last_apart", [False, True])
@pytest.mark.parametrize("parts", [1, 2, 4])
def test_every_part_of_every_head_once(parts, last_apart):
    grid = Grid(3, 2, parts, last_apart)
    heads, found = jax.vmap(grid.at)(jnp.arange(3 * 2 * parts))
    found = list(zip(heads.tolist(), found.tolist(), strict=True))
    assert sorted(found) == list(itertools.product(range(6), range(parts)))
    if last_apart:
        assert all(part == parts - 1 for _, part in found[-6:])
    else:
        assert found == sorted(found)


@pytest.mark.parametrize(
    ("tiles", "heads", "blocks"), [(1, 8, 2), (196, 8, 3), (308, 10, 2), (5, 4096, 2), (7, 1, 5)]
)
def test_segments_of_tokens_fit_at_once(tiles, heads, blocks):
    """None without a tile, and of each head at least one."""
    grid = stream.grid(tiles, heads, blocks)
    assert 1 <= grid.heads <= tiles
    assert grid.heads * grid.parts <= max(heads, 132 * blocks)
    assert grid.parts == heads
    assert (grid.heads + 1) * heads > 132 * blocks or grid.heads == tiles
