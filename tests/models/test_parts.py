"""Token shifts, positions, drop path and the stack, each against values worked out by hand."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from random_values import with_random_values

from rwkv_jax.mesh import AXES
from rwkv_jax.models import layers
from rwkv_jax.models.block import run_blocks, stack_blocks
from rwkv_jax.models.channel_mix import squared_relu
from rwkv_jax.models.config import ImageConfig, TextConfig
from rwkv_jax.models.image_encoder import image_block_spec
from rwkv_jax.models.layers import by_patches, drop_path
from rwkv_jax.models.positions import bicubic_matrix, resize_positions
from rwkv_jax.models.text_encoder import text_block_spec
from rwkv_jax.models.token_shift import image_shift, text_shift
from rwkv_jax.wkv import bi_wkv6, causal_wkv6

# Two heads of 4 channels; token t has the value t + 1 in each, so that 0 can only be "outside".
TOKENS = jnp.broadcast_to(jnp.arange(1.0, 8.0)[None, :, None], (1, 7, 8))


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-6), (jnp.bfloat16, 4e-3)])
@pytest.mark.parametrize("way", ["cpu", "tpu"])
@pytest.mark.parametrize("size", [(8, 12), (5, 11), (3, 1)])  # whole patches of 4, and cut short
def test_patches(size, way, dtype, tolerance, monkeypatch):
    """Against a loop in float64; a TPU has another form, which any device can run."""
    monkeypatch.setattr(layers, "platform", lambda: way)
    rng = np.random.default_rng(0)
    (H, W), P = size, 4
    h, w = -(-H // P), -(-W // P)
    arrays = [
        jnp.asarray(rng.normal(size=shape), of)
        for shape, of in (((2, H, W, 3), dtype), ((P, P, 3, 5), dtype), ((2, h, w, 5), jnp.float32))
    ]
    pixels, kernel, g = (np.asarray(x, np.float64) for x in arrays)
    whole = np.zeros((2, h * P, w * P, 3))
    whole[:, :H, :W] = pixels
    y, of_whole, of_kernel = np.zeros(g.shape), np.zeros(whole.shape), np.zeros(kernel.shape)
    for i, j in np.ndindex(h, w):
        place = np.s_[:, P * i : P * (i + 1), P * j : P * (j + 1)]
        y[:, i, j] = np.einsum("bpqc,pqcd->bd", whole[place], kernel)
        of_whole[place] = np.einsum("bd,pqcd->bpqc", g[:, i, j], kernel)
        of_kernel += np.einsum("bpqc,bd->pqcd", whole[place], g[:, i, j])
    function = functools.partial(by_patches, out_dtype=jnp.float32)
    got, pullback = jax.vjp(function, *arrays[:2])
    assert got.dtype == jnp.float32
    for x, wanted in zip(
        (got, *pullback(arrays[2])), (y, of_whole[:, :H, :W], of_kernel), strict=True
    ):
        error = np.abs(np.asarray(x, np.float64) - wanted).max()
        assert error < tolerance * np.abs(wanted).max()


def test_text_shift_looks_back_and_ahead_in_each_head():
    shifted = np.asarray(text_shift(TOKENS[:, :4], heads=2))[0]
    before, after = [0, 1, 2, 3], [2, 3, 4, 0]
    wanted = np.transpose([before, before, after, after] * 2)
    np.testing.assert_array_equal(shifted, wanted)


def test_image_shift_looks_four_ways_in_each_head():
    # 2 rows of 3:  1 2 3
    #               4 5 6
    shifted = np.asarray(image_shift(TOKENS[:, :6], heads=2, grid=(2, 3), with_cls_token=False))[0]
    left, right = [0, 1, 2, 0, 4, 5], [2, 3, 0, 5, 6, 0]
    above, below = [0, 0, 0, 1, 2, 3], [4, 5, 6, 0, 0, 0]
    np.testing.assert_array_equal(shifted, np.transpose([left, right, above, below] * 2))


def test_cls_token_stays_and_is_no_neighbour():
    shifted = np.asarray(image_shift(TOKENS, heads=2, grid=(2, 3), with_cls_token=True))[0]
    np.testing.assert_array_equal(shifted[6], np.full(8, 7))
    without = image_shift(TOKENS[:, :6], heads=2, grid=(2, 3), with_cls_token=False)
    np.testing.assert_array_equal(shifted[:6], without[0])


@pytest.mark.parametrize(
    "shift",
    [
        functools.partial(text_shift, heads=2),
        functools.partial(image_shift, heads=2, grid=(2, 3), with_cls_token=True),
    ],
    ids=["text", "image"],
)
def test_gradient_of_a_shift_is_its_transpose(shift):
    """Against the shift's own matrix, made column by column from its values."""
    T, D = 7, 8
    unit = jnp.eye(T * D).reshape(T * D, 1, T, D)  # [T D, T D] -> [T D, 1, T, D]
    matrix = jax.vmap(shift)(unit).reshape(T * D, T * D)  # row: an input; column: an output
    x, g = jax.random.normal(jax.random.key(0), (2, 1, T, D))
    (gradient,) = jax.vjp(shift, x)[1](g)
    np.testing.assert_array_equal(gradient.reshape(-1), matrix @ g.reshape(-1))


