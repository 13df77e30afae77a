"""A model's parameters as a nested dict of arrays, and back: the form that is saved and sharded."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from rwkv_jax.models.config import ClipConfig
from rwkv_jax.models.rwkv_clip import RwkvClip

Params = dict[str, Any]  # nested; the leaves are arrays or ShapeDtypeStructs
WhichParams = Literal["live", "ema"]  # a run's own, or their moving average


class ModelMismatchError(ValueError):
    """Parameters of another model; the message names each that differs."""


def abstract_params(config: ClipConfig) -> Params:
    """Shapes and dtypes of a model's parameters; allocates nothing."""
    return jax.eval_shape(lambda: params_to_dict(nnx.state(RwkvClip(config, rngs=nnx.Rngs(0)))))


def params_to_dict(state: nnx.State) -> Params:
    """A model's state as a nested dict."""
    return nnx.to_pure_dict(state)


def params_from_dict(state: nnx.State, params: Params) -> nnx.State:
    """`state` (of arrays or ShapeDtypeStructs) with its values replaced by `params`.

    Raises:
        ModelMismatchError: naming every parameter that is missing, unexpected or misshapen.
    """
    check_same_model(params_to_dict(state), params)
    # Both flatten in the order of their sorted keys.
    return jax.tree.unflatten(jax.tree.structure(state), jax.tree.leaves(params))


def bind(graphdef: nnx.GraphDef[RwkvClip], params: Params) -> RwkvClip:
    """The model of a graphdef (structure and compute dtype) with these parameters; unchecked.

    For use inside `jax.jit`, with `params` its argument.
    """
    return nnx.merge(graphdef, params)


def model_graphdef(config: ClipConfig, dtype: DTypeLike) -> nnx.GraphDef[RwkvClip]:
    """A model's structure without its parameters: hashable, and equal for equal arguments."""
    return nnx.graphdef(nnx.eval_shape(lambda: RwkvClip(config, dtype=dtype, rngs=nnx.Rngs(0))))


def model_from_params(
    config: ClipConfig, params: Params, *, dtype: DTypeLike = jnp.float32
) -> RwkvClip:
    """The model with these parameters, without initialising any.

    Raises:
        ModelMismatchError: they do not fit `config`.
    """
    check_same_model(abstract_params(config), params)
    return bind(model_graphdef(config, dtype), params)


def flat_params(params: Params) -> dict[str, Any]:
    """The leaves by path, "image/blocks/norm1/scale", in the order that JAX flattens them."""
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    return {"/".join(str(entry.key) for entry in path): leaf for path, leaf in leaves}


def check_same_model(expected: Params, got: Params) -> None:
    """Raises ModelMismatchError naming every parameter in which the two differ."""
    want = {path: tuple(leaf.shape) for path, leaf in flat_params(expected).items()}
    have = {path: tuple(leaf.shape) for path, leaf in flat_params(got).items()}
    problems = [f"{path} {want[path]} is missing" for path in want if path not in have]
    problems += [f"{path} {have[path]} is unexpected" for path in have if path not in want]
    problems += [
        f"{path} is {have[path]}, expected {want[path]}"
        for path in want
        if path in have and have[path] != want[path]
    ]
    if problems:
        raise ModelMismatchError("the parameters are another model's: " + "; ".join(problems))
