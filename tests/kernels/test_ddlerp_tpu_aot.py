"""`ddlerp`'s TPU kernel through the real compiler, for real chips, at the real shapes.

Run by `make test-aot`: needs libtpu, and no TPU.
"""

import ddlerp_judge
import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from rwkv_kernels.tpu import topology

pytestmark = pytest.mark.aot

SHAPES = ((256, 49, 640), (256, 77, 640), (256, 196, 640), (8, 1024, 2048))
CHIPS = ("v5e:2x2", "v5p:2x2x1", "v6e:2x2", "v4:2x2x1")
USES, RANK = 5, 32


@pytest.mark.parametrize(
    ("chip", "shape"),
    [(chip, shape) for chip in CHIPS for shape in SHAPES if chip == CHIPS[0] or shape == SHAPES[0]],
    ids=str,
)
def test_the_gradient_compiles(chip, shape):
    sharding = NamedSharding(topology.mesh(chip, devices=1), PartitionSpec())

    def array(*shape: int, dtype=jnp.bfloat16) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    token, D = array(*shape), shape[-1]
    z = array(*shape[:2], USES * RANK)
    weights = array(USES, D, dtype=jnp.float32), array(USES, RANK, D, dtype=jnp.float32)
    both = ddlerp_judge.value_and_gradients()
    with jax.set_mesh(sharding.mesh):
        lowered = jax.jit(both).lower([token, token, z, *weights], [token] * USES)
        text = lowered.compile().as_text()
    assert text.count('"tpu_custom_call"') == 1