# torch.nn.functional.interpolate(identity, mode="bicubic", align_corners=False), PyTorch 2.13.
TORCH_BICUBIC = {
    (3, 5): [
        [1.096, -0.096, 0.0],
        [0.612, 0.46, -0.072],
        [0.0, 1.0, 0.0],
        [-0.072, 0.46, 0.612],
        [0.0, -0.096, 1.096],
    ],
    (5, 3): [
        [0.685185, 0.37037, -0.055556, 0.0, 0.0],
        [0.0, 0.0, 1.0, 0.0, 0.0],
        [0.0, 0.0, -0.055556, 0.37037, 0.685185],
    ],
    (4, 7): [
        [1.099216, -0.099216, 0.0, 0.0],
        [0.659257, 0.402241, -0.061498, 0.0],
        [0.057216, 0.988976, -0.046192, 0.0],
        [-0.09375, 0.59375, 0.59375, -0.09375],
        [0.0, -0.046192, 0.988976, 0.057216],
        [0.0, -0.061498, 0.402241, 0.659257],
        [0.0, 0.0, -0.099216, 1.099216],
    ],
}


@pytest.mark.parametrize("sizes", TORCH_BICUBIC)
def test_bicubic_matrix_is_pytorchs(sizes):
    np.testing.assert_allclose(bicubic_matrix(*sizes), TORCH_BICUBIC[sizes], atol=1e-6)


def test_positions_of_the_same_grid_are_untouched():
    positions = jnp.ones((3, 3, 4))
    assert resize_positions(positions, (3, 3)) is positions


def test_drop_path_drops_whole_samples_and_scales_the_rest():
    y = np.asarray(drop_path(jnp.ones((4000, 2, 3)), 0.25, jax.random.key(0)))
    kept = y[:, 0, 0] != 0
    np.testing.assert_allclose(y, np.broadcast_to(kept[:, None, None] / 0.75, y.shape))
    assert abs(kept.mean() - 0.75) < 0.03  # four standard deviations


IMAGE = ImageConfig(16, 8, width=8, heads=1, depth=3, hidden_rate=1)
SHIFT = functools.partial(image_shift, heads=1, grid=(2, 2), with_cls_token=False)


@pytest.fixture(scope="module")
def stack():
    return random_stack(image_block_spec(IMAGE))


def random_stack(spec):
    return with_random_values(lambda: stack_blocks(spec, rngs=nnx.Rngs(0)))


def run(stack, x, **options):
    graphdef, state = nnx.split(stack)
    return jax.jit(lambda s, x: run_blocks(nnx.merge(graphdef, s), x, SHIFT, **options))(state, x)


@pytest.fixture(scope="module")
def block_by_block(stack):
    """x -> what comes out of the first block, the second, the third."""
    graphdef, state = nnx.split(stack)
    block = jax.jit(lambda layer, x: nnx.merge(graphdef, layer)(x, SHIFT))

    def outputs(x):
        for layer in range(3):
            x = block(jax.tree.map(lambda leaf, i=layer: leaf[i], state), x)
            yield x

    return outputs


def test_scanned_stack_is_its_blocks_one_after_the_other(stack, block_by_block):
    x = jax.random.normal(jax.random.key(1), (2, 4, 8))
    *_, wanted = block_by_block(x)
    chex.assert_trees_all_close(run(stack, x), wanted, rtol=1e-5, atol=1e-5)


