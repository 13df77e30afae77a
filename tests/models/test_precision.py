"""The dtype policy, read off the compiled graph as well as the numbers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rwkv_jax import precision
from rwkv_jax.models import (
    ClipConfig,
    ImageConfig,
    TextConfig,
    abstract_params,
    bind,
    model_graphdef,
)
from rwkv_jax.models.decays import decay_logits
from rwkv_jax.precision import compute_dtype, matmul_precision

CONFIG = ClipConfig(
    ImageConfig(16, 8, width=16, heads=2, depth=2, hidden_rate=2, drop_path=0.5),
    TextConfig(vocab_size=50, context_length=8, width=16, heads=2, depth=2, hidden=32),
)
PIXELS = jax.random.normal(jax.random.key(1), (2, 16, 16, 3))
TOKENS = jnp.arange(16).reshape(2, 8)


def random_params(config: ClipConfig):
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: jnp.asarray(0.3 * rng.normal(size=leaf.shape), leaf.dtype),
        abstract_params(config),
    )


@pytest.fixture(scope="module")
def params():
    return random_params(CONFIG)


def test_names():
    assert compute_dtype("bfloat16") == jnp.bfloat16
    assert compute_dtype("auto") == compute_dtype("float32") == jnp.float32  # on a CPU
    with pytest.raises(ValueError, match=r"'fp16' is unknown.*auto, float32, bfloat16"):
        compute_dtype("fp16")


@pytest.mark.parametrize(
    ("platform", "name"), [("cpu", "float32"), ("gpu", "bfloat16"), ("tpu", "bfloat16")]
)
def test_accelerators_take_bfloat16(platform: str, name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(precision, "platform", lambda: platform)
    assert compute_dtype("auto") == name


def test_float32_products_are_not_rounded():
    assert matmul_precision(jnp.float32) == jax.lax.Precision.HIGHEST
    assert matmul_precision(jnp.bfloat16) is None


def test_bfloat16_rounds_and_no_more(params):
    def features(dtype):
        graphdef = model_graphdef(CONFIG, dtype)
        return jax.jit(lambda params: bind(graphdef, params).encode_image(PIXELS))(params)

    got, wanted = features(jnp.bfloat16), features(jnp.float32)
    assert 1e-5 < np.linalg.norm(got - wanted) / np.linalg.norm(wanted) < 0.05


def test_the_last_norm_is_not_rounded():
    """Seen in a class token, which no mean comes after."""
    image = dataclasses.replace(CONFIG.image, depth=1, with_cls_token=True, output_cls_token=True)
    config = dataclasses.replace(CONFIG, image=image)
    graphdef = model_graphdef(config, jnp.bfloat16)
    encode = jax.jit(lambda params: bind(graphdef, params).encode_image(PIXELS))
    features = encode(random_params(config))
    assert (features != features.astype(jnp.bfloat16)).mean() > 0.9


def test_decay_logits_are_not_rounded():
    rng = np.random.default_rng(0)
    z, up = (jnp.asarray(rng.normal(size=shape), jnp.bfloat16) for shape in ((2, 3, 8), (8, 5)))
    w = decay_logits(z, nnx.Param(up.astype(jnp.float32)), jnp.full(5, -3.0))
    assert w.dtype == jnp.float32
    np.testing.assert_allclose(w, np.float64(z) @ np.float64(up) - 3, atol=1e-5)


def test_features_are_float32_whatever_the_compute_dtype(params):
    graphdef = model_graphdef(CONFIG, jnp.bfloat16)
    outputs = jax.eval_shape(lambda params: bind(graphdef, params)(PIXELS, TOKENS), params)
    assert [output.dtype for output in outputs] == [jnp.float32] * 3


def test_products_of_parameters_are_in_bfloat16(params):
    graphdef = model_graphdef(CONFIG, jnp.bfloat16)
    jaxpr = jax.make_jaxpr(lambda p: bind(graphdef, p)(PIXELS, TOKENS))(params)
    dtypes = {tuple(v.aval.dtype.name for v in eqn.invars) for eqn in dots(jaxpr.jaxpr)}
    assert ("bfloat16", "bfloat16") in dtypes


def dots(jaxpr):
    """Every matrix product outside the WKV's own."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            yield eqn
        for value in eqn.params.values():
            inner = getattr(value, "jaxpr", None)
            if inner is not None:
                yield from dots(getattr(inner, "jaxpr", inner))


def test_features_with_a_key_are_a_function_of_it(params):
    graphdef = model_graphdef(CONFIG, jnp.float32)
    call = jax.jit(lambda p, key: bind(graphdef, p)(PIXELS, TOKENS, key=key)[0])
    once, again, other = (call(params, jax.random.key(seed)) for seed in (3, 3, 4))
    np.testing.assert_array_equal(once, again)
    assert np.abs(once - other).max() > 1e-3