def test_drop_path_grows_from_none_at_the_first_block(stack, block_by_block):
    # Rates 0, 1/4, 1/2: equal inputs come out in at most 2^4 ways, the fully kept one among them
    # scaled differently from an undropped run; without a key nothing is dropped.
    x = jnp.broadcast_to(jax.random.normal(jax.random.key(1), (1, 4, 8)), (256, 4, 8))
    dropped = np.asarray(run(stack, x, max_drop_path=0.5, key=jax.random.key(2)))
    ways, counts = np.unique(dropped.round(4).reshape(256, -1), axis=0, return_counts=True)
    assert 12 <= len(ways) <= 16
    # All branches dropped, 1/4^2 * 1/2^2 = 1/64, is what the first block alone gives.
    first = next(block_by_block(x))[0]
    alone = np.abs(ways - np.asarray(first).reshape(1, -1)).max(axis=1) < 1e-3
    assert alone.sum() == 1
    assert 1 <= counts[alone][0] <= 14


def test_no_key_or_no_rate_compiles_no_random_operations(stack):
    graphdef, state = nnx.split(stack)
    x = jnp.ones((2, 4, 8))

    def graph(**options):
        def call(state, key):
            key = key if options.pop("with_key", False) else None
            return run_blocks(nnx.merge(graphdef, state), x, SHIFT, key=key, **options)

        return str(jax.make_jaxpr(call)(state, jax.random.key(0)))

    assert "random_bits" in graph(max_drop_path=0.5, with_key=True)
    assert "random_" not in graph(max_drop_path=0.5)
    assert "random_" not in graph(max_drop_path=0.0, with_key=True)


def products(jaxpr) -> int:
    """Matrix products in a program, those of a loop's body once."""
    inner = [
        product
        for equation in jaxpr.eqns
        for value in equation.params.values()
        for each in (value if isinstance(value, tuple | list) else (value,))
        if (product := getattr(each, "jaxpr", each if hasattr(each, "eqns") else None))
    ]
    own = sum(equation.primitive.name == "dot_general" for equation in jaxpr.eqns)
    return own + sum(map(products, inner))


def test_remat_recomputes_what_it_says(stack):
    # That its gradients are right is tested against golden values.
    graphdef, state = nnx.split(stack)
    x = jnp.ones((2, 4, 8))
    count = {}
    for remat in ("none", "block", "dots"):

        def loss(state, remat=remat):
            blocks = nnx.merge(graphdef, state)
            return jnp.sum(run_blocks(blocks, x, SHIFT, remat=remat, unroll=False))

        count[remat] = products(jax.make_jaxpr(jax.grad(loss))(state).jaxpr)
    # A block has 8 products of full rank, 2 that go down to a low rank and 6 that come up again.
    assert count["dots"] - count["none"] == 6  # up: five offsets and the decay
    wkv = products(jax.make_jaxpr(bi_wkv6)(*[jnp.ones((2, 4, 1, 8))] * 4, jnp.ones((1, 8))).jaxpr)
    assert wkv > 0
    assert count["block"] - count["none"] == 8 + 2 + 6 + wkv


def gradients(stack, remat, **options):
    """The program of a loss's gradients by the stack's parameters, not compiled yet."""
    graphdef, state = nnx.split(stack)
    x = jax.random.normal(jax.random.key(1), (2, 4, 8))

    def loss(state):
        y = run_blocks(nnx.merge(graphdef, state), x, SHIFT, remat=remat, **options)
        return jnp.sum(jnp.square(y))

    return jax.jit(jax.value_and_grad(loss)).lower(state), state


@pytest.mark.parametrize("remat", ["none", "block", "dots"])
def test_unrolled_blocks_are_those_of_the_loop(stack, remat):
    drop = {"max_drop_path": 0.5, "key": jax.random.key(2)}
    found = {}
    for unroll in (False, True):
        lowered, state = gradients(stack, remat, unroll=unroll, **drop)
        found[unroll] = lowered.compile()(state)
    chex.assert_trees_all_close(found[True], found[False], rtol=1e-5, atol=1e-5)


def mesh_of(sizes, **options):
    """Of no devices; XLA's to lay arrays out over, as in training."""
    auto = (jax.sharding.AxisType.Auto,) * len(AXES)
    return jax.sharding.AbstractMesh(sizes, AXES, axis_types=auto, **options)


@pytest.mark.parametrize(("platform", "loops"), [("gpu", 0), ("tpu", 1), ("cpu", 1)])
def test_blocks_are_unrolled_on_a_gpu_unless_a_loop_is_asked_for(stack, platform, loops):
    graphdef, state = nnx.split(stack)

    def count(unroll: bool | None) -> int:
        def run(state):
            return run_blocks(nnx.merge(graphdef, state), jnp.ones((2, 4, 8)), SHIFT, unroll=unroll)

        with jax.sharding.use_abstract_mesh(mesh):
            jaxpr = jax.make_jaxpr(run)(state).jaxpr
        return sum(x.primitive.name == "scan" and x.params["length"] == 3 for x in jaxpr.eqns)

    device = jax.sharding.AbstractDevice("one that no kernel knows", None, platform)
    mesh = mesh_of((1, 1, 1), abstract_device=device)
    assert (count(None), count(True), count(False)) == (loops, 0, 1)


def test_without_a_loop_a_compiler_merges_nothing_that_is_computed_again(stack):
    count = {
        (remat, unroll): gradients(stack, remat, unroll=unroll)[0]
        .compile()
        .as_text()
        .count(" dot(")
        for remat in ("none", "block")
        for unroll in (False, True)
    }
    # Of a block in a loop, and of all three without one.
    again = count["block", False] - count["none", False]
    assert again > 0
    assert count["block", True] - count["none", True] == 3 * again


@pytest.mark.parametrize("fsdp", [1, 2])
def test_without_a_loop_weights_are_kept_apart_where_they_are_gathered(stack, fsdp):
    graphdef, state = nnx.split(stack)

    def run(state):
        blocks, x = nnx.merge(graphdef, state), jnp.ones((2, 4, 8))
        return run_blocks(blocks, x, SHIFT, remat="block", unroll=True)

    with jax.sharding.use_abstract_mesh(mesh_of((1, fsdp, 1))):
        jaxpr = jax.make_jaxpr(run)(state).jaxpr
    blocks = [x for x in jaxpr.eqns if "prevent_cse" in x.params]
    assert len(blocks) == 3
    for block in blocks:
        apart = dict(zip(block.invars, block.params["prevent_cse"], strict=True))
        (tokens,) = (x for x in block.invars if x.aval.shape == (2, 4, 8))
        assert {x for x in apart if apart[x]} == (set(apart) if fsdp > 1 else {tokens})


def test_kernels_are_cast_for_all_blocks_at_once(stack):
    graphdef, state = nnx.split(stack)
    x = jnp.ones((2, 4, 8), jnp.bfloat16)
    jaxpr = jax.make_jaxpr(lambda s: run_blocks(nnx.merge(graphdef, s), x, SHIFT, unroll=False))(
        state
    ).jaxpr
    (loop,) = (each for each in jaxpr.eqns if each.primitive.name == "scan")
    cast = [each for each in loop.invars if each.aval.dtype == x.dtype and len(each.aval.shape) > 2]
    # What goes around the loop, and the matrices of the spatial mix and of the channel mix.
    assert len(cast) == 1 + 8 + 3


def test_squared_relu_and_its_gradient_from_what_it_gives():
    x = jnp.array([-2.0, -0.0, 0.0, 0.5, 3.0])
    y, back = jax.vjp(squared_relu, x)
    chex.assert_trees_all_close(y, jnp.array([0.0, 0.0, 0.0, 0.25, 9.0]))
    chex.assert_trees_all_close(back(jnp.full(5, 10.0))[0], jnp.array([0.0, 0.0, 0.0, 10.0, 60.0]))
    # The root of a rounded square is off by its own rounding and half of the square's.
    x = jnp.linspace(0.01, 30.0, 3000, dtype=jnp.bfloat16)
    _, back = jax.vjp(squared_relu, x)
    got, wanted = (y.astype(jnp.float32) for y in (back(jnp.ones_like(x))[0], 2 * x))
    chex.assert_trees_all_close(got, wanted, rtol=2**-7)


def test_the_block_serves_a_causal_model_too():
    spec = text_block_spec(TextConfig(width=8, heads=1, depth=2, hidden=16))
    blocks = random_stack(dataclasses.replace(spec, wkv=causal_wkv6))

    def previous_token(x):
        return jnp.pad(x, ((0, 0), (1, 0), (0, 0)))[:, :-1]

    x = jax.random.normal(jax.random.key(1), (1, 5, 8))
    graphdef, state = nnx.split(blocks)
    call = jax.jit(lambda s, x: run_blocks(nnx.merge(graphdef, s), x, previous_token))
    before, after = call(state, x), call(state, x.at[:, 3, 0].add(1.0))
    np.testing.assert_array_equal(before[:, :3], after[:, :3])
    assert (np.abs(before[:, 3:] - after[:, 3:]).max(axis=-1) > 1e-4).all()
